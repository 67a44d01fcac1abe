"""Rotating the long-lived keys: what a rotation does, and guards that run meanwhile.

Nothing that was signed before is lost, and running guards take the new keys.
"""

from __future__ import annotations

import gc
import os
import threading
from datetime import timedelta
from types import FunctionType, ModuleType
from typing import Any

import pytest
from rotations import HOUR, PASSPHRASE, USES, either, signing

from agentguard import ConfigError, Decision, Denied, StorageError, VerificationError
from agentguard.audit.evidence import verify_evidence
from agentguard.domain import domain, keystore, rotation
from agentguard.domain.domain import StateDomain
from agentguard.errors import KeyMaterialError
from agentguard.guard.embedded import Embedded
from agentguard.guard.guard import Guard
from agentguard.policy.function import FunctionEngine
from agentguard.store.log import StoreLog

# --- what a rotation does -------------------------------------------------------------------------


@either
@pytest.mark.parametrize("use", USES)
def test_before_and_after_verify(scene, use):
    scene.call("before")
    before, old = scene.trust, scene.key(use)
    proof = scene.prove(scene.calls()[0])
    returned = scene.rotate(use)
    scene.call("after")
    scene.good()
    assert returned == scene.trust != before
    assert scene.key(use) != old
    assert returned.current(use) == [scene.key(use)]
    assert [key for other in USES if other != use for key in returned.current(other)] == [
        key for other in USES if other != use for key in before.current(other)
    ]
    assert scene.left_over() == []
    for trust in (before, returned):  # what was handed out before needs nothing new
        verify_evidence(proof, trust)
    for invocation_id in scene.calls():
        verify_evidence(scene.prove(invocation_id), returned)
    assert len(scene.calls()) == 2


@pytest.mark.parametrize("use", ["issuer", "log"])
def test_who_has_only_the_old_trust_document_does_not_believe_the_new_key(scene, use):
    before = scene.trust
    scene.call("before")
    assert scene.examine(before).ok
    scene.rotate(use)
    scene.call("after")
    report = scene.examine(before)
    assert not report.ok
    with pytest.raises(VerificationError):
        verify_evidence(scene.prove(scene.calls()[1]), before)


def test_both_keys_are_announced_and_signed_for(scene):
    before = scene.announced()
    scene.rotate("log")
    new = [said for said in scene.announced() if said not in before]
    assert [(said["use"], said["not_after"] is None) for said in new] == [
        ("log", False),
        ("log", True),
    ]
    assert [said["kid"] for said in new] == [
        key.key.thumbprint for key in scene.trust.keys_for("log")
    ]
    assert len(scene.announced()) == 5


def test_every_key_can_be_rotated_again_and_again(scene):
    for turn in range(3):
        for use in USES:
            scene.clock.advance(minutes=1)
            scene.rotate(use)
        scene.call(f"turn {turn}")
    scene.good()
    assert len(scene.trust.keys) == 3 + 9
    assert len(scene.announced()) == 3 + 18
    for invocation_id in scene.calls():
        scene.prove(invocation_id)


def test_files_stay_private(scene):
    for use in USES:
        scene.rotate(use)
    state = scene.settings.state
    modes = {(path.is_dir(), oct(path.stat().st_mode & 0o777)) for path in state.rglob("*")}
    assert modes == {(True, "0o700"), (False, "0o600")}
    (outside,) = scene.settings.anchor.glob("*/trust.json")
    assert outside.stat().st_mode & 0o777 == 0o600
    for use in USES:
        text = (state / "keys" / use).read_bytes()
        assert text.startswith(b"-----BEGIN OPENSSH ")
        with pytest.raises(KeyMaterialError):
            keystore.load_key(state, use, b"not the passphrase")


@pytest.mark.parametrize("overlap", [timedelta(0), timedelta(minutes=119), timedelta(days=-1)])
def test_too_short_an_overlap_is_refused(scene, overlap):
    before = scene.trust
    with pytest.raises(ConfigError, match="too short"):
        scene.rotate("log", overlap=overlap)
    assert scene.trust == before
    scene.rotate("log", overlap=rotation.MIN_OVERLAP)


def test_a_compromise_in_the_future_is_refused(scene):
    before = scene.trust
    with pytest.raises(ConfigError, match="in the future"):
        scene.rotate("log", compromised_since=scene.clock.now + HOUR)
    assert scene.trust == before
    scene.rotate("log", compromised_since=scene.clock.now)


