"""What the entries of a log say that decides later calls, gathered entry by entry.

``Standing`` is the result for all shards: who is revoked, whether all is frozen, which approvals
were used, which requests wait, how many calls were made under a limit, which calls must not be made
twice, and the newest time. ``Gathering`` adds entries to it. Whether an entry is the one that the
log's key has signed is for the caller to find out first (``storage/ledger.py``): nothing here looks
at a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from types import MappingProxyType
from typing import Final, NamedTuple

from agentguard.audit import approvals, statements
from agentguard.audit.calls import read_authorization, read_outcome
from agentguard.audit.entry import Entry, parse_entry, parse_time
from agentguard.audit.statements import Administered
from agentguard.delegation import grant
from agentguard.errors import AgentguardError
from agentguard.identity.trust import TrustDocument, TrustedKey

BEGINNING: Final = "1970-01-01T00:00:00.000000Z"
"""The time of a log without entries."""

NAME_SIZE: Final = 12
"""Bytes of a journalled call's name that are kept."""

_SLACK: Final = 24 * 3600
"""Seconds for which something is kept after it has expired: a process may have a slow clock."""

_LAST_SEQUENCE: Final = 2**48
"""No freeze has a higher number: in milliseconds since 1970 it is the year 10889."""

_AT: Final = re.compile(rb'"at":"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z)"')
_ALWAYS: Final = tuple(
    f'"kind":"{kind}"'.encode()
    for kind in ("revocation", "freeze", "request", "delegation", "resolution", "erasure")
)
_AUTHORIZATION: Final = b'"kind":"authorization"'
_OUTCOME: Final = b'"kind":"outcome"'
_UNAPPROVED: Final = b'"approvals":[]'
_JOURNAL: Final = b'"journal":"'


class Place(NamedTuple):
    """How far a shard was read: the number of entries, and the peaks of their tree."""

    size: int = 0
    peaks: bytes = b""


class Used(NamedTuple):
    """How often the log has a call on an approval or a request, and when that expires."""

    times: int
    expires_at: int


class Waiting(NamedTuple):
    """A request as it is on record: the digest of what was shown, and when the request expires."""

    displayed_sha256: str
    expires_at: int


class Counted(NamedTuple):
    """How many calls the log has under a hop that allows a number of them, and the hop's end."""

    calls: int
    expires_at: int


class Limit(NamedTuple):
    """A hop that allows a number of calls, by its ``jti``, and when the hop expires."""

    jti: str
    expires_at: int


class OpenCall(NamedTuple):
    """An allowed call without an outcome, where it is counted or journalled."""

    invocation_id: str
    chain: str | None
    name: str | None


class Names(NamedTuple):
    """The names of journalled calls that have run or may have: sorted, in ``NAME_SIZE`` bytes each.

    ``added`` are those that are not sorted in yet.
    """

    sorted: bytes = b""
    added: frozenset[bytes] = frozenset()

    def __contains__(self, name: object) -> bool:
        """Whether this name, or one that begins alike, is among them."""
        if not isinstance(name, bytes):
            return False
        short = name[:NAME_SIZE]
        at = self._position(short, 0)
        return short in self.added or self.sorted[at : at + NAME_SIZE] == short

    def encode(self) -> bytes:
        """Return all of them, sorted."""
        parts: list[bytes] = []
        end = 0
        for name in sorted(self.added):
            at = self._position(name, end)
            parts.append(self.sorted[end:at])
            if self.sorted[at : at + NAME_SIZE] != name:
                parts.append(name)
            end = at
        return b"".join((*parts, self.sorted[end:]))

    def _position(self, name: bytes, low: int) -> int:
        """Return where a name stands, or would."""
        first, last = low // NAME_SIZE, len(self.sorted) // NAME_SIZE
        while first < last:
            middle = (first + last) // 2
            if self.sorted[middle * NAME_SIZE : (middle + 1) * NAME_SIZE] < name:
                first = middle + 1
            else:
                last = middle
        return first * NAME_SIZE


