"""A state with a past: a scripted history that leaves every kind of entry and of file behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from typing import Any
from unittest.mock import patch

from embedded_parts import runtime_of
from given_up import give_up
from state_scene import BEFORE, BRIEFLY, PASSPHRASE, SERVER, Call, Crash, LeftError, Scene

from agentguard import ApprovalPending, Denied, Guard, ReceiverLog
from agentguard.adapters import run_store
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.kinds.identities import LogOutEntry
from agentguard.audit.kinds.receiver import KnownRequest, ReceivedRequest
from agentguard.call.invocation import timestamp
from agentguard.call.releases import RequestRecord
from agentguard.domain import administration, adoption, domain, handover, rotation
from agentguard.domain.keystore import LONG_LIVED, load_trust
from agentguard.store.journal import LoggedJournal
from agentguard.store.reader import StoredLog

MERGED, KEPT, SPARE, LATE, WAITING, BAD, GONE, OVER = (
    Call("clerk", "merge", what, kept=what == "kept")
    for what in ("used", "kept", "spare", "late", "waiting", "bad", "gone", "over")
)
REFUND = Call("clerk", "refund", "two")
PAID, LEFT, DIED, RESOLVED, UNDONE, ERASED = (
    Call("clerk", "pay", what, kept=True)
    for what in ("paid", "left", "died", "resolved", "undone", "erased")
)
ONE, TWO = Call("worker", "read", "one", "two calls"), Call("worker", "read", "two", "two calls")
SOME = Call("worker", "read", "some", "three calls")
DAVE, SOON = Call("worker", "read", "dave", "dave"), Call("worker", "read", "soon", "soon")
ROBOT = Call("robot", "read", "robot")
SENT = Call("worker", "send", "letter", "sent")
READ = Call("clerk", "read", "clerk")
UNLOCKED = Call("clerk", "unlock", "door")
PLAIN = Call("worker", "read", "plain", "plain")
LEAVER = Call("worker", "read", "leaver", "leaver")
ENDED = Call("worker", "read", "ended", "ended")
MALLORY = Call("worker", "read", "mallory", "mallory")
FORBIDDEN = Call("clerk", "forbidden", "x")
UNLENT = Call("worker", "read", "more", "nothing")
ALONE = Call("worker", "read", "alone")
OTHER_AGENT = SPARE._replace(agent="twin")
OTHER_PRINCIPAL = SPARE._replace(agent="worker", lent="three calls")
OTHER_ARGUMENTS = SPARE._replace(what="other")


def play(scene: Scene) -> None:
    """Have the scene live through all that a state can hold; ``end`` and ``frozen`` come last."""
    scene.found()
    _adopt(scene)
    _expire(scene)
    with scene.open() as first, scene.open() as second:
        _lend(first, scene)
        _ask(first, scene)
        scene.keep("ready")
        scene.clock.advance(seconds=5)
        _use(first, second, scene)
        scene.keep("used")
        stolen = _administer(scene)
    _rotate(scene, stolen)
    scene.clock.advance(hours=2)
    late = scene.open()  # still open when the state is copied: its newest entries are in the -wal
    for call in (ROBOT, ONE):
        with suppress(Denied):
            scene.make(late, call)
    _keep_run(late, scene, "third")
    scene.keep("end")
    freeze(scene, frozen=True)
    scene.keep("frozen")
    late.close()


def _adopt(scene: Scene) -> None:
    """Put a backup back, behind its anchor, and let the log go on in it."""
    with scene.open() as lost:
        scene.make(lost, READ)
    scene.keep("lost")
    scene.restore("founded", "state")
    different = adoption.compare(scene.settings)
    adoption.adopt(scene.settings, PASSPHRASE, different, note="n", now=scene.clock())
    scene.clock.advance(seconds=1)  # limits that were set until then are void
    freeze(scene, frozen=False)  # by the adoption


def _expire(scene: Scene) -> None:
    """Have a delegation end for good, which the next one takes out of the map."""
    with scene.open() as guard:
        for since, lasting in ((0, BRIEFLY), (BEFORE, 24 * 3600)):
            scene.clock.advance(seconds=since)
            lent = guard.delegate("user:alice", scope=["act"], expires_in=lasting, max_calls=2)
            scene.lent["ended"] = lent.dumps()
            scene.make(guard, ENDED)


def _lend(guard: Guard, scene: Scene) -> None:
    for name, subject, terms in (
        ("two calls", "user:alice", {"max_calls": 2}),
        ("three calls", "user:erin", {"max_calls": 3}),
        ("dave", "user:dave", {"via": "service:ci"}),
        ("mallory", "user:mallory", {}),
        ("soon", "user:alice", {"expires_in": BRIEFLY}),
        ("nothing", "user:alice", {"scope": []}),
        ("plain", "user:erin", {}),
        ("sent", "user:erin", {"audience": [SERVER]}),
    ):
        lasting: Any = {"scope": ["act"], "expires_in": 24 * 3600, **terms}
        delegation = guard.delegate(subject, **lasting)
        scene.lent[name] = delegation.dumps()
        scene.hops[name] = delegation.id
    token = scene.provider.token()
    leaver = guard.delegate(subject_token=token, scope=["act"], expires_in=24 * 3600)
    scene.lent["leaver"] = leaver.dumps()


def _ask(guard: Guard, scene: Scene) -> None:
    """Have requests lie there, each of which is answered otherwise, or by nobody."""
    for call in (MERGED, KEPT, SPARE, LATE, WAITING, BAD, GONE, OVER, REFUND):
        with suppress(ApprovalPending):
            scene.make(guard, call)
    for request in guard.approvals.pending():
        match request.call_digest and request.arguments.decode().split('"')[-2]:
            case "used" | "kept" | "spare" | "late" | "two":
                guard.approvals.approve(request, scene.people["bob"])
            case "bad" | "gone":
                guard.approvals.reject(request, scene.people["bob"], note="no")
            case "over":
                guard.approvals.withdraw(request)
            case "waiting":
                assert runtime_of(guard).approval_store().announce(request)


def _use(first: Guard, second: Guard, scene: Scene) -> None:
    """Use up what can be used up, and leave calls behind of which not all is known."""
    clerk = scene.agent(first, "clerk")
    scene.make(first, ONE)
    scene.make(second, TWO)
    for guard, call in ((second, SOME), (second, DAVE), (first, SOON), (first, ROBOT)):
        scene.make(guard, call)
    for call in (MERGED, KEPT, PAID, ERASED, READ, UNLOCKED):
        scene.make(first, call, agent=clerk)
    assert clerk.authorize(first.tool(name="look")(_look), "x").allowed
    scene.make(first, SENT)
    _receive(first)
    for call in (GONE, ONE):
        with suppress(Denied):
            scene.make(first, call)
    with suppress(LeftError):
        scene.make(first, LEFT, ending=LeftError())
    give_up(first, scene.agent(first, "worker").under(first.resume(scene.lent["plain"])))
    for call in (DIED, RESOLVED, UNDONE):
        _die(call, scene)
    _keep_run(first, scene, "first")
    _keep_run(first, scene, "second")


def _look(what: str) -> str:
    """Return what is looked at."""
    return what


def _receive(guard: Guard) -> None:
    """Put requests on record as a tool's server does that has the state as its own."""
    log, request = ReceiverLog(guard), RequestRecord("POST", SERVER, None, "0" * 64)
    caller = "spiffe://acme.example/agent/worker/x", "user:erin"
    known = KnownRequest(request, SERVER, SERVER, "2" * 64, "token", "1" * 64, *caller)
    log.received(ReceivedRequest(known, "proof", "key", "request", "3" * 64))
    log.refused("proof.used", known)


