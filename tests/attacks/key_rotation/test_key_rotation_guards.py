"""Rotating the long-lived keys: nothing is lost, nobody gains, and it may be cut short anywhere."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

from agentguard import ConfigError, Decision, Denied, StorageError, VerificationError
from agentguard.audit import statements
from agentguard.audit.calls import read_authorization
from agentguard.audit.entry import parse_entry
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.prove import prove_call
from agentguard.audit.registry import seal_registry, verify_registry
from agentguard.call.invocation import timestamp
from agentguard.domain import administration, config, domain, handover, keystore, rotation
from agentguard.domain.config import Config
from agentguard.domain.domain import StateDomain
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.errors import CallError, KeyMaterialError
from agentguard.guard.guard import Guard
from agentguard.identity.trust import TrustDocument, Use, seconds
from agentguard.policy.function import FunctionEngine
from agentguard.signing.keys import Ed25519Signer
from agentguard.storage import anchor, files, registry_file
from agentguard.storage.flusher import _UNCLOSED
from agentguard.storage.log import ShardLog
from agentguard.storage.reader import StateReader

PASSPHRASE = b"correct horse battery staple"
FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"
USES: tuple[Use, ...] = ("issuer", "log", "admin")
HOUR = timedelta(hours=1)


class Crash(BaseException):
    """The process dies here."""


@dataclasses.dataclass
class Scene:
    settings: Config
    clock: Any

    @property
    def trust(self) -> TrustDocument:
        """The trust document that counts: the one outside the state."""
        own = keystore.load_trust(self.settings.state)
        if self.settings.anchor is None:
            return own
        path = anchor.trust_path(self.settings.anchor, own.log)
        return TrustDocument.loads(path.read_bytes())

    @property
    def own(self) -> TrustDocument:
        return keystore.load_trust(self.settings.state)

    def open(self) -> Guard:
        home = domain.take_up(self.settings, PASSPHRASE)
        return Guard(self.settings, FunctionEngine(lambda _d: Decision.allow()), home)

    def rotate(self, use: Any, **options: Any) -> TrustDocument:
        done = rotation.rotate(self.settings, PASSPHRASE, use, **{"now": self.clock.now, **options})
        assert done.unfinished is None
        return done.trust

    def revoke(self, key: Any, since: datetime) -> rotation.Revocation:
        done = rotation.revoke(
            self.settings,
            PASSPHRASE,
            key.thumbprint,
            compromised_since=since,
            now=self.clock.now,
        )
        assert done.unfinished is None
        return done

    def call(self, what: str = "x") -> None:
        with self.open() as guard:
            guard.new_agent("reader").call(guard.tool(name="say")(lambda what: what), what)

    def examine(self, trust: TrustDocument | None = None) -> Report:
        with closing(StateReader(self.settings.state)) as reader:
            return examine(reader, trust or self.trust, anchor=self.settings.anchor)

    def good(self) -> None:
        """The log verifies under the trust document outside, and both documents agree."""
        report = self.examine()
        assert (report.ok, report.problems) == (True, ())
        assert report.anchored is (self.settings.anchor is not None)
        assert self.own == self.trust

    def calls(self) -> list[str]:
        with closing(StateReader(self.settings.state)) as reader:
            return [
                str(read_authorization(parsed).invocation_id)
                for shard in reader.shards()
                for _index, body in reader.entries(shard)
                if (parsed := parse_entry(body)).kind == "authorization"
            ]

    def prove(self, invocation_id: str) -> bytes:
        with closing(StateReader(self.settings.state)) as reader:
            return prove_call(reader, self.trust, invocation_id)

    def announced(self) -> list[Any]:
        with closing(StateReader(self.settings.state)) as reader:
            return [
                statements.read_statement(parsed)[1].predicate
                for shard in reader.shards()
                for _index, body in reader.entries(shard)
                if (parsed := parse_entry(body)).kind == "key"
            ]

    def key(self, use: Any) -> Any:
        return keystore.load_key(self.settings.state, use, PASSPHRASE).public_key

    def names(self) -> list[str]:
        return [path.name for path in self.settings.state.rglob("*")]

    def left_over(self) -> list[str]:
        return [name for name in self.names() if name.endswith((".next", ".new", ".unannounced"))]


@pytest.fixture(scope="session")
def founded(tmp_path_factory) -> Path:
    """A domain that was founded three hours ago."""
    folder = tmp_path_factory.mktemp("founded")
    domain.found(settings_in(folder), PASSPHRASE, now=datetime.now(UTC) - 3 * HOUR)
    return folder


def settings_in(folder: Path, *, anchored: bool = True) -> Config:
    tables = {
        "trust_domain": "acme.example",
        "state": "state",
        "anchor": "anchor" if anchored else "",
        "policy": {"engine": "function", "path": "unused:unused"},
        "agents": {"reader": {"authority": "own"}},
    }
    return config.parse(tables, source="agentguard.toml", base=folder)


@pytest.fixture(params=[True], ids=["anchored"])
def scene(request, tmp_path, founded, clock) -> Scene:
    shutil.copytree(founded, tmp_path, dirs_exist_ok=True)
    return Scene(settings_in(tmp_path, anchored=request.param), clock)


either = pytest.mark.parametrize(
    "scene", [True, False], ids=["anchored", "no anchor"], indirect=True
)


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
def test_a_running_guard_goes_on_and_takes_the_new_key_with_its_next_credential(scene, use):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        agent.call(tool, "before")
        old = scene.key(use)
        scene.rotate(use)
        agent.call(tool, "in the overlap")
        assert guard.trust != scene.trust
        assert signing(guard, use) == old
        scene.clock.advance(minutes=56)  # a credential lives for an hour
        agent.call(tool, "renewed")
        assert guard.trust == scene.trust
        assert signing(guard, use) == scene.key(use)
        scene.clock.advance(hours=30)  # past the overlap
        agent.call(tool, "long after")
    scene.good()
    assert len(scene.calls()) == 4


def signing(guard: Guard, use: str) -> Any:
    """The public key with which a guard signs for this use now."""
    assert guard._runtime._log is not None
    return {"issuer": guard._runtime.domain.issuer, "log": guard._runtime._log._signer}[
        use
    ].public_key


@pytest.mark.parametrize("use", ["issuer", "log"])
def test_without_that_the_old_key_would_run_out(scene, monkeypatch, use):
    """The twin: a guard that does not notice is found out, as soon as the overlap is over."""
    monkeypatch.setattr(StateDomain, "renewed", lambda _home: None)
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        scene.rotate(use)
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
    with Guard(scene.settings, FunctionEngine(lambda _d: Decision.allow()), home) as guard:
        agent = guard.new_agent("reader")

        def slow(what: str) -> str:
            scene.rotate("log", overlap=2 * HOUR)
            scene.clock.advance(hours=3)
            answers[0] = b"not yet"
            return what

        agent.call(guard.tool(name="slow")(slow), "x")
        with pytest.raises(StorageError, match="still counts") as caught:
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
            patched.setattr(ShardLog, "flush", lambda _log: None)
            agent.call(tool, "its outcome waits")
            scene.clock.advance(hours=1)
            scene.rotate("log")
            guard._runtime.renewed_domain()  # as an agent would that renews its credential
        guard.reader().close()
        assert signing(guard, "log") != scene.key("log")
        agent.call(tool, "y")
        assert signing(guard, "log") == scene.key("log")
    scene.good()


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
with Guard(settings, FunctionEngine(lambda _d: Decision.allow()), home) as guard:
    agent = guard.new_agent("reader")
    say = guard.tool(name="say")(lambda what: what)
    agent.call(say, "before")
    print("ready", flush=True)
    sys.stdin.readline()
    agent.call(say, "in the overlap")
    agentguard.guard.process.clock = clock = lambda: datetime.now(UTC) + timedelta(minutes=56)
    guard._runtime._line = __import__("dataclasses").replace(guard._runtime._line, clock=clock)
    agent._caller.instance().line = guard._runtime._line
    agent.call(say, "renewed")
    print(guard._runtime._log._signer.key_id, guard._runtime.domain.issuer.key_id, flush=True)
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


# --- compromise -----------------------------------------------------------------------------------


def test_what_a_compromised_log_key_signed_since_does_not_verify(scene):
    scene.call("before")
    first = scene.calls()[0]
    scene.clock.advance(hours=2)
    since = scene.clock.now
    scene.clock.advance(minutes=1)
    scene.call("since")
    assert scene.examine().ok
    scene.clock.advance(minutes=1)
    moment = scene.clock.now.isoformat()[:19]
    scene.rotate("log", compromised_since=since)
    scene.call("after")
    report = scene.examine()
    assert not report.ok
    assert all("compromised by then" in problem.what for problem in report.problems)
    with closing(StateReader(scene.settings.state)) as reader:
        times = {
            problem.index: parse_entry(reader.entry(0, problem.index).body).at  # type: ignore[union-attr]
            for problem in report.problems
        }
    assert min(times.values()) >= since.isoformat()[:19]
    assert max(times.values()) < moment  # and nothing that the new key signed
    # what the key itself vouched for before the compromise, the new key vouches for as well
    verify_evidence(scene.prove(first), scene.trust)


def test_what_a_compromised_issuer_signed_since_does_not_verify(scene):
    scene.call("before")
    scene.clock.advance(hours=2)
    since = scene.clock.now
    scene.clock.advance(minutes=1)
    scene.call("since")
    scene.clock.advance(minutes=1)
    scene.rotate("issuer", compromised_since=since)
    scene.call("after")
    first, second, third = scene.calls()
    report = scene.examine()
    assert not report.ok
    assert any("compromised by then" in problem.what for problem in report.problems)
    for invocation_id in (first, third):
        verify_evidence(scene.prove(invocation_id), scene.trust)
    with pytest.raises(VerificationError):
        scene.prove(second)


def test_a_guard_that_runs_on_with_a_compromised_key_is_found_out(scene):
    """Why every process must be restarted then: docs/keys.md."""
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        scene.clock.advance(minutes=1)
        scene.rotate("log", compromised_since=scene.clock.now)
        scene.clock.advance(minutes=1)
        agent.call(tool, "not restarted")
    assert not scene.examine().ok


def test_what_a_compromised_admin_signed_before_still_counts(scene):
    scene.call("x")
    (call,) = scene.calls()
    administration.erase(scene.settings, PASSPHRASE, call, note="n", now=scene.clock.now)
    scene.clock.advance(hours=1)
    scene.rotate("admin", compromised_since=scene.clock.now)
    scene.good()
    scene.clock.advance(hours=1)
    administration.erase(scene.settings, PASSPHRASE, call, note="n", now=scene.clock.now)
    scene.good()
    scene.rotate("admin", compromised_since=scene.clock.now - 90 * timedelta(minutes=1))
    assert not scene.examine().ok  # now the second one's key is said to have been stolen by then


def test_a_stolen_admin_key_makes_no_call_unprovable_and_none_settled(scene):
    """Whatever it has said since of a call counts for nothing, and the new key says it again."""
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        agent.call(guard.tool(name="say")(lambda what: what), "ended")
        child = os.fork()
        if child == 0:
            agent.call(guard.tool(name="die")(os._exit), 0)
        os.waitpid(child, 0)
    ended, doubted = scene.calls()
    since = scene.clock.now
    scene.clock.advance(minutes=1)
    said: dict[str, Any] = {"note": "by the thief", "now": scene.clock.now}
    administration.erase(scene.settings, PASSPHRASE, ended, **said)
    administration.resolve(scene.settings, PASSPHRASE, doubted, ran=False, **said)
    assert scene.examine().in_doubt == ()
    with pytest.raises(CallError, match="its resolution is on record"):
        administration.resolve(scene.settings, PASSPHRASE, doubted, ran=True, **said)
    scene.clock.advance(minutes=1)
    scene.rotate("admin", compromised_since=since)
    for call in (ended, doubted):
        proved = verify_evidence(scene.prove(call), scene.trust)
        assert proved.administered == ()
    assert scene.examine().in_doubt == (doubted,)
    administration.resolve(
        scene.settings, PASSPHRASE, doubted, ran=True, note="by the owner", now=scene.clock.now
    )
    assert scene.examine().in_doubt == ()
    ((resolution, _place),) = verify_evidence(scene.prove(doubted), scene.trust).administered
    assert (resolution.ran, resolution.note) == (True, "by the owner")


def test_an_overlap_and_a_compromise_exclude_each_other(scene):
    before = scene.trust
    with pytest.raises(ConfigError, match="no overlap"):
        scene.rotate("log", overlap=3 * HOUR, compromised_since=scene.clock.now)
    assert scene.trust == before


# --- a key that was rotated already ---------------------------------------------------------------


@either
@pytest.mark.parametrize("use", USES)
def test_a_rotated_key_is_revoked(scene, use):
    scene.call("before")
    old = scene.key(use)
    scene.clock.advance(hours=1)
    since = scene.clock.now
    scene.rotate(use)
    scene.call("after")
    scene.clock.advance(minutes=5)
    done = scene.revoke(old, since)
    assert done.trust == scene.trust == scene.own
    assert (done.key.use, done.key.compromised_since) == (use, seconds(since))
    assert done.trust.current(use) == [scene.key(use)]
    scene.call("at last")
    scene.good()
    assert scene.left_over() == []
    (said,) = [key for key in scene.announced() if key["compromised_since"] is not None]
    assert said == done.key.as_json()
    for invocation_id in scene.calls():
        scene.prove(invocation_id)
    assert len(scene.calls()) == 3


@either
def test_what_a_revoked_key_signed_in_its_overlap_does_not_verify(scene, monkeypatch):
    """Of a process that has not noticed the rotation, as a thief's would not.

    Only what the anchor has seen is built on, and then the new key vouches for it as well.
    """
    monkeypatch.setattr(StateDomain, "renewed", lambda _home: None)
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        agent.call(tool, "before")
        old = scene.key("log")
        scene.clock.advance(hours=1)
        since = scene.clock.now
        scene.rotate("log")
        scene.clock.advance(minutes=5)
        agent.call(tool, "in the overlap")
    monkeypatch.undo()
    assert scene.examine().ok
    scene.revoke(old, since)
    report = scene.examine()
    assert not report.ok
    assert all("compromised by then" in problem.what for problem in report.problems)
    first, second = scene.calls()
    if scene.settings.anchor is not None:
        verify_evidence(scene.prove(first), scene.trust)
        verify_evidence(scene.prove(second), scene.trust)
    else:
        with pytest.raises(VerificationError):
            scene.prove(second)


def test_a_revoked_issuers_registry_is_signed_anew(scene):
    """Whoever had the key wrote one in its overlap; nothing could be leased any more."""
    old = keystore.load_key(scene.settings.state, "issuer", PASSPHRASE)
    scene.clock.advance(minutes=1)
    since = scene.clock.now
    scene.rotate("issuer")
    scene.clock.advance(minutes=1)
    sealed = seal_registry(old, scene.trust, {0}, at=timestamp(scene.clock.now))
    registry_file.write(scene.settings.state, sealed)
    assert verify_registry(sealed, scene.trust).shards == {0}
    scene.revoke(old.public_key, since)
    with pytest.raises(VerificationError, match="compromised by then"):
        verify_registry(sealed, scene.trust)
    data = registry_file.read(scene.settings.state) or b""
    assert verify_registry(data, scene.trust).shards == {0}
    scene.call()


def test_the_key_in_force_is_not_revoked(scene):
    before = scene.trust
    with pytest.raises(VerificationError, match="agentguard keys rotate log") as caught:
        scene.revoke(scene.key("log"), scene.clock.now)
    assert caught.value.code == "key.current"
    assert scene.trust == scene.own == before


def test_what_can_not_be_revoked_changes_nothing(scene, stranger):
    old = scene.key("log")
    scene.clock.advance(minutes=1)
    scene.rotate("log")
    scene.revoke(old, scene.clock.now - HOUR)
    before = scene.trust
    for key, since, code in (
        (stranger.public_key, scene.clock.now, "key.unknown"),
        (old, scene.clock.now, "key.compromised"),
        (old, scene.clock.now + HOUR, "config.invalid"),
    ):
        with pytest.raises((VerificationError, ConfigError)) as caught:
            scene.revoke(key, since)
        assert caught.value.code == code
    assert scene.trust == scene.own == before
    scene.revoke(old, scene.clock.now - 2 * HOUR)  # it was earlier than it was thought to be
    assert scene.trust != before
    scene.call()
    assert scene.own == scene.trust


@either
def test_a_revocation_cut_short_anywhere_is_finished_or_has_never_been(
    scene, monkeypatch, tmp_path_factory
):
    old = scene.key("issuer")
    scene.clock.advance(hours=1)
    since = scene.clock.now
    scene.rotate("issuer")
    scene.clock.advance(hours=1)
    untouched = tmp_path_factory.mktemp("untouched") / "copy"
    shutil.copytree(scene.settings.base, untouched)
    place, crashed, revoked = 0, True, set()
    met: list[str] = []
    while crashed:
        place += 1 if FULL else 4
        shutil.rmtree(scene.settings.base)
        shutil.copytree(untouched, scene.settings.base)
        with monkeypatch.context() as patched:
            met = crash_at(patched, place)
            try:
                scene.revoke(old, since)
                crashed = False
            except Crash:
                free_locks()
        scene.call("afterwards")
        scene.good()
        done = any(key.compromised_since is not None for key in scene.own.keys)
        revoked.add(done)
        told = [key for key in scene.announced() if key["compromised_since"] is not None]
        assert len(told) == (1 if done else 0), met
        assert scene.left_over() == [], met
        if not done:
            scene.revoke(old, since)
        else:
            scene.rotate("issuer")
        scene.call("at last")
        scene.good()
    assert revoked == {True, False}
    assert len(met) > 10


@either
def test_a_next_trust_document_that_nobody_has_decided_on_is_forgotten(scene):
    """Whoever writes into the state puts one there, with a key of his own or no old end."""
    before = scene.own
    mallory = dataclasses.replace(before.keys[0], key=alien()[0].public_key)
    for forged in (
        dataclasses.replace(before, keys=(*before.keys, mallory)).dumps(),
        dataclasses.replace(before, keys=(mallory, *before.keys[1:])).dumps(),
        b"garbage",
        b"",
    ):
        put(scene.settings.state / "trust.next", forged)
        scene.call()
        assert scene.own == scene.trust == before
        assert scene.left_over() == []
    scene.good()


# --- it counts, and the rest does not go well -----------------------------------------------------


@either
@pytest.mark.parametrize("what", ["rotate", "revoke"])
@pytest.mark.parametrize(
    ("owner", "step"),
    [(ShardLog, "append"), (handover, "announce"), (handover, "finish")],
    ids=["append", "announce", "finish"],
)
def test_what_counts_is_no_failure_because_the_rest_is(scene, monkeypatch, what, owner, step):
    """The next one to open the state does what is left."""
    old = scene.key("log")
    scene.clock.advance(minutes=1)
    since = scene.clock.now
    if what == "revoke":
        scene.rotate("log")
        scene.clock.advance(minutes=1)

    def fails(*_args, **_options):
        raise StorageError("the disk is full", code="storage.full")

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, fails)
        done: rotation.Rotation | rotation.Revocation = (
            rotation.rotate(scene.settings, PASSPHRASE, "log", now=since)
            if what == "rotate"
            else rotation.revoke(
                scene.settings,
                PASSPHRASE,
                old.thumbprint,
                compromised_since=since,
                now=scene.clock.now,
            )
        )
    assert done.unfinished is not None
    assert done.unfinished.code == "storage.full"
    assert scene.trust == done.trust
    scene.call()
    scene.good()
    assert scene.left_over() == []
    assert {key.key.thumbprint for key in scene.trust.keys} == {
        key["kid"] for key in scene.announced()
    }
    assert all(key.as_json() in scene.announced() for key in scene.trust.keys)


# --- the passphrase -------------------------------------------------------------------------------


def test_a_function_is_asked_again_for_the_passphrase_and_its_answer_is_not_kept(scene):
    asked = []

    def secret():
        asked.append(scene.clock.now)
        return PASSPHRASE

    home = domain.take_up(scene.settings, secret)
    assert len(asked) == 1
    with Guard(scene.settings, FunctionEngine(lambda _d: Decision.allow()), home) as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        agent.call(tool, "before")
        assert len(asked) == 1
        assert PASSPHRASE not in reached(guard)
        scene.rotate("log")
        scene.clock.advance(minutes=56)
        agent.call(tool, "renewed")
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
        assert PASSPHRASE.decode() not in repr(guard._runtime.domain)


@pytest.mark.parametrize("error", [ValueError("correct horse"), EOFError(), OSError()])
def test_a_function_that_fails_denies_calls_after_a_rotation(scene, error):
    answers = iter([PASSPHRASE])

    def secret():
        for answer in answers:
            return answer
        raise error

    home = domain.take_up(scene.settings, secret)
    with Guard(scene.settings, FunctionEngine(lambda _d: Decision.allow()), home) as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        scene.rotate("log")
        agent.call(tool, "in the overlap")
        scene.clock.advance(minutes=56)
        with pytest.raises(Denied) as caught:
            agent.call(tool, "x")
        assert caught.value.code == "key.passphrase"
        assert "correct horse" not in str(caught.value)


# --- cut short ------------------------------------------------------------------------------------

STEPS: tuple[tuple[Any, str], ...] = (
    (files, "_write"),
    (files, "_sync"),
    (ShardLog, "append"),
    (ShardLog, "close"),
)
"""All that makes something durable: between two of them, a crash leaves what it left before."""


def crash_at(patched: pytest.MonkeyPatch, wanted: int) -> list[str]:
    """Die at the ``wanted``-th border of a step, of all of them; return those that were crossed."""
    crossed: list[str] = []

    def border(name: str) -> None:
        crossed.append(name)
        if len(crossed) == wanted:
            raise Crash

    def bordered(real: Any, name: str) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            border(f"before {name}")
            result = real(*args, **kwargs)
            border(f"after {name}")
            return result

        return step

    for owner, name in STEPS:
        patched.setattr(owner, name, bordered(getattr(owner, name), name))
    return crossed


CASES = [
    pytest.param(use, compromised, anchored, id=f"{use}, {how}, {where}")
    for use in USES
    for compromised, how in ((False, "overlap"), (True, "compromised"))
    for anchored, where in ((True, "anchored"), (False, "no anchor"))
    # without the others a default run meets each step all the same
    if FULL or (compromised is (use != "log") and (anchored or use == "issuer"))
]


@pytest.mark.parametrize(("use", "compromised", "scene"), CASES, indirect=["scene"])
def test_cut_short_anywhere_it_is_finished_or_has_never_been(
    scene, monkeypatch, tmp_path_factory, use, compromised
):
    """The state is usable afterwards, and a rotation can be asked for again."""
    scene.clock.advance(hours=1)
    untouched = tmp_path_factory.mktemp("untouched") / "copy"
    shutil.copytree(scene.settings.base, untouched)
    # what the key has signed in this second is of an unknown age
    since = {"compromised_since": scene.clock.now - timedelta(seconds=1)} if compromised else {}
    old, place, crashed, rotated, met = scene.key(use), 0, True, set(), [""]
    while crashed:
        place += 1 if FULL else 4
        shutil.rmtree(scene.settings.base)
        shutil.copytree(untouched, scene.settings.base)
        with monkeypatch.context() as patched:
            met = crash_at(patched, place)
            try:
                scene.rotate(use, **since)
                crashed = False
            except Crash:
                free_locks()
        scene.call("afterwards")  # it can be opened, and finishes what was begun
        scene.good()
        done = scene.key(use) != old
        rotated.add(done)
        assert len(scene.own.keys) == (4 if done else 3), met
        assert len(scene.announced()) == (5 if done else 3), met
        assert scene.left_over() == [], met
        scene.prove(scene.calls()[0])
        if FULL or place % 8 == 0:
            scene.rotate(use)  # and again
            scene.call("at last")
            scene.good()
            assert scene.left_over() == [], met
            scene.prove(scene.calls()[-1])
    assert rotated == {True, False}
    assert len(met) > 20


def free_locks() -> None:
    """Let go of what a process that died would not hold: a crash that is only raised leaves it."""
    gc.collect()
    for log in list(_UNCLOSED):
        log.close()


@either
def test_a_running_guard_finishes_what_was_cut_short(scene, monkeypatch):
    """Nobody opens the state anew: the guard finds the key when it renews a credential."""
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        with monkeypatch.context() as patched:
            patched.setattr(keystore, "adopt_next_key", lambda *_args: (_ for _ in ()).throw(Crash))
            with pytest.raises(Crash):
                scene.rotate("log")
        assert scene.left_over() == ["log.next"]
        scene.clock.advance(minutes=56)
        agent.call(tool, "renewed")
        assert signing(guard, "log") == scene.key("log")
        scene.clock.advance(hours=48)
        agent.call(tool, "long after")
    scene.good()


def test_two_rotations_at_once_come_one_after_the_other(scene, programs):
    """In processes of their own, with the locks between them."""
    script = (
        "import sys; from pathlib import Path; from datetime import UTC, datetime\n"
        "from agentguard.domain import rotation\n"
        "from agentguard.domain import config\n"
        "from agentguard.signing.keys import Ed25519Signer\n"
        "Ed25519Signer.to_openssh.__kwdefaults__['rounds'] = 1\n"
        "folder = Path(sys.argv[1])\n"
        "tables = {'trust_domain': 'acme.example', 'state': 'state', 'anchor': 'anchor'}\n"
        "settings = config.parse(tables, source='agentguard.toml', base=folder)\n"
        "rotation.rotate(settings, b'correct horse battery staple', sys.argv[2],"
        " now=datetime.now(UTC))\n"
    )
    uses = ("issuer", "issuer", "log", "admin")
    base = scene.settings.base
    running = [programs.talk("-c", script, base, use, cwd=base) for use in uses]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, errors
    assert len(scene.trust.keys) == 3 + 4
    assert {use: len(scene.trust.current(use)) for use in USES} == dict.fromkeys(USES, 1)
    assert scene.left_over() == []
    scene.clock.advance(seconds=30)
    scene.call("after")
    scene.good()
    kids = [key["kid"] for key in scene.announced()]
    assert {key.key.thumbprint for key in scene.trust.keys} == set(kids)
    scene.prove(scene.calls()[0])


@pytest.mark.parametrize("use", ["issuer", "log"])
def test_who_is_late_or_behind_signs_nothing_before_the_new_key_counts(scene, use):
    """One has waited for another's rotation, with the time from before; or its clock is slow."""
    before = scene.clock.now
    scene.clock.advance(seconds=5)
    scene.rotate(use)
    scene.clock.advance(minutes=1)
    with scene.open():  # so that another shard has to be added, and listed
        domain.take_up(scene.settings, PASSPHRASE).lease(before).close()
        scene.rotate("issuer", now=before)
        scene.rotate("log", now=before)
    old = scene.trust.keys[0].key
    scene.revoke(old, before)
    scene.call()
    assert 1 in domain.take_up(scene.settings, PASSPHRASE).registered()