class Standing(NamedTuple):
    """What the log says so far; ``read`` is how far each shard was read for it.

    ``used`` and ``requests`` go by the ids of approvals and requests, ``chains`` by the digests of
    chains (those alone with a hop that allows a number of calls), ``calls`` by the ids of such
    hops, ``unsettled`` by the digests of invocations. ``unran`` are the invocations of which the
    administrator said that they did not run, ``erased`` the ids of those whose data were erased.
    ``unread`` counts entries that are of no known form.
    """

    revoked: frozenset[str] = frozenset()
    sequence: int = 0
    frozen: bool = False
    newest: str = BEGINNING
    used: Mapping[str, Used] = MappingProxyType({})
    requests: Mapping[str, Waiting] = MappingProxyType({})
    chains: Mapping[str, tuple[Limit, ...]] = MappingProxyType({})
    calls: Mapping[str, Counted] = MappingProxyType({})
    unsettled: Mapping[str, OpenCall] = MappingProxyType({})
    unran: frozenset[str] = frozenset()
    erased: frozenset[str] = frozenset()
    names: Names = Names()
    read: Mapping[int, Place] = MappingProxyType({})
    unread: int = 0

    def with_revoked(self, name: str) -> Standing:
        """Return it with one name more."""
        return self._replace(revoked=self.revoked | {name})

    def with_freeze(self, sequence: int, *, frozen: bool) -> Standing:
        """Return it with a freeze or thaw; an older one changes nothing."""
        if sequence <= self.sequence:
            return self
        return self._replace(sequence=sequence, frozen=frozen)

    def joined(self, other: Standing) -> Standing:
        """Return it with all that another one revokes, erases or freezes, and the later time."""
        both = self._replace(
            revoked=self.revoked | other.revoked,
            erased=self.erased | other.erased,
            newest=max(self.newest, other.newest),
        )
        return both.with_freeze(other.sequence, frozen=other.frozen)

    def with_refusals(self, other: Standing) -> Standing:
        """Return it with what another one revokes, erases, freezes or has used up.

        The other one may be a thief's: it thaws nothing, sets no time and counts no calls. Its
        number counts, which a running process may know, and which the next freeze has to be above;
        but not a number that no administrator can have reached, and no thaw could be above.
        """
        both = self._replace(
            revoked=self.revoked | other.revoked,
            erased=self.erased | other.erased,
            used={**other.used, **self.used},
        )
        if other.sequence <= self.sequence:
            return both
        reached = other.sequence if other.sequence <= _LAST_SEQUENCE else self.sequence + 1
        if self.frozen and not other.frozen:
            reached += 1
        return both._replace(sequence=reached, frozen=self.frozen or other.frozen)

    def refusal(self, names: AbstractSet[str]) -> tuple[str, str] | None:
        """Return why nobody of these names may act; None if they may."""
        if self.frozen:
            return "domain.frozen", "all calls are frozen: agentguard thaw lets them go on"
        if self.revoked.isdisjoint(names):
            return None
        revoked = min(self.revoked & names)
        return "delegation.revoked", f"{revoked} was revoked: whatever goes back to it is denied"

    def begun(self, name: bytes) -> OpenCall | None:
        """Return a journalled call of this name that has no outcome, None for none."""
        wanted = name[:NAME_SIZE].hex()
        return next((call for call in self.unsettled.values() if call.name == wanted), None)

    @property
    def entries(self) -> int:
        """The number of entries that were read."""
        return sum(place.size for place in self.read.values())