def _die(call: Call, scene: Scene) -> None:
    """Let a process die in a tool: neither the log nor the journal learns what became of it."""
    dying = scene.open()

    def die(*_any: object) -> None:
        raise Crash

    log: Any = runtime_of(dying).current_ports().log
    agent = scene.agent(dying, call.agent)
    with (
        patch.object(LoggedJournal, "keeping", die),
        patch.object(type(log), "append", _first_only(log.append, die)),
        suppress(Crash),
    ):
        scene.make(dying, call, agent=agent, ending=Crash())
    dying.close()


def _first_only(append: Callable[[Any], Any], die: Callable[..., Any]) -> Callable[..., Any]:
    """Let the authorization be written, and nothing that comes after the tool."""

    def appended(_log: Any, record: Any, **given: Any) -> Any:
        return die() if record.summary.kind == "outcome" else append(record, **given)

    return appended


def _keep_run(guard: Guard, scene: Scene, data: str) -> None:
    run_store(scene.agent(guard, "clerk")).write("thread", data.encode())
    scene.written.add(data.encode())


def _administer(scene: Scene) -> datetime:
    ids = _invocations(scene)
    now = scene.clock()
    common: Any = {"note": "n", "now": now}
    for call, ran in ((RESOLVED, True), (UNDONE, False)):
        administration.resolve(scene.settings, PASSPHRASE, ids[call.what], ran=ran, **common)
    administration.erase(scene.settings, PASSPHRASE, ids[ERASED.what], **common)
    for name in ("agent:robot", scene.hops["dave"]):
        administration.revoke(scene.settings, PASSPHRASE, name, **common)
    _log_out(scene)
    freeze(scene, frozen=True)
    scene.keep("frozen before")
    freeze(scene, frozen=False)
    scene.clock.advance(seconds=60)  # since then the admin's key will turn out to be stolen
    since = scene.clock()
    administration.revoke(scene.settings, PASSPHRASE, "user:mallory", note="n", now=since)
    return since