# --- running guards -------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["issuer", "log"])
def test_a_running_guard_takes_the_new_key_as_the_log_or_its_next_credential_tells_it(scene, use):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        agent.call(tool, "before")
        scene.rotate(use)
        agent.call(tool, "in the overlap")
        if use == "log":  # the newest head is signed with the new key
            assert signing(guard, use) == scene.key(use)
        else:
            assert guard.trust != scene.trust
        scene.clock.advance(minutes=56)  # a credential lives for an hour
        agent.call(tool, "renewed")
        assert guard.trust == scene.trust
        assert signing(guard, use) == scene.key(use)
        scene.clock.advance(hours=30)  # past the overlap
        agent.call(tool, "long after")
    scene.good()
    assert len(scene.calls()) == 4


def test_a_guard_that_does_not_take_the_new_key_signs_nothing_more(scene, monkeypatch):
    monkeypatch.setattr(StateDomain, "renewed", lambda _home: None)
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        scene.rotate("log")
        with pytest.raises(Denied) as caught:
            agent.call(tool, "in the overlap")
        assert caught.value.code == "storage.unvouched"
    scene.good()


def test_without_that_the_old_issuer_would_run_out(scene, monkeypatch):
    """The twin: a guard that does not notice is found out, as soon as the overlap is over."""
    monkeypatch.setattr(StateDomain, "renewed", lambda _home: None)
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        scene.rotate("issuer")
        agent.call(tool, "in the overlap")
        guard.reader()
        assert scene.examine().ok
        scene.clock.advance(hours=25)
        # it still believes in its own keys: what they sign does not verify for anybody else
        agent.call(tool, "too late")
    assert not scene.examine().ok


@pytest.mark.parametrize("enqueued", [False, True], ids=["a call after it", "closed after it"])
def test_a_tool_that_outlasts_the_overlap(scene, enqueued):
    """No credential is renewed meanwhile: it is the log that has to notice."""
    with scene.open() as guard:
        agent = guard.new_agent("reader")

        def slow(what: str) -> str:
            scene.rotate("log", overlap=2 * HOUR)
            scene.clock.advance(hours=3)
            return what

        agent.call(guard.tool(name="slow")(slow), "x")
        if not enqueued:
            agent.call(guard.tool(name="say")(lambda what: what), "y")
    scene.good()
    scene.call("afterwards")
    scene.good()
    for invocation_id in scene.calls():
        verify_evidence(scene.prove(invocation_id), scene.trust)


def test_an_outcome_waits_while_nobody_knows_whether_the_key_still_counts(scene):
    """It is not signed with a key that may have ended, and not lost."""
    answers = [PASSPHRASE]
    home = domain.take_up(scene.settings, lambda: answers[0])
    with Guard(
        Embedded(scene.settings, FunctionEngine(lambda _d: Decision.allow()), home)
    ) as guard:
        agent = guard.new_agent("reader")

        def slow(what: str) -> str:
            scene.rotate("log", overlap=2 * HOUR)
            scene.clock.advance(hours=3)
            answers[0] = b"not yet"
            return what

        agent.call(guard.tool(name="slow")(slow), "x")
        with pytest.raises(StorageError, match="look for new keys") as caught:
            guard.reader()
        assert caught.value.code == "key.passphrase"
        answers[0] = PASSPHRASE
        guard.reader().close()
    report = scene.examine()
    assert (report.problems, report.in_doubt) == ((), ())


def test_what_waits_to_be_written_is_older_than_the_new_key(scene, monkeypatch):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        agent.call(tool, "x")
        with monkeypatch.context() as patched:
            patched.setattr(StoreLog, "flush", lambda _log: None)
            agent.call(tool, "its outcome waits")
            scene.clock.advance(hours=1)
            scene.rotate("log")
        guard.reader().close()
        assert signing(guard, "log") == scene.key("log")  # the log's time does not go back
    report = scene.examine()
    assert (report.problems, report.in_doubt) == ((), ())


def test_the_domain_is_not_asked_for_each_commit(scene, monkeypatch):
    asked = []
    real = StateDomain.renewed

    def counted(home: StateDomain) -> StateDomain | None:
        asked.append(scene.clock.now)
        return real(home)

    with scene.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        agent.call(tool, "x")
        monkeypatch.setattr(StateDomain, "renewed", counted)
        for _ in range(8):
            agent.call(tool, "x")
            scene.clock.advance(minutes=1)
        guard.reader().close()
    assert len(asked) == 1


def test_many_agents_and_threads_take_the_new_keys(scene):
    with scene.open() as guard:
        agents = [guard.new_agent("reader") for _ in range(4)]
        tool = guard.tool(name="say")(lambda what: what)
        stop, failed = threading.Event(), []

        def work(agent: Any) -> None:
            while not stop.is_set():
                try:
                    agent.call(tool, "x")
                    stop.wait(0.01)
                except BaseException as error:  # noqa: BLE001  shown by the assertion below
                    failed.append(error)
                    return

        threads = [threading.Thread(target=work, args=(agent,)) for agent in agents]
        for thread in threads:
            thread.start()
        for use in USES:
            scene.rotate(use)
            scene.clock.advance(minutes=56)
            for _ in range(3):
                guard.new_agent("reader").call(tool, "y")
        stop.set()
        for thread in threads:
            thread.join()
        assert failed == []
        assert signing(guard, "log") == scene.key("log")
    scene.good()


