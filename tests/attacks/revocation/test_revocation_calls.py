"""Revocations and the brake: the next call of every descendant in every process is denied.

Cached or not, in a real second process too; and whatever becomes of the file in which they are
kept, nobody who was revoked acts again.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from preloaded import Preloaded

from agentguard import Decision, Denied, Guard, adapters
from agentguard.audit import records, statements
from agentguard.audit.entry import Entry, Receipt, parse_time
from agentguard.audit.records import Record
from agentguard.audit.standing import Standing
from agentguard.call.invocation import timestamp
from agentguard.delegation.handle import Delegation
from agentguard.domain import administration, config, keystore, rotation
from agentguard.domain.domain import StateDomain
from agentguard.errors import CallError, DelegationError, EncodeError, KeyMaterialError
from agentguard.signing.canonical import dumps, loads, loads_object
from agentguard.storage import files, standing_file

PASSPHRASE = b"correct horse battery staple"
SCOPE = ["read"]
AGENTS = {
    "robot": {"authority": "own", "max_scope": SCOPE},
    "worker": {"max_scope": SCOPE},
    "helper": {"max_scope": SCOPE},
}


class Crash(BaseException):
    """The process dies here."""


@pytest.fixture
def durable(place):
    """The place, with these agents."""
    tables = {**loads_object(place.config.encoded), "agents": AGENTS}
    place.config = config.parse(tables, source="agentguard.toml", base=place.config.base)
    return place


class Scene:
    """A guard in use: a worker, a helper that it calls, and a robot; for alice and for bob."""

    def __init__(self, place: Any) -> None:
        self.place = place
        self.guard: Guard = place.open()
        self.worker, self.helper = self.guard.new_agent("worker"), self.guard.new_agent("helper")
        self.robot = self.guard.new_agent("robot")
        self.read = self.guard.tool(name="read", requires=SCOPE)(lambda: "ok")
        self.ask = self.guard.tool(name="ask", requires=SCOPE)(
            lambda: attempt(self.helper, self.read)
        )
        self.alice = self.lend("user:alice", "service:ci")
        self.bob = self.lend("user:bob", "service:other")

    def lend(self, user: str, via: str) -> Delegation:
        return self.guard.delegate(user, scope=SCOPE, via=via)

    def calls(self) -> dict[str, str]:
        """What becomes of the next call of each."""
        found: dict[str, str] = {}
        for name, delegation in (("alice", self.alice), ("bob", self.bob)):
            with delegation:
                found[f"worker for {name}"] = attempt(self.worker, self.read)
                found[f"helper for {name}"] = attempt(self.helper, self.read)
                found[f"helper through worker for {name}"] = attempt(self.worker, self.ask)
        found["robot"] = attempt(self.robot, self.read)
        return found

    def denied(self) -> set[str]:
        """Who is denied now, all for the same reason."""
        found = self.calls()
        assert set(found.values()) <= {"ok", "delegation.revoked"}
        return {name for name, became in found.items() if became != "ok"}

    def revoke(self, name: str) -> Receipt:
        return administration.revoke(
            self.place.config, PASSPHRASE, name, note="n", now=datetime.now(UTC)
        )

    def freeze(self, *, frozen: bool = True) -> Receipt:
        return administration.freeze(
            self.place.config, PASSPHRASE, frozen=frozen, note="n", now=datetime.now(UTC)
        )

    def handed_to(self, agent: Any, delegation: Delegation) -> Any:
        """The chain that ends with an agent, and its token."""
        instance = agent._caller.instance()
        return instance._acceptances[delegation.key].token

    @property
    def file(self) -> Any:
        return self.place.config.state / standing_file.FILE


def attempt(agent: Any, tool: Any) -> str:
    try:
        return str(agent.call(tool))
    except Denied as denied:
        return denied.code


@pytest.fixture
def scene(durable) -> Iterator[Scene]:
    made = Scene(durable)
    with made.guard:
        assert set(made.calls().values()) == {"ok"}  # all of it is cached from here on
        yield made


ALL_OF_ALICE = {"worker for alice", "helper for alice", "helper through worker for alice"}
ALL_OF_WORKER = {
    *("worker for alice", "helper through worker for alice"),
    *("worker for bob", "helper through worker for bob"),
}
ALL_OF_HELPER = {
    *("helper for alice", "helper for bob"),
}

REVOKED: dict[str, tuple[Callable[[Scene], str], set[str]]] = {
    "the principal": (lambda s: "user:alice", ALL_OF_ALICE),
    "the service": (lambda s: "service:ci", ALL_OF_ALICE),
    "the first hop": (lambda s: s.alice.id, ALL_OF_ALICE),
    "an agent by its name": (lambda s: "agent:worker", ALL_OF_WORKER),
    "an instance by its URI": (lambda s: s.worker.id, ALL_OF_WORKER),
    "a key": (lambda s: s.worker.id.rpartition("/")[2], ALL_OF_WORKER),
    "an agent's hop": (
        lambda s: s.handed_to(s.worker, s.alice).chain.leaf.jti,
        {"worker for alice", "helper through worker for alice"},
    ),
    "a token": (lambda s: s.handed_to(s.worker, s.alice).jti, {"worker for alice"}),
    "an agent with authority of its own": (lambda s: "agent:robot", {"robot"}),
    "its instance": (lambda s: s.robot.id, {"robot"}),
    "the one at the end": (lambda s: s.helper.id, ALL_OF_HELPER),
    "the application": (lambda s: "spiffe://acme.example", set()),  # nothing goes through it here
    "nobody": (lambda s: "user:carol", set()),
    "one whose name begins alike": (lambda s: "user:ali", set()),
}


@pytest.mark.parametrize("what", REVOKED)
def test_the_next_call_of_every_descendant_is_denied(scene, what):
    name_of, expected = REVOKED[what]
    scene.revoke(name_of(scene))
    denied = scene.denied()
    # the tool of a worker that is not denied answers what its helper's call became
    if what == "the one at the end":
        expected = expected | {"helper through worker for alice", "helper through worker for bob"}
    if what == "a token":
        expected = expected | {"helper through worker for alice"}  # asked for by the worker
    assert denied == expected
    assert scene.denied() == denied  # and it stays so
    assert scene.guard.verify().problems == ()


def test_one_that_was_never_called_before_is_denied_as_well(scene):
    """Nothing of it is cached: the chain is made, and refused."""
    scene.revoke("user:alice")
    scene.revoke("agent:worker")
    late = scene.guard.new_agent("helper")
    with scene.alice:
        assert attempt(late, scene.read) == "delegation.revoked"
    with scene.bob:
        assert attempt(late, scene.read) == "ok"
        assert attempt(scene.guard.new_agent("worker"), scene.read) == "delegation.revoked"
    with scene.lend("user:alice", "service:other"):  # a new delegation of hers does not help
        assert attempt(late, scene.read) == "delegation.revoked"
    with scene.lend("user:dave", "service:ci"):
        assert attempt(late, scene.read) == "ok"


def test_an_instance_is_revoked_and_the_next_one_is_not(scene):
    scene.revoke(scene.worker.id)
    with scene.alice:
        assert attempt(scene.worker, scene.read) == "delegation.revoked"
        assert attempt(scene.guard.new_agent("worker"), scene.read) == "ok"


def test_what_is_denied_is_on_record(scene):
    scene.revoke("user:alice")
    before = len(scene.place.seen().authorizations)
    with scene.alice:
        attempt(scene.worker, scene.read)
    assert scene.place.seen().codes[before:] == [("deny", "delegation.revoked")]
    (reasons,) = [a["reasons"] for a in scene.place.seen().authorizations[before:]]
    assert reasons == ["user:alice was revoked: whatever goes back to it is denied"]


def test_tokens_evaluations_and_stored_delegations_too(scene):
    stored = scene.alice.dumps()
    invocation = scene.worker._invocation(scene.read, (), {})
    with scene.alice:
        assert scene.worker.access_token()
        assert adapters.evaluate(scene.worker, invocation).allowed
        assert scene.guard.resume(stored).principal == "user:alice"
        scene.revoke("service:ci")
        with pytest.raises(Denied) as caught:
            scene.worker.access_token()
        assert caught.value.code == "delegation.revoked"
        assert adapters.evaluate(scene.worker, invocation).code == "delegation.revoked"
    with pytest.raises(DelegationError) as refused:
        scene.guard.resume(stored)
    assert refused.value.code == "delegation.revoked"
    assert scene.guard.resume(scene.bob.dumps()).principal == "user:bob"


async def test_async_calls_too(scene):
    with scene.alice:
        assert await scene.worker.acall(scene.read) == "ok"
        scene.revoke("agent:worker")
        with pytest.raises(Denied) as caught:
            await scene.worker.acall(scene.read)
        assert caught.value.code == "delegation.revoked"
    scene.freeze()
    with pytest.raises(Denied) as caught:
        await scene.robot.acall(scene.read)
    assert caught.value.code == "domain.frozen"


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "user alice", "user:alice\n", "user:\u0430lice", "a\0", "x" * 1025, "\x1b[2J"),
        *("alice", "user:Alice", "users:alice", "agent:Worker", "service:ci/"),
    ],
)
def test_what_no_chain_can_hold_is_not_revoked(scene, name):
    before = scene.file.read_bytes()
    with pytest.raises(CallError) as caught:
        scene.revoke(name)
    assert caught.value.code == "revocation.name"
    assert scene.file.read_bytes() == before
    assert scene.denied() == set()


def test_a_note_that_can_not_be_written_revokes_nothing(scene):
    for call, said in (
        (administration.revoke, {"name": "user:alice"}),
        (administration.freeze, {"frozen": True}),
    ):
        with pytest.raises(EncodeError):
            call(
                scene.place.config,
                PASSPHRASE,
                **said,
                note="\ud800",
                now=datetime.now(UTC),
            )
    assert scene.denied() == set()


# --- the brake ------------------------------------------------------------------------------------


def test_freeze_and_thaw(scene):
    stored = scene.alice.dumps()
    scene.freeze()
    assert set(scene.calls().values()) == {"domain.frozen"}
    with pytest.raises(DelegationError) as refused:
        scene.guard.resume(stored)
    assert refused.value.code == "domain.frozen"
    late = scene.place.open()
    with late:
        tool = late.tool(name="t")(lambda: "ok")
        assert attempt(late.new_agent("robot"), tool) == "domain.frozen"
        scene.freeze(frozen=False)
        assert attempt(late.new_agent("robot"), tool) == "ok"
    assert set(scene.calls().values()) == {"ok"}
    assert scene.place.examine().problems == ()


def test_a_thaw_brings_back_nobody_who_is_revoked(scene):
    scene.revoke("user:alice")
    scene.freeze()
    scene.freeze()  # twice is once
    scene.freeze(frozen=False)
    assert scene.denied() == ALL_OF_ALICE


def test_a_call_that_runs_goes_on_and_those_that_it_makes_do_not(scene):
    def meanwhile():
        scene.freeze()
        return attempt(scene.helper, scene.read)

    tool = scene.guard.tool(name="meanwhile", requires=SCOPE)(meanwhile)
    with scene.alice:
        assert attempt(scene.worker, tool) == "domain.frozen"  # what its own tool returned
    assert scene.place.seen().statuses[-1:] == ["ok"]


def test_freezes_at_once_have_numbers_of_their_own(scene):
    wanted = [True, False] * 4
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda frozen: scene.freeze(frozen=frozen), wanted))
    said = {}
    for parsed in scene.place.seen().entries:
        if parsed.kind == "freeze":
            sequence, frozen = entry_of(scene, parsed)
            assert sequence not in said
            said[sequence] = frozen
    assert len(said) == 8
    assert sorted(said.values()) == sorted(wanted)
    became = "domain.frozen" if said[max(said)] else "ok"
    assert set(scene.calls().values()) == {became}
    with scene.place.open() as late:
        tool = late.tool(name="t")(lambda: "ok")
        assert attempt(late.new_agent("robot"), tool) == became
    assert scene.place.examine().problems == ()


def entry_of(scene: Scene, parsed: Entry) -> tuple[int, bool]:
    return statements.check_freeze(parsed, scene.guard.trust, parse_time(parsed.at))


# --- a real second process ------------------------------------------------------------------------

OTHER = """
    import sys
    from pathlib import Path
    from agentguard import Decision, Denied, Guard
    from agentguard.domain import config
    from agentguard.domain import domain
    from agentguard.policy.function import FunctionEngine

    folder, stored = Path(sys.argv[1]), sys.argv[2].encode()
    tables = {"trust_domain": "acme.example", "state": str(folder / "state"),
              "anchor": str(folder / "anchor"),
              "policy": {"engine": "function", "path": "unused:unused"},
              "agents": {"robot": {"authority": "own", "max_scope": ["read"]},
                         "worker": {"max_scope": ["read"]}}}
    settings = config.parse(tables, source="agentguard.toml", base=folder)
    home = domain.take_up(settings, b"correct horse battery staple")
    guard = Guard(settings, FunctionEngine(lambda _: Decision.allow()), home)
    read = guard.tool(name="read", requires=["read"])(lambda: "ok")
    alice = guard.resume(stored)
    worker, robot = guard.new_agent("worker").under(alice), guard.new_agent("robot")

    def attempt(agent):
        try:
            return agent.call(read)
        except Denied as denied:
            return denied.code

    for line in sys.stdin:
        if line == "end\\n":
            break
        print(attempt(worker), attempt(robot), flush=True)
    guard.close()
