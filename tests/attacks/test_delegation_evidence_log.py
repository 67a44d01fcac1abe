"""What the log says of delegated calls: every forgery is found, and where it is.

The forger is an insider with the log's own key, who signs anew what he has changed, and who has an
agent's key as well: hashes and signatures agree, and only the statements do not hold. Chains that
are forged hop by hop are in test_hostile_tokens.py, and in tests/e2e before both verifiers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from delegated_calls import AGENTS, attempt
from embedded_parts import instance_of, runtime_of
from remade_maps import map_of

from agentguard import Decision, Guard
from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.audit.entry import Entry, LogPlace, StoredEntry, time_of
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry, outcome_statement
from agentguard.audit.kinds.identities import DelegationEntry
from agentguard.audit.verify import LogVerifier
from agentguard.call import invocation
from agentguard.call.invocation import timestamp
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import b64_decode, dumps, loads_object
from agentguard.signing.keys import Signer

# --- the log --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Log:
    """A log in the hands of the insider: its entries, and the keys that he has."""

    trust: TrustDocument
    log_key: Signer
    keys: dict[str, Signer]  # of agents, by their names
    stored: tuple[StoredEntry, ...]

    def verified(self) -> LogVerifier:
        """Number the entries, sign a head over them, and have all of it verified."""
        tree = merkle.CompactRange()
        for one in self.stored:
            tree.append(merkle.leaf_hash(one.body))
        at = max(time_of(one.body) for one in self.stored)
        root, _nodes = map_of(one.body for one in self.stored)
        head = heads.Head(self.trust.log, tree.size, tree.root(), root, at)
        verifier = LogVerifier(self.trust)
        entries = [replace(one, index=index) for index, one in enumerate(self.stored)]
        for _done in verifier.walk(heads.sign(head, self.log_key), entries):
            pass
        return verifier

    @property
    def problems(self) -> list[tuple[int | None, str]]:
        return [(found.index, found.what) for found in self.verified().problems.listed()]

    @property
    def entries(self) -> list[Entry]:
        return [parse_entry(one.body) for one in self.stored]

    def delegation(self, principal: str, agent: str) -> int:
        """Where the chain stands that leads from a principal to an agent."""
        return next(
            index
            for index, one in enumerate(self.stored)
            if one.summary is not None
            and (one.summary.kind, one.summary.principal) == ("delegation", principal)
            and f"/agent/{agent}/" in str(one.summary.agent)
        )

    def sha256(self, principal: str, agent: str) -> str:
        return self.chain(self.delegation(principal, agent)).sha256

    def chain(self, index: int) -> DelegationEntry:
        return parse_entry(self.stored[index].body, DelegationEntry)

    def call(self, principal: str, agent: str, decision: str = "allow") -> int:
        """Where a call by an agent for a principal stands."""
        return next(
            index
            for index, one in enumerate(self.stored)
            if one.summary is not None
            and (one.summary.kind, one.summary.principal) == ("call", principal)
            and one.summary.decision == decision
            and f"/agent/{agent}/" in str(one.summary.agent)
        )

    def with_entry(self, index: int, members: dict[str, Any], about: Any = None) -> Log:
        """Put other members into an entry, and the columns beside it that go with them."""
        old = self.stored[index]
        new = replace(old, body=canonical.dumps(members), summary=about or old.summary)
        return replace(self, stored=(*self.stored[:index], new, *self.stored[index + 1 :]))

    def without_data(self, index: int) -> Log:
        """Leave out what is kept beside an entry."""
        bare = replace(self.stored[index], attachments=())
        return replace(self, stored=(*self.stored[:index], bare, *self.stored[index + 1 :]))

    def without(self, *gone: int) -> Log:
        kept = (one for index, one in enumerate(self.stored) if index not in gone)
        return replace(self, stored=tuple(kept))

    def with_outcomes_of(self, *agents: str) -> Log:
        """Leave out the outcomes of the others' calls, which stay in doubt: no finding."""
        gone = [
            index
            for index, one in enumerate(self.stored)
            if one.summary is not None
            and one.summary.kind == "outcome"
            and not any(f"/agent/{agent}/" in str(one.summary.agent) for agent in agents)
        ]
        return self.without(*gone)

    def calling(
        self,
        index: int,
        agent: str,
        actors: list[str],
        *,
        at: str | None = None,
        signer: Signer | None = None,
        **said: Any,
    ) -> Log:
        """Have a call say other things of itself, signed by its agent."""
        members: Any = loads_object(self.stored[index].body)
        sealed = b64_decode(members["invocation"]["payload"])
        predicate = {**json.loads(sealed)["predicate"], **said}
        payload = invocation.statement(agent, predicate, actors)
        members["invocation"] = dsse.seal(payload, signer or self.keys[agent]).as_json()
        members["at"] = at or members["at"]
        about = parse_entry(dumps(members)).summary
        return self.with_entry(index, members, about)


