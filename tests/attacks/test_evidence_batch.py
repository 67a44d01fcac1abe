"""Many evidence files at once: no process that dies and no bad file changes what another proves.

No process outlives the command. No file proves another call than the one that was asked for.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from base64 import b64encode
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import commands
import pytest
from edited_logs import PASSPHRASE, change
from shared_ids import share_id

from agentguard.audit import evidence_file
from agentguard.audit.evidence import EvidenceVerifier, verify_evidence
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.prove import prove_call
from agentguard.audit.tlog_proof import TlogProof
from agentguard.cli.audit import evidence_batch, lookup
from agentguard.domain import administration, keystore, worker_processes
from agentguard.errors import DecodeError
from agentguard.signing import canonical
from agentguard.store.reader import StoredLog


@pytest.fixture
def trust(used):
    return keystore.load_trust(used.config.state)


@pytest.fixture
def paths(used, trust, tmp_path) -> list[Path]:
    """Write the evidence of ten calls, of which two are tampered with, and name a missing file."""
    folder = tmp_path / "evidence"
    folder.mkdir()
    with closing(StoredLog.of(used.config.state)) as reader:
        parsed = [parse_entry(body) for _, body in reader.entries()]
        calls = [one for one in parsed if isinstance(one, CallEntry)]
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
    """Verify with each file in a task of its own, from the first file on."""
    monkeypatch.setattr(evidence_batch, "ALONE", 0)
    monkeypatch.setattr(evidence_batch, "_MOST", 1)
    return list(evidence_batch.answers(paths, trust, jobs))


def workers() -> list[int]:
    """The ids of the processes that verify files for this one."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    started = f"\0-m\0{evidence_batch.NAME}\0".encode()
    return [child for child, command in commands.items() if started in command]


@pytest.fixture
def verified_here(monkeypatch) -> list[Path]:
    """The files that this process verifies itself."""
    seen: list[Path] = []
    answer = evidence_batch.answer

    def spied(path, verifier):
        seen.append(path)
        return answer(path, verifier)

    monkeypatch.setattr(evidence_batch, "answer", spied)
    return seen


def test_each_file_has_its_own_answer_in_order(paths, trust):
    answers = list(evidence_batch.answers(paths, trust, 1))
    assert [answer["file"] for answer in answers] == list(map(str, paths))
    assert [answer["ok"] for answer in answers] == GOOD
    assert answers[-1]["code"] == "storage.missing"


def test_processes_answer_the_same(paths, trust, monkeypatch):
    alone = list(evidence_batch.answers(paths, trust, 1))
    assert in_processes(paths, trust, monkeypatch, 2) == alone
    assert not workers()


def test_a_process_answers_what_this_one_answers(paths, trust, verified_here):
    """Without a task in this process, which would hide an answer that is lost."""
    alone = list(evidence_batch.answers(paths, trust, 1))
    verified_here.clear()
    task = evidence_batch._dumps(paths, trust.dumps())
    assert json.loads(evidence_batch._answers(task)) == alone
    verified_here.clear()
    tasks = iter([paths])
    answers = evidence_batch._shared_out(tasks, EvidenceVerifier(trust), trust.dumps(), 1)
    assert list(answers) == alone
    assert verified_here == []


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_stopped_changes_no_answer(paths, trust, monkeypatch, sent):
    monkeypatch.setattr(evidence_batch, "ALONE", 0)
    monkeypatch.setattr(evidence_batch, "_MOST", 1)
    many = paths * 5
    alone = list(evidence_batch.answers(many, trust, 1))
    for last in (0, 20):
        answers = []
        for number, answer in enumerate(evidence_batch.answers(many, trust, 3)):
            answers.append(answer)
            if number == last:
                assert workers()
                for process in workers():
                    os.kill(process, sent)
                monkeypatch.setattr(worker_processes, "_PATIENCE", 0.1)
        assert answers == alone
        assert not workers()
        monkeypatch.setattr(worker_processes, "_PATIENCE", 30)


@pytest.mark.parametrize("program", ["/bin/false", "/nonexistent", None])
def test_where_no_process_answers_the_answers_are_the_same(paths, trust, monkeypatch, program):
    alone = list(evidence_batch.answers(paths, trust, 1))
    monkeypatch.setattr(sys, "executable", program)
    assert in_processes(paths, trust, monkeypatch, 2) == alone