def _log_out(scene: Scene) -> None:
    """Have the provider say that the user with the token has logged out."""
    home = domain.take_up(scene.settings, PASSPHRASE)
    with closing(home.open_log(scene.clock())) as log:
        at = timestamp(max(scene.clock(), log.last_at))
        log.append(LogOutEntry(at=at, token=scene.provider.logout_token()).record())


def _invocations(scene: Scene) -> dict[str, str]:
    """Return the ids of the calls of ``pay``, by what was paid."""
    found: dict[str, str] = {}
    reader = StoredLog.of(scene.state)
    for stored in reader.stored():
        arguments = {kept.role: kept.data for kept in stored.attachments}.get("arguments", b"")
        parsed = parse_entry(stored.body)
        if isinstance(parsed, CallEntry) and arguments:
            what = arguments.decode().split('"')[-2]
            found[what] = str(parsed.invocation_id)
    reader.close()
    return found


def freeze(scene: Scene, *, frozen: bool) -> None:
    """Have the administrator freeze all calls, or thaw them."""
    administration.freeze(scene.settings, PASSPHRASE, frozen=frozen, note="n", now=scene.clock())


def _rotate(scene: Scene, stolen: datetime) -> None:
    """Put a new key in the place of each, dying on the way; the admin's old one was ``stolen``."""
    steps = [(use, step) for use in LONG_LIVED for step in ("begun", "counted")]
    for use, step in steps:
        with _dying(step):
            rotation.rotate(scene.settings, PASSPHRASE, use, now=scene.clock())
        scene.keep(f"{use} {step}")
        home = domain.take_up(scene.settings, PASSPHRASE)  # it tidies up, or goes on
        home.open_log(scene.clock()).close()
    trust = load_trust(scene.state)
    former = next(
        one.key for one in trust.keys_for("admin") if one.key not in trust.current("admin")
    )
    with _dying("counted"):
        rotation.revoke(
            *(scene.settings, PASSPHRASE, former.thumbprint),
            compromised_since=stolen,
            now=scene.clock(),
        )
    scene.keep("revoked")
    home = domain.take_up(scene.settings, PASSPHRASE)
    scene.keep("unannounced")
    home.open_log(scene.clock()).close()


@contextmanager
def _dying(step: str) -> Iterator[None]:
    """Die in a rotation: when its files lie there, or once its trust document counts."""
    where = "_valid_path" if step == "begun" else "finish"
    with patch.object(handover, where, side_effect=Crash), suppress(Crash):
        yield