@pytest.fixture(scope="module")
def log() -> Log:
    """All of it is done at one moment: a chain counts from a whole second on."""
    now = datetime(2026, 11, 28, 12, tzinfo=UTC)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("agentguard.guard.process.clock", lambda: now)
        return log_of_a_day()


def log_of_a_day() -> Log:
    """alice lends to the worker, which asks the helper; so does bob; the robot acts by itself."""
    with Guard.ephemeral(lambda _d: Decision.allow(), config={"agents": AGENTS}) as guard:
        agents = {name: guard.new_agent(name) for name in AGENTS}
        agents["second"] = guard.new_agent("worker")
        read = guard.tool(name="read", requires=["read"])(lambda: "ok")
        secret = guard.tool(name="secret", requires=["secret"])(lambda: "ok")
        ask = guard.tool(name="ask", requires=["read"])(lambda: attempt(agents["helper"], read))
        for user in ("user:alice", "user:bob"):
            lent = guard.delegate(
                user, scope=["read"], via="service:ci", task_id=f"of {user}", expires_in=60
            )
            with lent:
                assert attempt(agents["worker"], read) == "ok"
                assert attempt(agents["worker"], ask) == "ok"
                assert attempt(agents["worker"], secret) == "scope.exceeded"
        with guard.delegate("user:carol", scope=["read"], max_calls=2):
            assert attempt(agents["second"], read) == "ok"
            assert attempt(agents["second"], read) == "ok"
            assert attempt(agents["second"], read) == "calls.exceeded"
        assert attempt(agents["robot"], read) == "ok"
        assert guard.verify().problems == ()
        home: Any = runtime_of(guard).domain
        return Log(
            guard.trust,
            home.log_key,
            {name: instance_of(agent).actor.signer for name, agent in agents.items()},
            tuple(guard.reader().stored()),
        )


def test_the_untampered_twin(log):
    assert log.problems == []


# --- the log: chains ------------------------------------------------------------------------------

NOT_KEPT = "a chain of delegation that no entry before it keeps"


def named_by(log: Log, index: int) -> set[int]:
    """Where the calls stand that name the chain of a delegation entry."""
    digest = log.chain(index).sha256
    return {
        place
        for place, parsed in enumerate(log.entries)
        if isinstance(parsed, CallEntry) and parsed.chain_sha256 == digest
    }


def test_every_edit_of_a_chain_is_found_there_and_at_each_call_under_it(log):
    index = log.delegation("user:alice", "worker")
    calls = named_by(log, index)
    assert len(calls) == 3
    members: Any = loads_object(log.stored[index].body)
    for part in ("hops", "credentials"):
        for number, token in enumerate(members["chain"][part]):
            for place in range(5, len(token), 97):
                spoilt = json.loads(json.dumps(members))
                other = "A" if token[place] != "A" else "B"
                spoilt["chain"][part][number] = token[:place] + other + token[place + 1 :]
                found = dict(log.with_entry(index, spoilt).problems)
                assert index in found, (part, number, place)
                assert calls <= found.keys()


SPOILT: dict[str, Callable[[Log, Any], Any]] = {
    "no hops": lambda _log, chain: {**chain, "hops": []},
    "the last hop is gone": lambda _log, chain: {**chain, "hops": chain["hops"][:-1]},
    "the first hop is gone": lambda _log, chain: {**chain, "hops": chain["hops"][1:]},
    "in another order": lambda _log, chain: {**chain, "hops": chain["hops"][::-1]},
    "no credentials": lambda _log, chain: {**chain, "credentials": []},
    "a credential twice": lambda _log, chain: {**chain, "credentials": chain["credentials"] * 2},
    "with bob's last hop": lambda log, chain: {
        **chain,
        "hops": [chain["hops"][0], bobs(log)["hops"][1]],
    },
    "with bob's first hop": lambda log, chain: {
        **chain,
        "hops": [bobs(log)["hops"][0], chain["hops"][1]],
    },
    "one member more": lambda _log, chain: {**chain, "more": []},
    "no chain": lambda _log, _chain: None,
    "a text": lambda _log, _chain: "chain",
}