def test_guards_that_open_during_a_rotation_take_one_whole_set_of_keys(scene):
    """Neither a new trust document with an old key, which would stay for ever, nor the reverse."""
    failed: list[BaseException] = []
    stop = threading.Event()

    def take_up() -> None:
        while not stop.is_set():
            try:
                home = domain.take_up(scene.settings, PASSPHRASE)
                assert home.trust.current("log") == [home.log_key.public_key]
                assert home.trust.current("issuer") == [home.issuer.public_key]
            except BaseException as error:  # noqa: BLE001  shown by the assertion below
                failed.append(error)

    threads = [threading.Thread(target=take_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        for use in ("issuer", "log"):
            scene.rotate(use)
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    scene.good()


# --- attackers ------------------------------------------------------------------------------------


def alien(passphrase: bytes = PASSPHRASE) -> tuple[Ed25519Signer, bytes]:
    signer = Ed25519Signer.from_seed(os.urandom(32))
    return signer, signer.to_openssh(passphrase)


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o600)


@either
@pytest.mark.parametrize("use", USES)
def test_a_next_key_that_nobody_has_decided_on_is_forgotten(scene, use):
    """Even one under the right passphrase."""
    before, old = scene.own, scene.key(use)
    put(scene.settings.state / "keys" / f"{use}.next", alien()[1])
    scene.call()
    assert (scene.own, scene.key(use)) == (before, old)
    assert scene.left_over() == []
    scene.good()


@pytest.mark.parametrize("source", ["another use", "the one in place"])
@pytest.mark.parametrize("use", USES)
def test_a_known_key_as_the_next_one_changes_nothing(scene, use, source):
    keys = scene.settings.state / "keys"
    old = scene.key(use)
    shutil.copy(
        keys / ("log" if use != "log" else "admin") if source == "another use" else keys / use,
        keys / f"{use}.next",
    )
    scene.call()
    assert scene.key(use) == old
    assert scene.left_over() == []
    assert len(scene.announced()) == 3
    scene.good()


@pytest.mark.parametrize("compromised", [True, False])
@pytest.mark.parametrize("use", USES)
def test_an_old_key_does_not_come_back(scene, use, compromised):
    """The trust document knows it; who has kept the file would undo the rotation otherwise."""
    keys = scene.settings.state / "keys"
    kept = (keys / use).read_bytes()
    scene.clock.advance(minutes=1)
    scene.rotate(use, compromised_since=scene.clock.now if compromised else None)
    new = scene.key(use)
    put(keys / f"{use}.next", kept)
    scene.call()
    assert scene.key(use) == new
    scene.good()
    put(keys / use, kept)  # nor in the new one's place
    with pytest.raises(KeyMaterialError) as caught:
        scene.rotate(use) if use == "admin" else scene.open()
    assert caught.value.code == "key.mismatch"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "key.unreadable"),
        (b"garbage", "key.unreadable"),
        (alien(b"another passphrase")[1], "key.passphrase"),
    ],
    ids=["empty", "garbage", "another passphrase"],
)
def test_a_next_key_that_can_not_be_read_stops_everything(scene, data, code):
    """It may be the one that counts: it is neither believed nor thrown away."""
    path = scene.settings.state / "keys" / "log.next"
    put(path, data)
    with pytest.raises(KeyMaterialError) as caught:
        scene.open()
    assert caught.value.code == code
    assert path.read_bytes() == data
    path.unlink()
    scene.call()
    scene.good()


