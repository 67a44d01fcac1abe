"""Evidence of delegated calls: chains that were edited or exchanged, limits on calls, rotated keys.

The forger is an insider with the log's own key, who signs anew what he has changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from delegated_calls import AGENTS, attempt

from agentguard import Decision, Guard
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.evidence_file import EvidenceFile, LoggedEntry
from agentguard.audit.kinds import parse_entry
from agentguard.audit.state import State
from agentguard.domain import config, rotation
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.canonical import loads_object

PASSPHRASE = b"correct horse battery staple"


@pytest.fixture
def durable(place):
    """The place, with these agents."""
    tables = {**loads_object(place.config.encoded), "agents": AGENTS}
    place.config = config.parse(tables, source="agentguard.toml", base=place.config.base)
    return place


def test_more_calls_than_were_allowed_are_found(durable, monkeypatch):
    """A process that does not count is found out."""
    with durable.open() as one, durable.open() as two:
        lent = one.delegate("user:alice", scope=["read"], max_calls=3)
        agents = [
            one.new_agent("worker").under(lent),
            two.new_agent("worker").under(two.resume(lent.dumps())),
        ]
        tools = [guard.tool(name="t", requires=["read"])(lambda: "ok") for guard in (one, two)]
        found = [attempt(agents[n % 2], tools[n % 2]) for n in range(4)]
        assert found == ["ok", "ok", "ok", "calls.exceeded"]
        assert one.verify().problems == ()
        with monkeypatch.context() as patched:
            patched.setattr(State, "count", lambda *_args: None)
            assert [attempt(agents[n % 2], tools[n % 2]) for n in range(2)] == ["ok", "ok"]
        problems = one.verify().problems
    what = "the delegation allows 3 calls, and all of them are made"
    assert [problem.what for problem in problems] == [what, what]
    assert durable.examine().problems == problems


@dataclass(frozen=True)
class Proofs:
    """Evidence of calls of one log, under one checkpoint: their entries fit one another."""

    trust: TrustDocument
    files: dict[str, EvidenceFile]

    def of(self, name: str) -> EvidenceFile:
        return self.files[name]

    def entry(self, name: str, kind: str) -> LoggedEntry:
        return next(e for e in self.of(name).entries if parse_entry(e.body).kind == kind)

    def refused(self, file: EvidenceFile) -> tuple[str, str]:
        with pytest.raises((DecodeError, VerificationError)) as caught:
            verify_evidence(file.dumps(), self.trust)
        return caught.value.code, str(caught.value)


@pytest.fixture(scope="module")
def proofs() -> Proofs:
    with Guard.ephemeral(lambda _d: Decision.allow(), config={"agents": AGENTS}) as guard:
        worker, helper, robot = (guard.new_agent(n) for n in ("worker", "helper", "robot"))
        read = guard.tool(name="read", requires=["read"])(lambda: "ok")
        ask = guard.tool(name="ask", requires=["read"])(lambda: attempt(helper, read))
        for user in ("user:alice", "user:bob", "user:alice"):
            with guard.delegate(user, scope=["read"], via="service:ci"):
                attempt(worker, ask)
        attempt(robot, read)
        calls = [
            one.summary
            for one in guard.reader().stored()
            if one.summary is not None and one.summary.kind == "call"
        ]
        files: dict[str, EvidenceFile] = {}
        for call in calls:
            name = f"{str(call.agent).split('/')[-2]} for {call.principal}"
            name += ", again" if name in files else ""
            files[name] = EvidenceFile.loads(guard.prove(str(call.invocation_id)))
        return Proofs(guard.trust, files)


ALICES = "worker for user:alice"
ROBOTS = "robot for agent:robot"


def with_entries(file: EvidenceFile, *entries: LoggedEntry) -> EvidenceFile:
    """The file with these entries, in their order."""
    return replace(file, entries=tuple(sorted(entries, key=lambda held: held.proof.index)))


def others(file: EvidenceFile, *kinds: str) -> Iterator[LoggedEntry]:
    return (held for held in file.entries if parse_entry(held.body).kind not in kinds)


def test_the_evidence_of_a_delegated_call_has_its_chain(proofs):
    for name, file in proofs.files.items():
        agent, principal = name.removesuffix(", again").split(" for ")
        proved = verify_evidence(file.dumps(), proofs.trust)
        assert proved.call.principal == principal
        if principal == f"agent:{agent}":
            assert proved.chain is None
            continue
        assert proved.chain is not None
        assert proved.chain.principal == principal
        assert proved.chain.sha256 == proved.call.chain_sha256
        assert proved.chain.leaf.delegatee == proved.credential.uri
        through = ["service:ci", "agent:worker"] + (["agent:helper"] if agent == "helper" else [])
        assert proved.chain.actors == through


def test_without_its_delegation_it_is_incomplete(proofs):
    for name in (ALICES, "helper for user:bob"):
        file = proofs.of(name)
        code, said = proofs.refused(with_entries(file, *others(file, "delegation")))
        assert code == "evidence.incomplete"
        assert "delegation" in said


def test_a_delegation_that_nothing_needs_is_superfluous(proofs):
    robots, chain = proofs.of(ROBOTS), proofs.entry(ALICES, "delegation")
    code, said = proofs.refused(with_entries(robots, *robots.entries, chain))
    assert code == "evidence.superfluous"
    assert "the agent's own authority" in said
    file = proofs.of(ALICES)
    for other in ("helper for user:alice", "worker for user:bob"):
        more = with_entries(file, *file.entries, proofs.entry(other, "delegation"))
        assert proofs.refused(more)[0] == "evidence.superfluous"


@pytest.mark.parametrize("name", ["worker for user:bob", f"{ALICES}, again", ALICES])
def test_another_chain_of_the_same_log_is_refused(proofs, name):
    """Also an earlier one by which she lent the same to the same agent."""
    file, own = proofs.of(name), proofs.entry(name, "delegation")
    for other in proofs.files:
        theirs = None if other == ROBOTS else proofs.entry(other, "delegation")
        if theirs is not None and theirs != own:
            mixed = with_entries(file, *others(file, "delegation"), theirs)
            code, said = proofs.refused(mixed)
            assert code == "evidence.mismatch"
            assert "delegation" in said


def test_another_agents_credential_is_refused(proofs):
    file = proofs.of(ALICES)
    theirs = proofs.entry("helper for user:alice", "identity")
    mixed = with_entries(file, *others(file, "identity"), theirs)
    code, _said = proofs.refused(mixed)
    assert code in {"statement.mismatch", "evidence.mismatch"}


def test_every_edit_of_the_delegation_entry_is_refused_and_located(proofs):
    file, held = proofs.of(ALICES), proofs.entry(ALICES, "delegation")
    verify_evidence(with_entries(file, *file.entries).dumps(), proofs.trust)  # the twin
    members: Any = loads_object(held.body)
    edits: list[Any] = [{**members, "at": "2026-01-01T00:00:00.000000Z"}, {**members, "chain": {}}]
    for part in ("hops", "credentials"):
        for number, token in enumerate(members["chain"][part]):
            spoilt = json.loads(json.dumps(members))
            spoilt["chain"][part][number] = token[:-2] + ("AA" if token[-2:] != "AA" else "BB")
            cut = json.loads(json.dumps(members))
            del cut["chain"][part][number]
            edits += [spoilt, cut]
    for edit in edits:
        forged = held._replace(body=canonical.dumps(edit))
        mixed = with_entries(file, *others(file, "delegation"), forged)
        code, said = proofs.refused(mixed)
        assert code == "proof.invalid"
        assert str(held.proof.index) in said


def test_a_delegation_under_another_place_is_refused(proofs):
    file, held = proofs.of(ALICES), proofs.entry(ALICES, "delegation")
    for index in (held.proof.index - 1, held.proof.index + 1, 0):
        moved = held._replace(proof=replace(held.proof, index=index))
        mixed = with_entries(file, *others(file, "delegation"), moved)
        assert proofs.refused(mixed)[0] in {"proof.invalid", "evidence.malformed"}


def test_nobody_elses_trust_document_believes_it(proofs, world):
    with pytest.raises(VerificationError):
        verify_evidence(proofs.of(ALICES).dumps(), world.trust)


def test_a_delegation_that_outlives_a_rotation_is_proved_with_both_keys(durable):
    """Its first hop is signed with the old issuer's key, the second with the new one."""
    with durable.open() as guard:
        lent = guard.delegate("user:alice", scope=["read"], via="service:ci")
        tool = guard.tool(name="t", requires=["read"])(lambda: "ok")
        rotation.rotate(durable.config, PASSPHRASE, "issuer", now=datetime.now(UTC))
        with lent:
            assert attempt(guard.new_agent("worker"), tool) == "ok"
        with closing(guard.reader()) as reader:
            (invocation_id,) = [
                one.summary.invocation_id
                for one in reader.stored()
                if one.summary is not None and one.summary.kind == "call"
            ]
        data = guard.prove(str(invocation_id))
        proved = verify_evidence(data, guard.trust)
        assert proved.chain is not None
        assert len(proved.chain.issuer_keys) == 2
        file = EvidenceFile.loads(data)
        keys = [held for held in file.entries if parse_entry(held.body).kind == "key"]
        for key in keys:
            entries = [held for held in file.entries if held is not key]
            with pytest.raises(VerificationError) as caught:
                verify_evidence(replace(file, entries=tuple(entries)).dumps(), guard.trust)
            assert caught.value.code in {"evidence.incomplete", "evidence.superfluous"}
        assert guard.verify().problems == ()


