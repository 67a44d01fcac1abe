"""Many evidence files at once: no process that dies and no bad file changes what another proves.

No process outlives the command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agentguard.audit import evidence_file
from agentguard.audit.calls import read_authorization
from agentguard.audit.entry import parse_entry
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.prove import prove_call
from agentguard.cli.audit import evidence_batch
from agentguard.domain import keystore
from agentguard.errors import DecodeError
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


@pytest.mark.parametrize("step", ["__init__", "submit"])
def test_where_no_process_can_start_the_answers_are_the_same(paths, trust, monkeypatch, step):
    alone = list(evidence_batch.answers(paths, trust, 1))

    def fails(*_arguments):
        raise OSError("no more processes")

    monkeypatch.setattr(ProcessPoolExecutor, step, fails)
    assert in_processes(paths, trust, monkeypatch, 2) == alone


def test_a_file_that_is_too_long_has_the_code_of_a_single_file(paths, trust):
    paths[0].write_bytes(bytes(evidence_file.MAX_BYTES + 1))
    with pytest.raises(DecodeError) as caught:
        verify_evidence(paths[0].read_bytes(), trust)
    assert next(evidence_batch.answers(paths, trust, 1))["code"] == caught.value.code


KILLED = """
import os, signal, sys
from pathlib import Path
from agentguard.cli.audit import evidence_batch
from agentguard.identity.trust import TrustDocument

evidence_batch.ALONE = 0
trust = TrustDocument.loads(Path(sys.argv[1]).read_bytes())
answers = evidence_batch.answers([Path(sys.argv[2])] * 400, trust, 2)
print(next(answers)["ok"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_processes_end_with_a_command_that_is_killed(paths, trust, tmp_path):
    """The pipe of the command's output ends when the last process has ended that holds the pipe."""
    (tmp_path / "trust.json").write_bytes(trust.dumps())
    command = [sys.executable, "-c", KILLED, tmp_path / "trust.json", paths[0]]
    ended = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, b"True\n")