def test_a_next_key_that_others_could_have_written_is_refused(scene):
    path = scene.settings.state / "keys" / "log.next"
    path.write_bytes(alien()[1])
    path.chmod(0o666)
    with pytest.raises(KeyMaterialError) as caught:
        scene.open()
    assert caught.value.code == "key.exposed"


def edits(trust: TrustDocument) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """What an attacker would write into the state's trust document."""
    mallory = dataclasses.replace(trust.keys[0], key=alien()[0].public_key)
    return {
        "a key of his own": lambda d: d["keys"].append(mallory.as_json()),
        "his own admin": lambda d: d["keys"].append({**mallory.as_json(), "use": "admin"}),
        "a compromise undone": lambda d: d["keys"][1].update(compromised_since=None),
        "an end put off": lambda d: d["keys"][1].update(not_after=2**40),
        "an old key removed": lambda d: d["keys"].pop(1),
        "a beginning put forward": lambda d: d["keys"][0].update(not_before=0),
        "another order": lambda d: d["keys"].reverse(),
    }


EDITS = [
    "a beginning put forward",
    "a compromise undone",
    "a key of his own",
    "an end put off",
    "an old key removed",
    "another order",
    "his own admin",
]


@pytest.mark.parametrize("name", EDITS)
def test_a_rotation_does_not_carry_an_edited_trust_document_outside(scene, name):
    """Or what was written into the state would be believed by everybody who verifies, from then."""
    scene.clock.advance(minutes=1)
    scene.rotate("log", compromised_since=scene.clock.now)
    trust, path = scene.trust, scene.settings.state / "trust.json"
    document = json.loads(path.read_bytes())
    edits(trust)[name](document)
    put(path, json.dumps(document, separators=(",", ":"), sort_keys=True).encode())
    assert scene.own != trust
    files = {key: (scene.settings.state / "keys" / key).read_bytes() for key in USES}
    for use in USES:
        with pytest.raises((VerificationError, KeyMaterialError)) as caught:
            scene.rotate(use)
        assert caught.value.code in ("trust.changed", "key.mismatch")
    assert scene.trust == trust
    assert files == {key: (scene.settings.state / "keys" / key).read_bytes() for key in USES}
    put(path, trust.dumps())
    scene.rotate("admin")
    scene.good()