def test_what_else_a_process_prints_is_no_answer(paths, trust, tmp_path, monkeypatch):
    alone = list(evidence_batch.answers(paths, trust, 1))
    (tmp_path / "sitecustomize.py").write_text("import os\nos.write(1, b'[]' * 99)\n", "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert in_processes(paths, trust, monkeypatch, 2) == alone


def test_an_end_before_the_last_answer_ends_the_processes(paths, trust, monkeypatch):
    monkeypatch.setattr(evidence_batch, "ALONE", 0)
    with closing(evidence_batch.answers(paths * 9, trust, 3)) as answers:
        assert next(answers)["ok"]
        assert workers()
    assert not workers()


def test_a_task_has_a_bounded_number_and_length_of_files(tmp_path, monkeypatch):
    paths = [tmp_path / str(number) for number in range(70)]
    for path in paths[:-1]:
        path.write_bytes(b"x" * 10)
    assert [len(task) for task in evidence_batch._tasks(paths)] == [32, 32, 6]
    monkeypatch.setattr(evidence_batch, "_MOST_BYTES", 100)
    assert [len(task) for task in evidence_batch._tasks(paths)] == [10, 10, 10, 10, 10, 10, 10]


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


@pytest.mark.parametrize(("number", "is_kept"), [(50, True), (1_500, False)])
def test_many_signatures_of_strangers_take_no_memory(paths, trust, number, is_kept):
    """The file proves the same with them, and a verifier does not keep them for other files."""
    ids = [(nth.to_bytes(4), b64encode(nth.to_bytes(4) + bytes(64))) for nth in range(number)]
    strangers = "".join(f"\u2014 {number}-{one.hex()} {line.decode()}\n" for one, line in ids)
    file = json.loads(paths[0].read_bytes())
    for item in file["entries"]:
        item["proof"] += strangers
    verifier = EvidenceVerifier(trust)
    proved = verifier.verify(canonical.dumps(file) + b"\n")
    assert proved == verify_evidence(paths[0].read_bytes(), trust)
    gc.collect()
    proofs = [one for one in gc.get_objects() if isinstance(one, TlogProof)]
    assert any(f" {number}-".encode() in one.note for one in proofs) is is_kept


@pytest.mark.parametrize("lie", ["kind = 'policy'", "invocation_id = 'x'", "tool = 'x'", None])
def test_no_column_hides_a_call_from_an_export_of_all(used, trust, tmp_path, lie):
    """Somebody without any key would else choose which calls an auditor gets to see."""
    if lie is not None:
        statement = f"UPDATE entry SET {lie} WHERE kind = 'call' AND idx > 10"  # noqa: S608
        change(used, statement)
    (tmp_path / "trust.json").write_bytes(trust.dumps())
    words = ["--state", used.config.state, "--trust", tmp_path / "trust.json"]
    words = ["evidence", "export", "-o", tmp_path / "all", *words]
    exported = commands.run(words, env={"HOME": str(tmp_path)}, cwd=tmp_path)
    assert (exported.returncode, exported.stderr) == (0, "")
    files = sorted((tmp_path / "all").iterdir())
    assert (len(files), "proves 10 calls" in exported.stdout) == (10, True)
    assert all(answer["ok"] for answer in evidence_batch.answers(files, trust, 1))


@pytest.fixture
def with_one_id(place, monkeypatch) -> Path:
    """Call two tools of an agent that gives both calls one id; return the trust document's file."""
    share_id(monkeypatch)
    with place.open() as guard:
        agent = guard.new_agent("reader")
        for name in ("harmless", "harmful"):
            agent.call(guard.tool(name=name)(lambda number: number), 1)
        (place.config.base / "trust.json").write_bytes(guard.trust.dumps())
    return place.config.base / "trust.json"


def test_an_id_that_an_agent_uses_twice_hides_no_call(place, with_one_id, tmp_path):
    def run(*args):
        log = [] if "verify" in args else ["--state", place.config.state]
        words = ["evidence", *args, "--trust", with_one_id, *log]
        return commands.run(words, env={"HOME": str(tmp_path)}, cwd=tmp_path)

    def tool_in(file):
        shown = run("verify", file, "--json")
        return shown.returncode, json.loads(shown.stdout)["tool"]["name"]

    with closing(StoredLog.of(place.config.state)) as reader:
        kinds = [parse_entry(body).kind for _, body in reader.entries()]
    places = [str(index) for index, kind in enumerate(kinds) if kind == "call"]
    for number, name in enumerate(("harmless", "harmful")):
        made = run("make", places[number], "-o", tmp_path / f"{number}.json")
        assert made.returncode == 0, made.stderr
        assert tool_in(tmp_path / f"{number}.json") == (0, name)
        exported = run("export", "--tool", name, "-o", tmp_path / name)
        assert exported.returncode == 0, exported.stderr
        assert tool_in(tmp_path / name / f"{'a' * 32}.json") == (0, name)
    refused = run("export", "--force", "-o", tmp_path / "all")
    assert (refused.returncode, (tmp_path / "all").exists()) == (2, False)
    assert f"the calls {places[0]} and {places[1]} have one id" in refused.stderr
    assert "evidence.mismatch" in refused.stderr


@pytest.mark.parametrize("nth", [0, 1])
def test_an_erasure_is_of_the_call_at_the_place_that_is_named(place, with_one_id, nth):
    def texts():
        """The attachments of the two calls and their outcomes."""
        with closing(StoredLog.of(place.config.state)) as reader:
            stored = list(reader.stored())
        calls = [one for one in stored if parse_entry(one.body).kind == "call"]
        return [bool(one.attachments) for one in calls], [one.index for one in calls]

    has_data, indices = texts()
    assert has_data == [True, True]
    with closing(StoredLog.of(place.config.state)) as reader:
        named = lookup.call(reader, str(indices[nth]))
    done = administration.erase(
        place.config, PASSPHRASE, named, note="asked for", now=datetime.now(UTC)
    )
    assert (done.call.index, texts()[0]) == (indices[nth], [nth == 1, nth == 0])