def test_a_fork_long_after_a_rotation_takes_the_new_keys(scene):
    """A pre-fork server's parent makes no call, and so never renews a credential itself."""
    guard = scene.open()
    agent = guard.new_agent("reader")
    tool = guard.tool(name="say")(lambda what: what)
    for use in ("issuer", "log"):
        scene.rotate(use)
    scene.clock.advance(hours=72)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            agent.call(tool, "of the child")
            guard.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    guard.close()
    scene.good()
    assert len(scene.calls()) == 1


OTHER = """
import sys
from pathlib import Path
from agentguard import Decision, Guard
from agentguard.guard.embedded import Embedded
from agentguard.domain import config
from agentguard.domain import domain
from agentguard.policy.function import FunctionEngine
import agentguard.guard.process
from datetime import UTC, datetime, timedelta

folder = Path(sys.argv[1])
tables = {"trust_domain": "acme.example", "state": "state", "anchor": "anchor",
          "policy": {"engine": "function", "path": "unused:unused"},
          "agents": {"reader": {"authority": "own"}}}
settings = config.parse(tables, source="agentguard.toml", base=folder)
home = domain.take_up(settings, b"correct horse battery staple")
with Guard(Embedded(settings, FunctionEngine(lambda _d: Decision.allow()), home)) as guard:
    agent = guard.new_agent("reader")
    say = guard.tool(name="say")(lambda what: what)
    agent.call(say, "before")
    print("ready", flush=True)
    sys.stdin.readline()
    agent.call(say, "in the overlap")
    agentguard.guard.process.clock = clock = lambda: datetime.now(UTC) + timedelta(minutes=56)
    runtime = guard._parts.runtime
    runtime._ports = __import__("dataclasses").replace(runtime._ports, clock=clock)
    agent._caller.instance().ports = runtime._ports
    agent.call(say, "renewed")
    print(runtime._log._store._signer.key_id, runtime.domain.issuer.key_id, flush=True)
"""


def test_a_guard_in_another_process_does_too(scene, programs):
    base = scene.settings.base
    other = programs.talk("-c", OTHER, base, cwd=base)
    assert other.stdout.readline() == "ready\n"
    for use in USES:
        scene.rotate(use)
    said, errors = other.communicate("go\n")
    assert other.returncode == 0, errors
    signs_with = said.split()
    assert signs_with == [scene.key("log").thumbprint, scene.key("issuer").thumbprint]
    assert len(scene.calls()) == 3
    scene.good()


# --- the passphrase -------------------------------------------------------------------------------


def test_a_function_is_asked_again_for_the_passphrase_and_its_answer_is_not_kept(scene):
    asked = []

    def secret():
        asked.append(scene.clock.now)
        return PASSPHRASE

    home = domain.take_up(scene.settings, secret)
    assert len(asked) == 1
    with Guard(
        Embedded(scene.settings, FunctionEngine(lambda _d: Decision.allow()), home)
    ) as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        agent.call(tool, "before")
        assert len(asked) == 1
        assert PASSPHRASE not in reached(guard)
        scene.rotate("log")
        agent.call(tool, "with the new key")
        assert len(asked) == 2
    scene.good()


def reached(value: Any) -> set[bytes]:
    """All bytes that an object leads to, through attributes, containers and closures."""
    seen: dict[int, Any] = {}
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | ModuleType):
            continue
        seen[id(one)] = one
        if isinstance(one, FunctionType):
            waiting += [cell.cell_contents for cell in one.__closure__ or ()]
            continue  # its globals are everything
        waiting += gc.get_referents(one)
    return {one for one in seen.values() if type(one) is bytes}


def test_the_search_finds_a_passphrase_that_was_given_as_bytes(scene):
    """The twin: then it is the caller who keeps it, and the guard does as well."""
    with scene.open() as guard:
        assert PASSPHRASE in reached(guard)
        assert PASSPHRASE.decode() not in repr(guard._parts.runtime.domain)


@pytest.mark.parametrize("error", [ValueError("correct horse"), EOFError(), OSError()])
def test_a_function_that_fails_denies_calls_after_a_rotation(scene, error):
    answers = iter([PASSPHRASE])

    def secret():
        for answer in answers:
            return answer
        raise error

    home = domain.take_up(scene.settings, secret)
    with Guard(
        Embedded(scene.settings, FunctionEngine(lambda _d: Decision.allow()), home)
    ) as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        scene.rotate("log")
        with pytest.raises(Denied) as caught:
            agent.call(tool, "x")
        assert caught.value.code == "key.passphrase"
        assert "correct horse" not in str(caught.value)