def test_an_edited_trust_document_makes_nobody_elses_key_count(scene):
    """Nothing is written while the document differs from the one outside."""
    signer, data = alien()
    path = scene.settings.state / "trust.json"
    document = json.loads(path.read_bytes())
    mallory = dataclasses.replace(scene.trust.keys[0], use="log", key=signer.public_key)
    document["keys"].append(mallory.as_json())
    put(path, json.dumps(document, separators=(",", ":"), sort_keys=True).encode())
    put(scene.settings.state / "keys" / "log.next", data)
    if scene.settings.anchor is not None:
        with pytest.raises(VerificationError) as caught:
            scene.call()
        assert caught.value.code == "trust.changed"
        put(path, scene.trust.dumps())
    scene.call()
    assert scene.key("log") != signer.public_key
    report = scene.examine()  # under the document outside
    assert (report.ok, report.anchored) == (True, scene.settings.anchor is not None)


def test_an_edited_trust_document_without_its_own_keys_stops_everything(scene):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        path = scene.settings.state / "trust.json"
        document = json.loads(path.read_bytes())
        mallory = dataclasses.replace(scene.trust.keys[0], key=alien()[0].public_key)
        document["keys"][0] = mallory.as_json()
        put(path, json.dumps(document, separators=(",", ":"), sort_keys=True).encode())
        anchored = scene.settings.anchor is not None
        if not anchored:
            agent.call(tool, "until it renews")
        scene.clock.advance(minutes=56)
        with pytest.raises(Denied) as caught:
            agent.call(tool, "x")
        assert caught.value.code == ("trust.changed" if anchored else "key.mismatch")
        put(path, scene.trust.dumps())
        agent.call(tool, "restored")
    scene.good()


