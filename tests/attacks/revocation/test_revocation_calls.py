"""Revocations and freezes: the next call of every descendant in every process is denied.

Cached or not, in a real second process too. What becomes of the file in which revocations are kept
is in test_revocation_file.py.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from revoked_agents import ALL_OF_ALICE, PASSPHRASE, SCOPE, Scene, attempt

from agentguard import Denied, adapters
from agentguard.audit.entry import Entry, parse_time
from agentguard.audit.kinds.administration import FreezeEntry
from agentguard.domain import administration
from agentguard.errors import CallError, DelegationError, EncodeError

ALL_OF_WORKER = {
    "worker for alice",
    "helper through worker for alice",
    "worker for bob",
    "helper through worker for bob",
}
ALL_OF_HELPER = {
    "helper for alice",
    "helper for bob",
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
    assert reasons == ["user:alice was revoked: every call that relies on user:alice is denied"]


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


def test_the_operator_reads_how_a_freeze_ends_and_the_model_does_not(scene, caplog):
    scene.freeze()
    with pytest.raises(Denied) as caught:
        scene.robot.call(scene.read)
    told = adapters.denial_text("read", caught.value.decision)
    assert "the application is not able to make this call [domain.frozen]" in told
    assert "thaw" not in told
    advice = "run agentguard thaw once the reason of the freeze is over"
    assert caught.value.reason == f"all calls are frozen: {advice}"
    (line,) = [record.getMessage() for record in caplog.records if record.name == "agentguard"]
    assert line == (
        f"read was not run: all calls are frozen [domain.frozen]. For the operator: {advice}"
    )
    scene.freeze(frozen=False)  # the twin
    assert attempt(scene.robot, scene.read) == "ok"


def test_no_model_reads_what_was_revoked(scene):
    scene.revoke("user:alice")
    with scene.alice, pytest.raises(Denied) as caught:
        scene.worker.call(scene.read)
    told = adapters.denial_text("read", caught.value.decision)
    assert "the application is not able to make this call [delegation.revoked]" in told
    assert "alice" not in told
    assert "user:alice was revoked" in caught.value.reason


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
        "",
        " ",
        "user alice",
        "user:alice\n",
        "user:\u0430lice",
        "a\0",
        "x" * 1025,
        "\x1b[2J",
        "alice",
        "user:Alice",
        "users:alice",
        "agent:Worker",
        "service:ci/",
    ],
)
def test_what_no_chain_can_hold_is_not_revoked(scene, name):
    def entries() -> list[str]:  # an outcome of the calls before may come later
        return [one.kind for one in scene.place.seen().entries if one.kind != "outcome"]

    before = entries()
    with pytest.raises(CallError) as caught:
        scene.revoke(name)
    assert caught.value.code == "revocation.name"
    assert entries() == before
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
    assert isinstance(parsed, FreezeEntry)
    parsed.verify(scene.guard.trust, parse_time(parsed.at))
    return parsed.freeze.sequence, parsed.freeze.frozen


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
