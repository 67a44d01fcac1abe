"""The story of one call, read from the log: who, for whom, what, why, and what became of it.

The signatures, the credential and what stands beside the log under a commitment are checked on the
way; what does not hold is a problem of the story. Whether the log around it is whole is
``audit verify``'s question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from agentguard import canonical
from agentguard.audit import entry
from agentguard.audit.entry import Entry
from agentguard.canonical import JSON
from agentguard.cli import history
from agentguard.cli.history import Authorization, Outcome
from agentguard.envelope import Envelope
from agentguard.errors import AgentguardError, ConfigError
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument
from agentguard.invocation import commitment
from agentguard.ports import LogReader

_NUMBER: Final = re.compile(r"[0-9]{1,18}\Z")


@dataclass(slots=True)
class Story:
    """One call: its authorization and, once there is one, its outcome.

    ``credential`` is None where it does not verify. ``kept`` holds what stands beside the log, by
    role. ``problems`` says what does not hold.
    """

    shard: int
    index: int
    entry: Entry
    call: Authorization
    credential: Credential | None = None
    outcome_index: int | None = None
    outcome: Outcome | None = None
    kept: dict[str, JSON] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

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
            "tool": call.predicate["tool"],
            "arguments": self.kept.get("arguments"),
            "input": self.kept.get("input"),
            "resource": call.predicate.get("resource"),
            "task_id": call.predicate.get("task_id"),
            "traceparent": call.predicate.get("traceparent"),
            "decision": call.decision,
            "code": call.code,
            "reasons": [*call.reasons],
            "engine": members["engine"],
            "policy_sha256": members["policy_sha256"],
            "config_sha256": members["config_sha256"],
            "outcome": self._outcome_json(),
            "problems": [*self.problems],
        }

    def _outcome_json(self) -> JSON:
        if self.outcome is None:
            return None
        said = self.outcome.predicate
        names = ("result_type", "error_type", "started_at", "ended_at")
        return {
            "index": self.outcome_index,
            "status": self.outcome.status,
            "result": self.kept.get("result"),
            **{name: said.get(name) for name in names},
        }


def tell(reader: LogReader, wanted: str, trust: TrustDocument) -> Story | Entry:
    """Find the call that an invocation id, an index or ``SHARD/INDEX`` names, and check it.

    An index may also name the entry of its outcome; an entry that belongs to no call is returned
    as it stands. Raises ``ConfigError`` (``call.unknown``), ``DecodeError`` for an entry that
    can't be read, and ``StorageError``.
    """
    place = _place(wanted)
    if place is None:
        found = _search(reader, trust, lambda _place, call: call.invocation_id == wanted)
    else:
        parsed = _entry(reader, *place)
        if parsed.kind == "authorization":
            history.read_authorization(parsed)  # one that can't be read is an error to report
            found = _search(reader, trust, lambda at, _call: at == place)
        elif parsed.kind == "outcome":
            subject = history.read_outcome(parsed).invocation_sha256
            found = _search(reader, trust, lambda _place, call: call.invocation_sha256 == subject)
        else:
            return parsed
    if found is None:
        message = f"the log holds no call {wanted}: agentguard audit list names them all"
        raise ConfigError(message, code="call.unknown")
    return found


def _place(wanted: str) -> tuple[int, int] | None:
    shard, slash, index = wanted.rpartition("/")
    numbers = (shard if slash else "0", index)
    if all(_NUMBER.match(number) for number in numbers):
        return int(numbers[0]), int(numbers[1])
    return None


def _entry(reader: LogReader, shard: int, index: int) -> Entry:
    for at, body in reader.entries(shard):
        if at == index:
            return entry.parse(body)
    message = f"there is no entry {index} in shard {shard}: agentguard audit list names them all"
    raise ConfigError(message, code="call.unknown")


def _search(
    reader: LogReader,
    trust: TrustDocument,
    matches: Callable[[tuple[int, int], Authorization], bool],
) -> Story | None:
    for shard in reader.shards():
        story: Story | None = None
        tokens: dict[str | None, str] = {}
        for index, body in reader.entries(shard):
            # an entry that can't be read is none of this call; audit verify names it
            with suppress(AgentguardError):
                parsed = entry.parse(body)
                if story is None:
                    story = _begins(shard, index, parsed, tokens, matches)
                else:
                    _ends(story, index, parsed)
            if story is not None and (story.outcome is not None or story.call.decision != "allow"):
                break
        if story is not None:
            _check(story, reader, trust, tokens.get(story.call.agent))
            return story
    return None


def _begins(
    shard: int,
    index: int,
    parsed: Entry,
    tokens: dict[str | None, str],
    matches: Callable[[tuple[int, int], Authorization], bool],
) -> Story | None:
    """Return the story that this entry begins, or remember the credential that it holds."""
    if parsed.kind == "identity":
        token = str(parsed.members["credential"])
        tokens[history.subject_of(token)] = token
    elif parsed.kind == "authorization":
        call = history.read_authorization(parsed)
        if matches((shard, index), call):
            return Story(shard, index, parsed, call)
    return None


def _ends(story: Story, index: int, parsed: Entry) -> None:
    if parsed.kind == "outcome":
        outcome = history.read_outcome(parsed)
        if outcome.invocation_sha256 == story.call.invocation_sha256:
            story.outcome_index, story.outcome = index, outcome


# --- what holds ---------------------------------------------------------------------------------


def _check(story: Story, reader: LogReader, trust: TrustDocument, token: str | None) -> None:
    story.credential = _credential(story, trust, token)
    call = story.call
    if call.sealed.signatures or call.decision == "allow" or call.code != "signature.failed":
        _signature(story, call.sealed, "the invocation's signature")
    commitments = {
        "arguments": call.predicate.get("arguments"),
        "input": story.entry.members["input"],
    }
    _keep(story, reader, story.index, commitments)
    if story.outcome is not None and story.outcome_index is not None:
        _signature(story, story.outcome.sealed, "the outcome's signature")
        said = {"result": story.outcome.predicate.get("result")}
        _keep(story, reader, story.outcome_index, said)


def _credential(story: Story, trust: TrustDocument, token: str | None) -> Credential | None:
    if token is None:
        story.problems.append("no credential of this agent stands before the call")
        return None
    try:
        at = entry.time_of(story.entry.at)
        return credential.verify(token, trust, at=at)
    except AgentguardError as error:
        story.problems.append(f"the credential does not hold: {error}")
    return None


def _signature(story: Story, sealed: Envelope, what: str) -> None:
    if story.credential is None:
        return  # without a key there is nothing to check it with, and that is a problem already
    try:
        sealed.verify(story.credential.key)
    except AgentguardError as error:
        story.problems.append(f"{what} does not hold: {error}")


def _keep(story: Story, reader: LogReader, index: int, commitments: Mapping[str, JSON]) -> None:
    """Take what stands beside an entry into the story, if it is what the entry commits to."""
    for beside in reader.attachments(story.shard, index):
        expected = commitments.get(beside.role)
        if expected is None or commitment(beside.salt, beside.data) != expected:
            story.problems.append(f"the {beside.role} kept beside the log were changed")
            continue
        if len(beside.data) > canonical.MAX_BYTES:
            continue  # the policy's input may be longer than what is ever decoded
        try:
            story.kept[beside.role] = canonical.loads(beside.data)
        except AgentguardError as error:
            story.problems.append(f"the {beside.role} kept beside the log are no JSON: {error}")


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