def bobs(log: Log) -> Any:
    return log.entries[log.delegation("user:bob", "worker")].members["chain"]


@pytest.mark.parametrize("how", SPOILT)
def test_a_chain_that_does_not_hold_is_found(log, how):
    log = log.with_outcomes_of()
    index = log.delegation("user:alice", "worker")
    members: Any = loads_object(log.stored[index].body)
    assert log.with_entry(index, dict(members)).problems == []  # the twin
    members["chain"] = SPOILT[how](log, members["chain"])
    found = dict(log.with_entry(index, members).problems)
    assert found.keys() == {index} | named_by(log, index)
    assert NOT_KEPT not in found[index]


def test_the_last_hop_cut_off_with_all_that_it_needs_is_another_chain(log):
    """It verifies by itself: it is what the worker was given. The helper's call does not."""
    log = log.with_outcomes_of()
    index = log.delegation("user:alice", "helper")
    members: Any = loads_object(log.stored[index].body)
    members["chain"] = {
        "hops": members["chain"]["hops"][:-1],
        "credentials": members["chain"]["credentials"][:1],
    }
    about = log.stored[log.delegation("user:alice", "worker")].summary
    assert about is not None
    found = dict(log.with_entry(index, members, about._replace(at=members["at"])).problems)
    assert found == dict.fromkeys(named_by(log, index), NOT_KEPT)


def test_a_dropped_chain_is_missed_by_each_call_under_it(log):
    index = log.delegation("user:alice", "worker")
    calls = {place - 1 for place in named_by(log, index)}  # they have moved up
    found = dict(log.without(index).problems)
    assert {place: found[place] for place in calls} == dict.fromkeys(calls, NOT_KEPT)


def test_a_chain_that_comes_after_its_call_is_none_of_it(log):
    index = log.delegation("user:carol", "worker")
    moved = log.without(index)
    last = max(named_by(log, index))
    stored = [*moved.stored[:last], log.stored[index], *moved.stored[last:]]
    found = dict(replace(moved, stored=tuple(stored)).problems)
    assert NOT_KEPT in found.values()


def test_two_chains_swapped_are_told_by_their_columns(log):
    one, two = log.delegation("user:alice", "worker"), log.delegation("user:bob", "worker")
    alice: Any = loads_object(log.stored[one].body)
    bob: Any = loads_object(log.stored[two].body)
    alice["chain"], bob["chain"] = bob["chain"], alice["chain"]
    found = dict(log.with_entry(one, alice).with_entry(two, bob).problems)
    assert "columns" in found[one]
    assert "columns" in found[two]
    assert named_by(log, one) <= found.keys()  # alice's calls come before her chain now


@pytest.mark.parametrize("column", ["agent", "principal", "task_id", "at", "kind"])
def test_its_columns_are_recomputed(log, column):
    index = log.delegation("user:alice", "worker")
    about = log.stored[index].summary
    assert about is not None
    changed = log.with_entry(
        index, loads_object(log.stored[index].body), about._replace(**{column: "x"})
    )
    assert [place for place, what in changed.problems if column in what] == [index]


# --- the log: calls -------------------------------------------------------------------------------

SERVICE = "service:ci"
WORKER = [SERVICE, "agent:worker"]
HELPER = [*WORKER, "agent:helper"]


def call_of_alice(log: Log) -> tuple[Log, int]:
    bare = log.with_outcomes_of()
    return bare, bare.call("user:alice", "worker")


def test_a_call_that_says_the_same_again_is_the_twin(log):
    bare, index = call_of_alice(log)
    assert bare.calling(index, "worker", WORKER).problems == []


def test_a_call_in_bobs_name_under_bobs_chain_is_bobs(log):
    """The worker was lent that as well: it is what he may say, wherever he says it."""
    bare, _index = call_of_alice(log)
    index = bare.call("user:bob", "worker")
    same = bare.sha256("user:bob", "worker")
    assert bare.calling(index, "worker", WORKER, chain_sha256=same).problems == []


