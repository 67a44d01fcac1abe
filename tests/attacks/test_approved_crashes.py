"""SIGKILL around an approved call that a resumed run makes again: never twice, never silently lost.

A process asks, is answered, and runs calls in threads of a framework; it is killed at a random
moment, and another one goes on with all that was begun, as a resumed graph does. A few rounds by
default, ``AGENTGUARD_ROUNDS=full`` for many.
"""

from __future__ import annotations

import json
import os
import random
import textwrap
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from preloaded import Preloaded

from agentguard.audit.kinds import parse_entry
from agentguard.domain import domain, keystore, verify
from agentguard.domain.config import parse
from agentguard.signing.keys import Ed25519Signer
from agentguard.store.reader import StoredLog

FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"
ROUNDS = 8 if FULL else 1
KILLS = 4 if FULL else 2
"""Of each round, on one state."""

PASSPHRASE = b"correct horse battery staple"
PROGRAM = """
    import json, os, sys
    from pathlib import Path
    from agentguard import ApprovalPending, Decision, Denied, Guard, adapters
    from agentguard.guard.embedded import Embedded
    from agentguard.adapters import Arguments, CallSite, Invocation, CallOptions
    from agentguard.domain import config
    from agentguard.domain import domain
    from agentguard.policy.function import FunctionEngine
    from agentguard.signing.keys import Ed25519Signer

    folder = Path(sys.argv[1])
    bob = Ed25519Signer.from_seed(bytes.fromhex((folder / "bob").read_text()))
    settings = config.parse(json.loads((folder / "tables").read_text()), source="t", base=folder)
    home = domain.take_up(settings, b"correct horse battery staple")
    guard = Guard(Embedded(settings, FunctionEngine(lambda _: Decision.require_approval()), home))
    agent = guard.new_agent("coder")
    effects = os.open(folder / "effects", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    class Codec:
        def dumps(self, result):
            return result.encode()
        def loads(self, data):
            return data.decode()

    @guard.tool
    def pay(name: str) -> str: ...

    def invocation(name):
        site = CallSite("call_1", thread=name, turn="m1")
        return Invocation.bind(pay.spec, lambda: Arguments.of({"name": name}), site)

    def effect(name):
        os.write(effects, f"{name}\\n".encode())  # seen by all, even after a SIGKILL
        return f"paid {name}"

    def attempt(name):
        try:
            return adapters.run(agent, invocation(name), lambda: effect(name), CallOptions(Codec()))
        except (Denied, ApprovalPending) as refused:
            return refused.code
"""
WORK = """
    print("ready", flush=True)
    for number in range(1_000_000):
        name = f"{sys.argv[2]}-{number}"
        print("asks", name, flush=True)
        try:
            adapters.evaluate(agent, invocation(name), CallOptions(Codec()))
        except ApprovalPending as pending:
            guard.approvals.approve(pending.request, bob)
        assert attempt(name) == f"paid {name}"
        print("done", name, flush=True)
"""
RESUME = """
    for name in sys.argv[2:]:
        print(name, attempt(name), attempt(name), flush=True)
    guard.close()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state whose policy asks for bob."""
    seed = os.urandom(32)
    (tmp_path / "bob").write_text(seed.hex())
    line = Ed25519Signer.from_seed(seed).public_key.openssh()
    tables = {
        "trust_domain": "acme.example",
        "state": str(tmp_path / "state"),
        "anchor": str(tmp_path / "anchor"),
        "policy": {"engine": "function", "path": "unused:unused"},
        "agents": {"coder": {"authority": "own"}},
        "approvers": {"bob": {"principal": "user:bob", "keys": [line]}},
    }
    (tmp_path / "tables").write_text(json.dumps(tables))
    settings = parse(tables, source="t", base=tmp_path)
    domain.found(settings, PASSPHRASE, now=datetime.now(UTC))
    return tmp_path


def program(text: str) -> str:
    return "".join(textwrap.dedent(part) for part in (PROGRAM, text))


def killed_at_work(programs: Preloaded, folder: Path, name: str) -> tuple[list[str], set[str]]:
    """Let a process work, and kill it; return the calls that it has begun, and those it ended."""
    working = programs.talk("-W", "error", "-c", program(WORK), folder, name, cwd=folder)
    assert working.stdout.readline() == "ready\n"
    time.sleep(random.uniform(0.0, 0.15))  # noqa: S311  any moment will do
    working.kill()
    said = [line.split() for line in working.communicate()[0].splitlines()]
    begun = [words[1] for words in said if words[0] == "asks"]
    return begun, {words[1] for words in said if words[0] == "done" and len(words) > 1}


def effects_of(folder: Path) -> Counter[str]:
    path = folder / "effects"
    return Counter(path.read_text().split()) if path.exists() else Counter()


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_resumed_run_pays_once_and_loses_nothing(programs, folder, round_):
    for kill in range(KILLS):
        begun, done = killed_at_work(programs, folder, f"{round_}-{kill}")
        before = effects_of(folder)
        assert set(before.values()) <= {1}
        assert done <= before.keys()
        words = ("-W", "error", "-c", program(RESUME), folder, *begun[-3:])
        resumed = programs.run(*words, cwd=folder)
        assert resumed.returncode == 0, resumed.stderr
        after = effects_of(folder)
        assert set(after.values()) <= {1}, "a call has run twice"
        for line in resumed.stdout.splitlines():
            name, _, first = line.partition(" ")
            if name in done:
                assert first == f"paid {name} paid {name}"  # what is kept of it, and no second run
            elif first == f"paid {name} paid {name}":
                assert after[name] == 1
            else:  # it is told, both times; whatever has run was never paid again
                assert set(first.split()) <= {
                    "journal.in_doubt",
                    "approval.consumed",
                    "approval.pending",
                }, line
                assert after[name] == before[name]
    on_record = calls_on_record(folder)
    assert effects_of(folder).keys() <= on_record
    with closing(StoredLog.of(folder / "state")) as reader:
        trust = keystore.load_trust(folder / "state")
        report = verify.examine(reader, trust, anchor=folder / "anchor")
    assert report.problems == ()


def calls_on_record(folder: Path) -> set[str]:
    """The names in the arguments of the calls that were allowed."""
    found: set[str] = set()
    with closing(StoredLog.of(folder / "state")) as reader:
        for stored in reader.stored():
            parsed = parse_entry(stored.body)
            if parsed.kind == "call" and parsed.members["decision"] == "allow":
                for kept in stored.attachments:
                    if kept.role == "arguments":
                        found.add(kept.data.decode().split('"')[3])
    return found