def test_an_anchor_that_can_not_be_written_stops_a_rotation_before_it_counts(scene, monkeypatch):
    before = {use: scene.key(use) for use in USES}
    outside = anchor.trust_path(scene.settings.anchor, scene.own.log)
    real = files.replace

    def refuses(path: Path, data: bytes) -> None:
        if path == outside:
            raise StorageError("no", code="storage.readonly")
        real(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(files, "replace", refuses)
        with pytest.raises(StorageError):
            scene.rotate("issuer")
    scene.call()
    assert {use: scene.key(use) for use in USES} == before
    scene.good()


def test_a_rolled_back_state_is_not_rotated(scene):
    """Its registry would be signed anew, without what was removed."""
    with scene.open(), scene.open() as second:
        second.new_agent("reader")
    shards = scene.settings.state / "shards"
    assert len(list(shards.glob("*.sqlite"))) == 2
    (shards / "1.sqlite").unlink()
    before = scene.trust
    with pytest.raises(StorageError) as caught:
        scene.rotate("issuer")
    assert caught.value.code == "storage.rolled_back"
    assert scene.trust == before


def test_the_registry_is_in_the_new_issuers_word(scene):
    with scene.open(), scene.open():
        pass
    scene.rotate("issuer")
    data = registry_file.read(scene.settings.state)
    assert data is not None
    verified = verify_registry(data, scene.trust)
    assert verified.shards == {0, 1}
    only_new = dataclasses.replace(
        scene.trust, keys=tuple(key for key in scene.trust.keys if key.not_after is None)
    )
    assert verify_registry(data, only_new) == verified


def test_a_wrong_passphrase_changes_nothing(scene):
    before = {
        path: path.read_bytes()
        for path in scene.settings.state.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }
    with pytest.raises(KeyMaterialError):
        rotation.rotate(scene.settings, b"wrong", "log", now=scene.clock.now)
    assert {path: path.read_bytes() for path in before} == before
