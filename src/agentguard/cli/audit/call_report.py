"""The story of one call, read from the log: who, for whom, what, why, and what became of it.

The signatures, the credential and what stands beside the log under a commitment are checked on the
way; what does not hold is a problem of the story. Whether the log around it is whole is
``audit verify``'s question. Which call is meant stands in ``lookup.py``, how a story looks in
``show.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from agentguard.approvals.roster import Answer
from agentguard.audit import approvals, statements
from agentguard.audit.calls import (
    Authorization,
    Commitments,
    Outcome,
    read_authorization,
    read_outcome,
)
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.entry import Entry, parse_time
from agentguard.audit.find import LocatedEntry, entries_of_call, find_delegation, find_roster
from agentguard.audit.log import LogReader
from agentguard.audit.statements import AdminStatement, Credentials
from agentguard.cli.audit import lookup, phrases
from agentguard.delegation.chain import Chain
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.storage import sqlite

_OUTCOME_MEMBERS: Final = ("result_type", "error_type", "started_at", "ended_at", "replay_of")


class Noted(NamedTuple):
    """What the admin key has signed of a call, and the entry that holds it."""

    said: AdminStatement
    found: LocatedEntry

    def as_json(self) -> dict[str, JSON]:
        """Return the place, the time, the note and, of a resolution, whether the call ran."""
        place: dict[str, JSON] = {"shard": self.found.shard, "index": self.found.index}
        ran: dict[str, JSON] = {} if self.said.ran is None else {"ran": self.said.ran}
        return {**place, "at": self.found.entry.at, "note": self.said.note, **ran}


@dataclass(slots=True)
class Story:
    """One call: its authorization and, once there are any, its outcome and the admin's word.

    ``credential`` is None where it does not verify, ``head`` (the newest checkpoint of its shard)
    likewise, ``chain`` where it does not or the agent acted by itself. ``attachments`` holds what
    stands beside the log, decoded, by role. ``problems`` says what does not hold.
    """

    shard: int
    index: int
    entry: Entry
    call: Authorization
    credential: Credential | None = None
    chain: Chain | None = None
    approved: tuple[Answer, ...] = ()
    outcome_entry: LocatedEntry | None = None
    outcome: Outcome | None = None
    resolution: Noted | None = None
    erasure: Noted | None = None
    head: Checkpoint | None = None
    attachments: dict[str, JSON] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def commitments(self) -> Commitments:
        """What the call and its outcome commit to."""
        return {**self.call.commitments, **(self.outcome.commitments if self.outcome else {})}

    def as_json(self) -> dict[str, JSON]:
        """Return what ``audit show --json`` prints."""
        call, members = self.call, self.entry.members
        return {
            "index": self.index,
            "shard": self.shard,
            "at": self.entry.at,
            "invocation_id": call.invocation_id,
            "agent": call.agent,
            "principal": call.principal,
            "credential": _credential_json(self.credential),
            "delegation": _chain_json(self.chain),
            "requirements": members["requirements"],
            "approvals": [phrases.answer_json(answer) for answer in self.approved],
            "tool": call.predicate["tool"],
            "arguments": self.attachments.get("arguments"),
            "input": self.attachments.get("input"),
            "resource": call.predicate.get("resource"),
            "task_id": call.predicate.get("task_id"),
            "traceparent": call.predicate.get("traceparent"),
            "decision": call.decision,
            "mode": call.mode,
            "enforced": call.enforced,
            "code": call.code,
            "reasons": [*call.reasons],
            "engine": members["engine"],
            "policy_sha256": members["policy_sha256"],
            "evaluation": call.evaluation.as_json() if call.evaluation else None,
            "config_sha256": members["config_sha256"],
            "outcome": self._outcome_json(),
            "problems": [*self.problems],
            "resolution": self.resolution.as_json() if self.resolution is not None else None,
            "erasure": self.erasure.as_json() if self.erasure is not None else None,
            "checkpoint": _head_json(self.head),
        }

    def _outcome_json(self) -> JSON:
        if self.outcome is None or self.outcome_entry is None:
            return None
        said = self.outcome.predicate
        return {
            "index": self.outcome_entry.index,
            "status": self.outcome.status,
            "result": self.attachments.get("result"),
            **{name: said.get(name) for name in _OUTCOME_MEMBERS},
        }


def tell(reader: LogReader, found: LocatedEntry, trust: TrustDocument) -> Story:
    """Tell the story of the call whose authorization was found, and check it.

    Raises ``DecodeError`` for an entry that can't be read, and ``StorageError``.
    """
    call = read_authorization(found.entry)
    story = Story(found.shard, found.index, found.entry, call)
    _Teller(reader, trust, story).tell()
    return story


@dataclass(slots=True)
class _Teller:
    """Adds to a story what belongs to it, each part checked."""

    reader: LogReader
    trust: TrustDocument
    story: Story

    def tell(self) -> None:
        story = self.story
        story.credential = issued = self._credential()
        with self._problem("the delegation does not hold"):
            story.chain = self._chain()
        if issued is not None and (story.chain is not None) is (
            story.call.chain_sha256 is not None
        ):
            with self._problem("the invocation does not hold"):
                at = parse_time(story.entry.at)
                statements.check_call(story.call, issued, story.chain, at)
        if issued is not None:
            with self._problem("the approvals do not hold"):
                story.approved = self._approved(issued)
        if story.call.allowed:
            self._outcome()
        self._attach(story.index, story.call.commitments)
        if story.call.allowed and story.outcome is None:
            story.resolution = self._noted("resolution")
        committed = [role for role, said in story.commitments().items() if said is not None]
        if not set(committed) <= story.attachments.keys():
            story.erasure = self._noted("erasure")
        with self._problem("the newest checkpoint does not hold"):
            story.head = self._head()

    def _credential(self) -> Credential | None:
        call, at = self.story.call, parse_time(self.story.entry.at)
        newest: AgentguardError | None = None
        for found in lookup.credentials(self.reader, call, self._found()):
            known = Credentials()
            try:
                token = str(found.entry.members["credential"])
                known.add(credential.verify(token, self.trust, at=parse_time(found.entry.at)))
                return known.of_call(call, at)
            except (DecodeError, VerificationError) as error:
                newest = newest or error
        if newest is None:
            self.story.problems.append("no credential of this agent stands before the call")
        else:
            self.story.problems.append(f"the credential does not hold: {newest}")
        return None

    def _chain(self) -> Chain | None:
        story = self.story
        call = story.call
        if call.chain_sha256 is None:
            return None
        found = find_delegation(self.reader, call, story.shard, story.index)
        if found is None:
            raise VerificationError("no entry before the call keeps its chain")
        return statements.check_delegation(found.entry, self.trust, parse_time(found.entry.at))

    def _approved(self, issued: Credential) -> tuple[Answer, ...]:
        """Return the answers on which the call rests, against the roster of their day."""
        story, people = self.story, None
        named = approvals.roster_digest_of_call(story.entry)
        if named is not None:
            found = find_roster(self.reader, named, story.shard, story.index)
            if found is None:
                raise VerificationError("no entry before the call states its roster")
            at = parse_time(found.entry.at)
            people = approvals.check_roster(found.entry, self.trust, at).roster
        at = parse_time(story.entry.at)
        return approvals.check_approvals(story.call, story.entry, people, issued, at)

    def _outcome(self) -> None:
        story = self.story
        for found in self._belonging("outcome", [story.shard], after=story.index)[:1]:
            story.outcome_entry = found
            story.outcome = outcome = read_outcome(found.entry)
            with self._problem("the outcome does not hold"):
                statements.check_place(outcome, story.shard, story.index)
                if story.credential is not None:  # without one, that is a problem already
                    statements.check_signed(outcome.envelope, story.credential)
            self._attach(found.index, outcome.commitments)

    def _noted(self, kind: str) -> Noted | None:
        """Return the newest resolution or erasure of the call that the admin key has signed."""
        noted: list[Noted] = []
        for found in self._belonging(kind, self.reader.shards()):
            with self._problem(f"the {kind} at {found.shard}/{found.index} does not hold"):
                at = parse_time(found.entry.at)
                said = statements.check_admin_statement(found.entry, self.trust, at)
                if said.is_of(self.story.shard, self.story.index, self.story.call):
                    noted.append(Noted(said, found))
        return max(noted, key=lambda one: one.found.entry.at, default=None)

    def _head(self) -> Checkpoint:
        story = self.story
        note = self.reader.checkpoint(story.shard)
        if note is None:
            raise VerificationError("there is none")
        origin = self.trust.origin(story.shard)
        head, _key = statements.check_checkpoint(note, self.trust, origin)
        if head.size <= story.index:
            raise VerificationError(f"it covers {head.size} entries, and not this one")
        return head

    def _attach(self, index: int, commitments: Commitments) -> None:
        """Take what stands beside an entry into the story, if it is what the entry commits to."""
        stored = self.reader.entry(self.story.shard, index)
        for beside in stored.attachments if stored is not None else ():
            try:
                statements.check_attachments([beside], commitments)
                data = canonical.loads(beside.data, limit=sqlite.MAX_LENGTH)
            except VerificationError:
                self.story.problems.append(f"the {beside.role} kept beside the log were changed")
            except DecodeError as error:
                what = f"the {beside.role} kept beside the log are no JSON: {error}"
                self.story.problems.append(what)
            else:
                self.story.attachments[beside.role] = data

    def _belonging(
        self, kind: str, shards: Sequence[int], *, after: int = -1
    ) -> list[LocatedEntry]:
        return entries_of_call(self.reader, kind, self.story.call, shards, after=after)

    def _found(self) -> LocatedEntry:
        return LocatedEntry(self.story.shard, self.story.index, self.story.entry)

    @contextmanager
    def _problem(self, what: str) -> Iterator[None]:
        """Make what is raised below a problem of the story."""
        try:
            yield
        except (DecodeError, VerificationError) as error:
            self.story.problems.append(f"{what}: {error}")


def _credential_json(held: Credential | None) -> JSON:
    if held is None:
        return None
    return {
        "type": held.profile.type,
        "owner": held.profile.owner,
        "version": held.profile.version,
        "issued_at": held.issued_at,
        "expires_at": held.expires_at,
        "jti": held.jti,
    }


def _chain_json(chain: Chain | None) -> JSON:
    if chain is None:
        return None
    hops: list[JSON] = [hop.grant.claims() for hop in chain.hops]
    return {"sha256": chain.sha256, "members": list(chain.members), "hops": hops}


def _head_json(head: Checkpoint | None) -> JSON:
    if head is None:
        return None
    return {"origin": head.origin, "size": head.size, "root": head.root.hex()}