class Gathering:
    """A ``Standing`` to which entries are added; ``standing`` is the result so far."""

    def __init__(self, begun: Standing, trust: TrustDocument) -> None:
        self._base = begun
        self._trust = trust
        # to deny, the word of any admin key is enough, also of one that was compromised since
        self._to_deny = replace(
            trust,
            keys=tuple(TrustedKey(known.use, known.key, 0) for known in trust.keys),
        )
        self._newest = begun.newest.encode()
        self._used = dict(begun.used)
        self._requests = dict(begun.requests)
        self._chains = dict(begun.chains)
        self._calls = dict(begun.calls)
        self._unsettled = dict(begun.unsettled)
        self._unran = set(begun.unran)
        self._erased = set(begun.erased)
        self._added: set[bytes] = set()
        self._read = dict(begun.read)
        self._unread = begun.unread

    def place(self, shard: int) -> Place:
        """How far a shard was read."""
        return self._read.get(shard, Place())

    def reached(self, shard: int, place: Place) -> None:
        """Note how far a shard was read."""
        self._read[shard] = place

    def add(self, body: bytes) -> None:
        """Add what an entry says.

        What the administrator has not signed counts for nothing, as ``audit verify`` says; nor does
        an entry of no known form, which nobody but a holder of the log's key can have written.
        """
        at = _AT.search(body)
        if at is not None:
            self._newest = max(self._newest, at[1])
        if not self._matters(body):
            return
        try:
            self._add(parse_entry(body))
        except AgentguardError:
            self._unread += 1

    def _matters(self, body: bytes) -> bool:
        """Whether an entry may say something; most say nothing, and need not be parsed."""
        if _AUTHORIZATION in body:
            return bool(self._chains) or _UNAPPROVED not in body or _JOURNAL in body
        if _OUTCOME in body:
            return bool(self._unsettled)
        return any(kind in body for kind in _ALWAYS)

    def _add(self, parsed: Entry) -> None:
        match parsed.kind:
            case "authorization":
                self._authorization(parsed)
            case "outcome":
                self._outcome(parsed)
            case "request":
                self._request(parsed)
            case "delegation":
                self._delegation(parsed)
            case "revocation" | "freeze" | "resolution" | "erasure":
                self._administered(parsed)

    def _administered(self, parsed: Entry) -> None:
        at = parse_time(parsed.at)
        if parsed.kind == "revocation":
            name = statements.check_revocation(parsed, self._to_deny, at)
            self._base = self._base.with_revoked(name)
        elif parsed.kind == "freeze":
            sequence, frozen = statements.check_freeze(parsed, self._to_deny, at)
            if not frozen:
                statements.check_freeze(parsed, self._trust, at)
            self._base = self._base.with_freeze(sequence, frozen=frozen)
        else:
            self._spoken_of(statements.check_administered(parsed, self._trust, at))

    def _spoken_of(self, said: Administered) -> None:
        if said.ran is None:
            self._erased.add(said.call.invocation_id)
            return
        call = self._unsettled.pop(said.call.invocation_sha256, None)
        if not said.ran:  # it may stand in a shard that is read before the call's
            self._unran.add(said.call.invocation_sha256)
        elif call is not None:
            self._ran(call)

    def _request(self, parsed: Entry) -> None:
        asked = approvals.read_request(parsed)
        expires_at = parsed.members["expires_at"]
        if isinstance(expires_at, int):
            self._requests[asked.request_id] = Waiting(asked.displayed_sha256, expires_at)

    def _delegation(self, parsed: Entry) -> None:
        hops, _credentials = statements.chain_tokens(parsed)
        granted = [grant.read(token) for token in hops]
        limits = tuple(
            Limit(hop.jti, hop.expires_at) for hop in granted if hop.max_calls is not None
        )
        if limits:
            self._chains[statements.chain_digest(parsed)] = limits

    def _authorization(self, parsed: Entry) -> None:
        call = read_authorization(parsed)
        answers = approvals.said_of(parsed)
        ids = {(answer.request_id, answer.expires_at) for answer in answers}
        if call.code == "approval.rejected":
            self._use(ids)  # nobody is asked again, though the request lies there again
        if not call.allowed or "replay_of" in parsed.members:
            return  # no call was made: a result was handed out again, at most
        self._use(ids | {(answer.approval_id, answer.expires_at) for answer in answers})
        chain = call.chain_sha256 if call.chain_sha256 in self._chains else None
        name = parsed.members.get("journal")
        if chain is not None:
            self._count(chain)
        journalled = isinstance(name, str) and call.invocation_sha256 not in self._unran
        if chain is not None or journalled:
            short = name[: 2 * NAME_SIZE] if isinstance(name, str) and journalled else None
            self._unsettled[call.invocation_sha256] = OpenCall(
                str(call.invocation_id), chain, short
            )

    def _use(self, ids: AbstractSet[tuple[str, int]]) -> None:
        for used, expires_at in ids:
            times = self._used[used].times if used in self._used else 0
            self._used[used] = Used(times + 1, expires_at)

    def _outcome(self, parsed: Entry) -> None:
        outcome = read_outcome(parsed)
        call = self._unsettled.pop(outcome.invocation_sha256, None)
        if call is None:
            return
        suspended = outcome.predicate.get("suspended") is True
        if outcome.status in ("ok", "unknown") and not suspended:
            self._ran(call)

    def _ran(self, call: OpenCall) -> None:
        if call.name is not None:
            self._added.add(bytes.fromhex(call.name))

    def _count(self, chain: str) -> None:
        for jti, expires_at in self._chains.get(chain, ()):
            before = self._calls[jti].calls if jti in self._calls else 0
            self._calls[jti] = Counted(before + 1, expires_at)

    @property
    def standing(self) -> Standing:
        """What the log says so far, without what has expired for good."""
        newest = self._newest.decode()
        past = parse_time(newest) - _SLACK
        chains = {
            sha256: limits
            for sha256, limits in self._chains.items()
            if any(limit.expires_at >= past for limit in limits)
        }
        names = self._base.names
        return self._base._replace(
            newest=newest,
            used={key: one for key, one in self._used.items() if one.expires_at >= past},
            requests={key: one for key, one in self._requests.items() if one.expires_at >= past},
            chains=chains,
            calls={jti: one for jti, one in self._calls.items() if one.expires_at >= past},
            unsettled=dict(self._still_open(chains)),
            unran=frozenset(self._unran),
            erased=frozenset(self._erased),
            names=names._replace(added=names.added | self._added) if self._added else names,
            read=dict(self._read),
            unread=self._unread,
        )

    def _still_open(self, chains: Mapping[str, object]) -> Iterator[tuple[str, OpenCall]]:
        for sha256, call in self._unsettled.items():
            if call.name is not None or call.chain in chains:
                yield sha256, call