OTHERWISE: dict[str, tuple[Callable[[Log], dict[str, Any]], list[str], str]] = {
    "another principal": (lambda _log: {"principal": "user:bob"}, WORKER, "another principal"),
    "its own name": (lambda _log: {"principal": "agent:worker"}, WORKER, "another principal"),
    "bob's chain": (
        lambda log: {"chain_sha256": log.sha256("user:bob", "worker")},
        WORKER,
        "no entry before it keeps",  # it is lent later
    ),
    "a chain that the helper holds": (
        lambda log: {"chain_sha256": log.sha256("user:alice", "helper")},
        HELPER,
        "no entry before it keeps",
    ),
    "no chain": (lambda _log: {"chain_sha256": None}, [], "a principal that no chain names"),
    "a chain of nobody's": (
        lambda _log: {"chain_sha256": "0" * 64},
        WORKER,
        "no entry before it keeps",
    ),
    "another task": (lambda _log: {"task_id": "of user:bob"}, WORKER, "another task"),
    "no task": (lambda _log: {"task_id": None}, WORKER, "another task"),
    "actors that were not asked": (lambda _log: {}, HELPER, "does not have its call digest"),
    "no actors": (lambda _log: {}, [], "does not have its call digest"),
    "the actors in another order": (lambda _log: {}, WORKER[::-1], "its call digest"),
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_a_call_that_is_not_what_its_chain_says_is_found(log, how):
    said, actors, what = OTHERWISE[how]
    bare, index = call_of_alice(log)
    changed = bare.calling(index, "worker", actors, **said(bare))
    ((place, found),) = changed.problems
    assert place == index
    assert what in found


# --- the log: denied calls under a delegation that was refused ------------------------------------


def refused_of(log: Log, chain: Any, principal: str = "user:alice") -> Log:
    """Have a denied call name ``chain`` as refused, in place of the chain that it was under."""
    denied = log.call("user:alice", "worker", "deny")
    said = {"principal": principal, "refused_chain": chain, "task_id": "of user:alice"}
    return log.calling(denied, "worker", [], chain_sha256=None, token_jti=None, **said)


def alices(log: Log) -> Any:
    return log.entries[log.delegation("user:alice", "worker")].members["chain"]


def spoilt(how: str, log: Log) -> Any:
    return SPOILT[how](log, alices(log))


def test_a_refused_delegation_proves_the_principal_or_nothing_does(log):
    assert refused_of(log, alices(log)).problems == []
    assert refused_of(log, None).problems == []


REFUSED: dict[str, tuple[Callable[[Log], Any], str, str]] = {
    "bob's": (bobs, "user:alice", "is of another principal"),
    "alice's, in bob's name": (alices, "user:bob", "is of another principal"),
    "claimed for another agent": (lambda _log: None, "agent:helper", "no name of a principal"),
    "a number": (lambda _log: 5, "user:alice", "is a chain"),
    **{
        how: (partial(spoilt, how), "user:alice", "")
        for how in SPOILT
        if how not in ("no chain", "the last hop is gone", "a text")
    },
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_refused_delegation_that_does_not_hold_is_found(log, how):
    chain, principal, what = REFUSED[how]
    changed = refused_of(log, chain(log), principal)
    ((place, found),) = changed.problems
    assert place == log.call("user:alice", "worker", "deny")
    assert what in found


@pytest.mark.parametrize("sha256", ["of the chain", None])
def test_no_call_that_may_run_has_a_refused_delegation(log, sha256):
    bare, index = call_of_alice(log)
    said = {} if sha256 else {"chain_sha256": None}
    changed = bare.calling(
        index, "worker", WORKER if sha256 else [], refused_chain=alices(log), **said
    )
    assert [place for place, what in changed.problems if "refused" in what] == [index]


LATER: dict[str, tuple[str, str, dict[str, Any], list[str], str]] = {
    "bob's call under alice's chain": (
        "user:bob",
        "worker",
        {"chain": ("user:alice", "worker")},
        WORKER,
        "its chain is of another principal, or ends with another agent",
    ),
    "bob's call under alice's chain, in her name": (
        "user:bob",
        "worker",
        {"chain": ("user:alice", "worker"), "principal": "user:alice"},
        WORKER,
        "its chain is for another task",
    ),
    "the helper under the worker's chain": (
        "user:bob",
        "helper",
        {"chain": ("user:bob", "worker")},
        WORKER,
        "ends with another agent",
    ),
    "the worker under the helper's chain": (
        "user:bob",
        "worker",
        {"chain": ("user:alice", "helper")},
        HELPER,
        "ends with another agent",
    ),
    "another instance's chain": (
        "user:carol",
        "worker",
        {"chain": ("user:bob", "worker"), "principal": "user:bob"},
        WORKER,
        "ends with another agent",
    ),
    "a robot in somebody's name": (
        "agent:robot",
        "robot",
        {"chain": ("user:alice", "worker"), "principal": "user:alice"},
        WORKER,
        "ends with another agent",
    ),
}


@pytest.mark.parametrize("how", LATER)
def test_a_call_under_a_chain_of_others_is_found(log, how):
    principal, agent, said, actors, what = LATER[how]
    said = dict(said)
    bare = log.with_outcomes_of()
    index = bare.call(principal, agent)
    signer = bare.keys["second"] if principal == "user:carol" else None
    chain_sha256 = bare.sha256(*said.pop("chain"))
    changed = bare.calling(index, agent, actors, signer=signer, chain_sha256=chain_sha256, **said)
    found = dict(changed.problems)
    assert found.keys() == {index}
    assert what in found[index]


def test_a_denied_call_is_held_to_the_same(log):
    """A refusal that was never asked for is a lie about somebody, too."""
    bare = log.with_outcomes_of()
    index = bare.call("user:alice", "worker", "deny")
    assert bare.calling(index, "worker", WORKER).problems == []
    ((place, _what),) = bare.calling(index, "worker", WORKER, principal="user:bob").problems
    assert place == index


@pytest.mark.parametrize(
    ("seconds", "what"),
    [(30, None), (61, "it has expired"), (3000, "it has expired"), (-2, "not valid yet")],
)
def test_a_call_at_another_time_than_its_chain_counts(log, seconds, what):
    bare, index = call_of_alice(log)
    moment = datetime.fromisoformat(bare.entries[index].at) + timedelta(seconds=seconds)
    changed = bare.calling(
        index, "worker", WORKER, at=timestamp(moment), issued_at=timestamp(moment)
    )
    found = [found for place, found in changed.problems if place == index]
    if what is None:
        assert found == []
    else:
        assert what in found[0] or "no credential" in found[0]


def test_another_agents_signature(log):
    bare, index = call_of_alice(log)
    for name in ("helper", "second", "robot"):
        forged = bare.calling(index, "worker", WORKER, signer=bare.keys[name])
        ((place, _what),) = forged.problems
        assert place == index


# --- the log: calls that were counted -------------------------------------------------------------


def again(log: Log, index: int, number: int) -> StoredEntry:
    """A further call like one that is there, with an id of its own."""
    fresh = log.calling(
        index,
        "worker",
        ["spiffe://ephemeral.invalid", "agent:worker"],
        signer=log.keys["second"],
        invocation_id=f"{number:032x}",
    )
    return replace(fresh.stored[index], attachments=())


@pytest.mark.parametrize("status", ["ok", "error", "unknown", "not_run"])
def test_a_call_that_has_run_is_no_replay_that_nobody_counts(log, status):
    """A replay is no call: by the log's word, a guard could hide the calls over the limit."""
    index = log.call("user:carol", "worker")
    call = log.entries[index]
    (ended,) = [
        place
        for place, one in enumerate(log.entries)
        if one.kind == "outcome" and one.invocation_sha256 == call.invocation_sha256
    ]
    payload = outcome_statement(
        call.invocation_sha256,
        authorization=LogPlace(0, index),
        status=status,
        result=None,
        result_type=None,
        error_type=None,
        started_at=None,
        ended_at=log.entries[ended].at,
    )
    members: Any = loads_object(log.stored[ended].body)
    members["statement"] = dsse.seal(payload, log.keys["second"]).as_json()
    about = log.stored[ended].summary._replace(status=status)
    counted = log.with_entry(ended, members, about).without_data(ended)
    assert counted.problems == []
    replay: Any = {**loads_object(log.stored[index].body), "replay_of": "0" * 32}
    uncounted = counted.with_entry(index, replay)
    assert [place for place, _what in uncounted.problems] == [ended] * (status != "not_run")


def test_calls_are_counted_by_the_verifier(log):
    bare = log.with_outcomes_of()
    index = bare.call("user:carol", "worker")
    assert bare.problems == []
    more = replace(bare, stored=(*bare.stored, *(again(bare, index, n) for n in range(3))))
    what = "the delegation allows 2 calls, and all of them are made"
    assert more.problems == [(len(bare.stored) + n, what) for n in range(3)]
    denied = bare.call("user:carol", "worker", "deny")
    assert bare.without(denied).problems == []  # it was none
