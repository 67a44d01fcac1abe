"""Many evidence files at once: no process that dies and no bad file changes what another proves."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agentguard.audit.calls import read_authorization
from agentguard.audit.entry import parse_entry
from agentguard.audit.prove import prove_call
from agentguard.cli.audit import evidence_batch
from agentguard.domain import keystore
from agentguard.storage.reader import StateReader


@pytest.fixture
def trust(used):
    return keystore.load_trust(used.config.state)


@pytest.fixture
def paths(used, trust, tmp_path) -> list[Path]:
    """Write the evidence of ten calls, of which two are tampered with, and name a missing file."""
    folder = tmp_path / "evidence"
    folder.mkdir()
    with closing(StateReader(used.config.state)) as reader:
        parsed = [parse_entry(body) for _, body in reader.entries(0)]
        calls = [read_authorization(one) for one in parsed if one.kind == "authorization"]
        for number, call in enumerate(calls):
            data = prove_call(reader, trust, str(call.invocation_id))
            (folder / f"{number}.json").write_bytes(data)
    for number, old, new in ((3, b"reader", b"writer"), (7, b'\\"allow\\"', b'\\"denys\\"')):
        path = folder / f"{number}.json"
        data = path.read_bytes()
        path.write_bytes(data.replace(old, new))
        assert path.read_bytes() != data
    return [*(folder / f"{number}.json" for number in range(10)), folder / "missing.json"]


GOOD = [True, True, True, False, True, True, True, False, True, True, False]


def in_processes(paths, trust, monkeypatch, jobs: int) -> list[dict[str, Any]]:
    """Verify with each file in a chunk of its own, from the first file on."""
    monkeypatch.setattr(evidence_batch, "ALONE", 0)
    monkeypatch.setattr(evidence_batch, "_CHUNK", 1)
    return list(evidence_batch.answers(paths, trust, jobs))


def test_each_file_has_its_own_answer_in_order(paths, trust):
    answers = list(evidence_batch.answers(paths, trust, 1))
    assert [answer["file"] for answer in answers] == list(map(str, paths))
    assert [answer["ok"] for answer in answers] == GOOD
    assert answers[-1]["code"] == "storage.missing"


def test_processes_answer_the_same(paths, trust, monkeypatch):
    alone = list(evidence_batch.answers(paths, trust, 1))
    assert in_processes(paths, trust, monkeypatch, 2) == alone


def dies(_paths, _trust):
    os._exit(1)


def test_a_process_that_dies_changes_no_answer(paths, trust, monkeypatch):
    alone = list(evidence_batch.answers(paths, trust, 1))
    real = evidence_batch._answers
    submitted = ProcessPoolExecutor.submit

    def submit(pool, function, *arguments):
        assert function is real
        return submitted(pool, dies, *arguments)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit)
    assert in_processes(paths, trust, monkeypatch, 2) == alone


def test_where_no_process_can_start_the_answers_are_the_same(paths, trust, monkeypatch):
    alone = list(evidence_batch.answers(paths, trust, 1))

    def submit(*_arguments):
        raise OSError("no more processes")

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit)
    assert in_processes(paths, trust, monkeypatch, 2) == alone