"""


class Other:
    """A process with a guard of its own on the same state, which calls when it is told to."""

    def __init__(self, scene: Scene, programs: Preloaded) -> None:
        base = scene.place.config.base
        words = ("-W", "error", "-c", textwrap.dedent(OTHER), base, scene.alice.dumps().decode())
        self.process = programs.talk(*words, cwd=base)

    def tell(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def calls(self) -> list[str]:
        """What becomes of the next calls of its worker, for alice, and of its robot."""
        self.tell("call")
        return self.process.stdout.readline().split()

    def end(self) -> None:
        _out, err = self.process.communicate("end\n")
        assert (self.process.returncode, err) == (0, "")


@pytest.fixture
def other(scene, programs) -> Iterator[Other]:
    made = Other(scene, programs)
    try:
        assert made.calls() == ["ok", "ok"]  # cached there as well
        yield made
        made.end()
    finally:
        made.process.kill()
        made.process.wait()


@pytest.mark.parametrize("name", ["agent:worker", "the first hop"])
def test_in_another_process_the_next_call_is_denied_too(scene, other, name):
    scene.revoke(scene.alice.id if name == "the first hop" else name)
    assert other.calls() == ["delegation.revoked", "ok"]
    assert "worker for alice" in scene.denied()


def test_an_instance_of_this_process_is_not_the_others(scene, other):
    scene.revoke(scene.worker.id)
    assert other.calls() == ["ok", "ok"]
    assert scene.denied() == ALL_OF_WORKER


def test_a_freeze_reaches_the_other_process_and_a_thaw_as_well(scene, other):
    scene.freeze()
    assert other.calls() == ["domain.frozen", "domain.frozen"]
    scene.freeze(frozen=False)
    assert other.calls() == ["ok", "ok"]
    scene.revoke("user:alice")
    assert other.calls() == ["delegation.revoked", "ok"]


def test_what_one_process_can_not_read_the_other_can_not_either(scene, other):
    kept = scene.file.read_bytes()
    scene.file.write_bytes(b"{}")
    assert other.calls() == ["storage.corrupt", "storage.corrupt"]
    assert set(scene.calls().values()) == {"storage.corrupt"}
    files.replace(scene.file, kept)
    assert other.calls() == ["ok", "ok"]


# --- what becomes of the file ---------------------------------------------------------------------


def edited(scene: Scene, **changes: Any) -> None:
    document: Any = loads(scene.file.read_bytes())
    document["standing"] |= changes
    files.replace(scene.file, dumps(document))


SPOILT: dict[str, tuple[Callable[[Scene, bytes], object], str]] = {
    "removed": (lambda s, _old: s.file.unlink(), "storage.missing"),
    "emptied": (lambda s, _old: files.replace(s.file, b""), "storage.corrupt"),
    "damaged": (lambda s, _old: files.replace(s.file, b'{"standing":{'), "storage.corrupt"),
    "a folder": (
        lambda s, _old: (s.file.unlink(), s.file.mkdir()),
        "storage.missing",
    ),
    "rolled back": (lambda s, old: files.replace(s.file, old), "delegation.revoked"),
    "without the name": (lambda s, _old: edited(s, revoked=[]), "storage.corrupt"),
    "with another": (lambda s, _old: edited(s, revoked=["x"]), "storage.corrupt"),
    "as if all were read": (
        lambda s, _old: edited(s, revoked=[], read={"0": [10**9, ""]}),
        "storage.corrupt",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_whatever_becomes_of_the_file_nobody_acts_again(scene, how):
    spoil, expected = SPOILT[how]
    before = scene.file.read_bytes()
    scene.revoke("user:alice")
    assert scene.denied() == ALL_OF_ALICE
    spoil(scene, before)
    with scene.alice:
        assert attempt(scene.worker, scene.read) == expected  # a running process does not forget
    if how == "a folder":
        scene.file.rmdir()
    late = Scene(scene.place)  # and one that is opened now learns it from the log
    with late.guard:
        assert late.denied() == ALL_OF_ALICE
    assert scene.denied() == ALL_OF_ALICE


@pytest.mark.parametrize(
    "changes", [{"frozen": False}, {"frozen": False, "sequence": 99}, {"frozen": False, "read": []}]
)
def test_no_edit_of_the_file_is_a_thaw(scene, changes):
    scene.freeze()
    assert set(scene.calls().values()) == {"domain.frozen"}
    edited(scene, **changes)
    assert set(scene.calls().values()) <= {"domain.frozen", "storage.corrupt"}
    with closing(scene.place.open()) as late:
        tool = late.tool(name="t")(lambda: "ok")
        assert attempt(late.new_agent("robot"), tool) == "domain.frozen"
    assert set(scene.calls().values()) == {"domain.frozen"}
    scene.freeze(frozen=False)
    assert set(scene.calls().values()) == {"ok"}


@pytest.mark.parametrize("edited", [False, True])
def test_a_thread_forgets_nothing_that_another_learns_while_it_reads(scene, monkeypatch, edited):
    known, old, load = (
        scene.guard._runtime._line.revocations,
        scene.file.read_bytes(),
        standing_file.load,
    )
    alice, refused = {"user:alice"}, []

    def interrupted(state: Any) -> standing_file.SignedStanding:
        monkeypatch.setattr(standing_file, "load", load)
        with ThreadPoolExecutor(1) as other:
            refused.append(other.submit(known.refusal, alice).result())
        if edited:
            scene.file.write_bytes(old)
        return load(state)

    scene.revoke("user:alice")
    monkeypatch.setattr(standing_file, "load", interrupted)
    refused += [known.refusal(alice), known.refusal(alice)]
    assert [code for code, _reason in refused] == ["delegation.revoked"] * 3


@pytest.mark.parametrize("edited", [False, True])
def test_an_edit_before_the_first_call_brings_nobody_back(durable, edited):
    before = Scene(durable)
    old = before.file.read_bytes()  # the log's key has signed it
    before.revoke("user:alice")
    before.guard.close()
    after = Scene(durable)
    with after.guard:
        if edited:
            after.file.write_bytes(old)
        assert after.denied() == ALL_OF_ALICE


def test_an_old_state_that_is_restored_beside_a_newer_log(scene):
    """The file and the counts of an old backup: what the log says counts."""
    old = scene.place.config.base / "old"
    old.mkdir()
    shutil.copy(scene.file, old)
    scene.revoke("user:alice")
    scene.freeze()
    scene.freeze(frozen=False)
    shutil.copy(old / scene.file.name, scene.file)
    late = Scene(scene.place)
    with late.guard:
        assert late.denied() == ALL_OF_ALICE
        assert loads_object(scene.file.read_bytes())["standing"] != loads_object(
            (old / scene.file.name).read_bytes()
        )


@pytest.mark.parametrize("restored", [True, False])
def test_old_shards_that_are_restored_beside_a_newer_file(durable, restored):
    """It says how far they were read, and means others. Without an anchor nobody refuses them."""
    tables = {**loads_object(durable.config.encoded), "anchor": ""}
    durable.config = config.parse(tables, source="agentguard.toml", base=durable.config.base)
    shards = durable.config.state / "shards"
    with Scene(durable).guard:
        pass
    shutil.copytree(shards, durable.config.base / "old")
    before = Scene(durable)
    with before.guard:
        before.calls()
    before.revoke("user:bob")
    if restored:
        shutil.rmtree(shards)
        shutil.copytree(durable.config.base / "old", shards)
    before.revoke("user:alice")
    late = Scene(durable)
    with late.guard:
        of_bob = {name.replace("alice", "bob") for name in ALL_OF_ALICE}
        assert late.denied() == ALL_OF_ALICE | of_bob
        late.freeze()
        assert set(late.calls().values()) == {"domain.frozen"}


# --- forged entries, and crashes ------------------------------------------------------------------


def written(scene: Scene, *records: Record) -> None:
    """Put entries in the log, as whoever can write it does; and have them read."""
    home = scene.place.take_up()
    with closing(home.lease(datetime.now(UTC))) as log:
        for record in records:
            log.append(record)
    home.revocations()


def unsigned(record: Record) -> Record:
    members = loads_object(record.body)
    statement: Any = members["statement"]
    statement["signatures"] = []
    return record._replace(body=dumps(members))


def altered(record: Record) -> Record:
    members: Any = loads_object(record.body)
    sig = members["statement"]["signatures"][0]["sig"]
    members["statement"]["signatures"][0]["sig"] = ("B" if sig[0] == "A" else "A") + sig[1:]
    return record._replace(body=dumps(members))


FORGED = ["by a stranger", "by the issuer", "by the log", "unsigned", "altered"]


@pytest.mark.parametrize("how", FORGED)
def test_what_the_administrator_has_not_signed_counts_for_nothing(scene, stranger, how):
    home: Any = scene.place.take_up()
    admin = keystore.load_key(scene.place.config.state, "admin", PASSPHRASE)
    signer = {
        "by a stranger": stranger,
        "by the issuer": home.issuer,
        "by the log": home.log_key,
    }.get(how, admin)
    spoil = {"unsigned": unsigned, "altered": altered}.get(how, lambda record: record)
    at = timestamp(datetime.now(UTC))
    written(
        scene,
        spoil(records.revocation(signer, "user:alice", note="n", at=at)),
        spoil(records.freeze(signer, "acme.example", frozen=True, sequence=7, note="n", at=at)),
    )
    assert scene.denied() == set()
    late = Scene(scene.place)
    with late.guard:
        assert late.denied() == set()
    found = scene.place.examine().problems
    assert len(found) == 2  # and audit verify names both
    scene.revoke("user:alice")
    assert scene.denied() == ALL_OF_ALICE


def test_the_twin_of_the_forged_ones(scene):
    admin = keystore.load_key(scene.place.config.state, "admin", PASSPHRASE)
    at = timestamp(datetime.now(UTC))
    written(scene, records.revocation(admin, "user:alice", note="n", at=at))
    assert scene.denied() == ALL_OF_ALICE
    written(scene, records.freeze(admin, "acme.example", frozen=True, sequence=7, note="n", at=at))
    assert set(scene.calls().values()) == {"domain.frozen"}
    assert scene.place.examine().problems == ()


def test_a_crash_between_the_entry_and_the_file(scene, monkeypatch):
    """It is in the log: whoever opens the state next puts it in force everywhere."""

    def die(_home):
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(StateDomain, "revocations", die)
        with pytest.raises(Crash):
            scene.revoke("user:alice")
        with pytest.raises(Crash):
            scene.freeze()
    late = scene.place.open()
    with late:
        tool = late.tool(name="t")(lambda: "ok")
        assert attempt(late.new_agent("robot"), tool) == "domain.frozen"
    assert set(scene.calls().values()) == {"domain.frozen"}
    scene.freeze(frozen=False)
    assert scene.denied() == ALL_OF_ALICE
    assert scene.place.examine().problems == ()


def test_a_crash_while_the_file_is_written(scene, monkeypatch):
    def die(*_arguments):
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(files, "_sync", die)
        with suppress(Crash):
            home = scene.place.take_up()
            standing_file.save(
                scene.place.config.state,
                home.trust.log,
                Standing(frozenset({"half"})),
                home.log_key,
            )
    late = Scene(scene.place)
    with late.guard:
        assert late.denied() == set()
        scene.revoke("user:alice")
        assert late.denied() == ALL_OF_ALICE == scene.denied()


def test_a_revocation_after_the_admin_key_was_rotated(scene):
    """A guard that runs since before knows the new key's word when it hears it."""
    scene.freeze()
    assert set(scene.calls().values()) == {"domain.frozen"}
    for use in ("admin", "log"):
        rotation.rotate(scene.place.config, PASSPHRASE, use, now=datetime.now(UTC))
    scene.freeze(frozen=False)
    assert set(scene.calls().values()) == {"ok"}
    scene.revoke("user:alice")
    assert scene.denied() == ALL_OF_ALICE
    assert scene.place.examine().problems == ()


def test_without_the_passphrase_nothing_is_revoked(scene):
    with pytest.raises(KeyMaterialError):
        administration.revoke(
            scene.place.config, b"wrong", "user:alice", note="n", now=datetime.now(UTC)
        )
    assert scene.denied() == set()


def test_a_guard_in_memory_counts_and_has_nothing_to_revoke():
    with Guard.ephemeral(lambda _d: Decision.allow()) as guard:
        tool = guard.tool(name="t")(lambda: "ok")
        agent = guard.new_agent("any")
        assert attempt(agent, tool) == "ok"
        with guard.delegate("user:alice", scope=["a"], max_calls=2):
            assert [attempt(agent, tool) for _ in range(3)] == ["ok", "ok", "calls.exceeded"]
        assert attempt(agent, tool) == "ok"
        assert guard.verify().ok