def test_a_delegation_begun_under_a_key_that_was_stolen_is_over(durable, clock):
    """Who has the stolen key can date a delegation as he likes: none of it counts any more."""
    with durable.open() as guard:
        lent = guard.delegate("user:alice", scope=["read"])
        stored = lent.dumps()
        tool = guard.tool(name="t", requires=["read"])(lambda: "ok")
        with lent:
            assert attempt(guard.new_agent("worker"), tool) == "ok"
        clock.advance(seconds=5)
        since = clock.now
        rotation.rotate(durable.config, PASSPHRASE, "issuer", now=since, compromised_since=since)
        late = guard.new_agent("worker")
        with lent:
            assert attempt(late, tool) == "key.compromised"
        with pytest.raises(VerificationError) as caught:
            guard.resume(stored)
        assert caught.value.code == "key.compromised"
        with guard.delegate("user:alice", scope=["read"]):
            assert attempt(late, tool) == "ok"


@pytest.mark.parametrize("stolen", [True, False])
def test_an_agent_that_acts_since_before_learns_it_with_its_next_token(durable, clock, stolen):
    with durable.open() as guard:
        tool = guard.tool(name="t", requires=["read"])(lambda: "ok")
        worker = guard.new_agent("worker")
        with guard.delegate("user:alice", scope=["read"], expires_in=86_400):
            assert attempt(worker, tool) == "ok"
            clock.advance(seconds=5)
            since = clock.now
            rotation.rotate(
                durable.config,
                PASSPHRASE,
                "issuer",
                now=since,
                compromised_since=since if stolen else None,
            )
            for _ in range(2):
                clock.advance(seconds=300)
                assert attempt(worker, tool) == ("key.compromised" if stolen else "ok")
        assert guard.verify().problems == ()
