"""Builds ``Restrictions`` from the entries of the log, entry by entry.

The caller first verifies that the log's key has signed the entries (``storage/ledger.py``); the
builder looks at no checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Final

from agentguard.audit import approval_checks, logouts, statements, surrenders
from agentguard.audit.calls import read_authorization, read_outcome
from agentguard.audit.entry import Entry, parse_entry, parse_time
from agentguard.audit.journal_names import NAME_SIZE
from agentguard.audit.restrictions import (
    EXPIRY_SLACK,
    REQUEST_KEPT,
    CallCount,
    CallLimit,
    PendingRequest,
    ReadPlace,
    Restrictions,
    UnsettledCall,
    UseCount,
)
from agentguard.audit.statements import AdminStatement
from agentguard.delegation import grant
from agentguard.errors import AgentguardError
from agentguard.identity.trust import TrustDocument, TrustedKey

_AT: Final = re.compile(rb'"at":"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z)"')
_ALWAYS: Final = tuple(
    f'"kind":"{kind}"'.encode()
    for kind in (
        "revocation",
        "logout",
        "surrender",
        "freeze",
        "request",
        "request_end",
        "delegation",
        "resolution",
        "erasure",
    )
)
_AUTHORIZATION: Final = b'"kind":"call"'
_OUTCOME: Final = b'"kind":"outcome"'
_UNAPPROVED: Final = b'"approvals":[]'
_JOURNAL: Final = b'"journal":"'


class RestrictionsBuilder:
    """Adds entries to ``Restrictions``; the property ``restrictions`` is the result so far."""

    def __init__(self, start: Restrictions, trust: TrustDocument) -> None:
        self._base = start
        self._trust = trust
        # for a denial every key is valid, also a key that was compromised since
        self._trust_for_denials = replace(
            trust,
            keys=tuple(TrustedKey(trusted.use, trusted.key, 0) for trusted in trust.keys),
        )
        self._newest = start.newest.encode()
        self._used = dict(start.used)
        self._requests = dict(start.requests)
        self._chains = dict(start.chains)
        self._calls = dict(start.calls)
        self._unsettled = dict(start.unsettled)
        self._unran = set(start.unran)
        self._erased = set(start.erased)
        self._new_names: set[bytes] = set()
        self._read = dict(start.read)
        self._malformed = start.malformed

    def place(self, shard: int) -> ReadPlace:
        """Return how far a shard has been read."""
        return self._read.get(shard, ReadPlace())

    def set_place(self, shard: int, place: ReadPlace) -> None:
        """Record how far a shard has been read."""
        self._read[shard] = place

    def add(self, body: bytes) -> None:
        """Add one entry.

        An administrator's statement with an invalid signature is ignored; ``audit verify`` reports
        it. A malformed entry, which only a holder of the log's key can have written, is ignored and
        counted.
        """
        at = _AT.search(body)
        if at is not None:
            self._newest = max(self._newest, at[1])
        if not self._matters(body):
            return
        try:
            self._add(parse_entry(body))
        except AgentguardError:
            self._malformed += 1

    def _matters(self, body: bytes) -> bool:
        """Return whether an entry may change the restrictions; most entries are never parsed."""
        if _AUTHORIZATION in body:
            return bool(self._chains) or _UNAPPROVED not in body or _JOURNAL in body
        if _OUTCOME in body:
            return bool(self._unsettled)
        return any(kind in body for kind in _ALWAYS)

    def _add(self, entry: Entry) -> None:
        match entry.kind:
            case "call":
                self._authorization(entry)
            case "outcome":
                self._outcome(entry)
            case "request" | "request_end":
                self._request(entry)
            case "delegation":
                self._delegation(entry)
            case "logout":
                logout = logouts.read(entry)
                self._base = self._base.with_logout(logout, parse_time(entry.at))
            case "surrender":
                given_up = surrenders.check(entry, self._trust_for_denials, parse_time(entry.at))
                self._base = self._base.with_surrendered(given_up.jti, given_up.expires_at)
            case "revocation" | "freeze" | "resolution" | "erasure":
                self._admin_statement(entry)

    def _admin_statement(self, entry: Entry) -> None:
        at = parse_time(entry.at)
        if entry.kind == "revocation":
            name = statements.check_revocation(entry, self._trust_for_denials, at)
            self._base = self._base.with_revoked(name)
        elif entry.kind == "freeze":
            sequence, frozen = statements.check_freeze(entry, self._trust_for_denials, at)
            if not frozen:
                statements.check_freeze(entry, self._trust, at)
            self._base = self._base.with_freeze(sequence, frozen=frozen)
        else:
            self._resolve_or_erase(statements.check_admin_statement(entry, self._trust, at))

    def _resolve_or_erase(self, statement: AdminStatement) -> None:
        if statement.ran is None:
            self._erased.add(statement.call.invocation_id)
            return
        call = self._unsettled.pop(statement.call.invocation_sha256, None)
        if not statement.ran:  # the resolution's shard may be read before the call's shard
            self._unran.add(statement.call.invocation_sha256)
        elif call is not None:
            self._add_name_of(call)

    def _request(self, entry: Entry) -> None:
        if entry.kind == "request":
            request, end = approval_checks.read_request(entry), None
        else:
            request, end = approval_checks.read_request_end(entry)
        request_id = request.digests.request_id
        known = self._requests.get(request_id)  # the end's shard may be read before the request's
        self._requests[request_id] = PendingRequest(
            request.digests.displayed_sha256,
            request.expires_at,
            end if known is None else end or known.end,
        )

    def _delegation(self, entry: Entry) -> None:
        hops, _credentials = statements.chain_tokens(entry)
        grants = [grant.read(token) for token in hops]
        limits = tuple(
            CallLimit(hop.jti, hop.expires_at) for hop in grants if hop.max_calls is not None
        )
        if limits:
            self._chains[statements.chain_digest(entry)] = limits

    def _authorization(self, entry: Entry) -> None:
        call = read_authorization(entry)
        answers = approval_checks.read_answers(entry)
        ids = {(answer.request_id, answer.expires_at) for answer in answers}
        if call.code == "approval.rejected":
            self._use(ids)  # people do not see the request again, even if it is in the store again
        if not call.allowed or "replay_of" in entry.members:
            return  # no tool ran: at most, the agent got an earlier result again
        self._use(ids | {(answer.approval_id, answer.expires_at) for answer in answers})
        chain = call.chain_sha256 if call.chain_sha256 in self._chains else None
        name = entry.members.get("journal")
        if chain is not None:
            self._count(chain)
        is_journalled = isinstance(name, str) and call.invocation_sha256 not in self._unran
        if chain is not None or is_journalled:
            short = name[: 2 * NAME_SIZE] if isinstance(name, str) and is_journalled else None
            self._unsettled[call.invocation_sha256] = UnsettledCall(
                str(call.invocation_id), chain, short
            )

    def _use(self, ids: AbstractSet[tuple[str, int]]) -> None:
        for key, expires_at in ids:
            times = self._used[key].times if key in self._used else 0
            self._used[key] = UseCount(times + 1, expires_at)

    def _outcome(self, entry: Entry) -> None:
        outcome = read_outcome(entry)
        call = self._unsettled.pop(outcome.invocation_sha256, None)
        if call is None:
            return
        is_suspended = outcome.predicate.get("suspended") is True
        if outcome.status in ("ok", "unknown") and not is_suspended:
            self._add_name_of(call)

    def _add_name_of(self, call: UnsettledCall) -> None:
        if call.name is not None:
            self._new_names.add(bytes.fromhex(call.name))

    def _count(self, chain: str) -> None:
        for jti, expires_at in self._chains.get(chain, ()):
            before = self._calls[jti].calls if jti in self._calls else 0
            self._calls[jti] = CallCount(before + 1, expires_at)

    @property
    def restrictions(self) -> Restrictions:
        """The restrictions so far, without what has expired for more than a day."""
        newest = self._newest.decode()
        past = parse_time(newest) - EXPIRY_SLACK
        chains = {
            sha256: limits
            for sha256, limits in self._chains.items()
            if any(limit.expires_at >= past for limit in limits)
        }
        names = self._base.names
        return self._base._replace(
            newest=newest,
            used={key: one for key, one in self._used.items() if one.expires_at >= past},
            requests={
                key: one for key, one in self._requests.items() if self._keeps(key, one, past)
            },
            chains=chains,
            calls={jti: one for jti, one in self._calls.items() if one.expires_at >= past},
            unsettled=dict(self._still_open(chains)),
            unran=frozenset(self._unran),
            erased=frozenset(self._erased),
            names=names._replace(added=names.added | self._new_names) if self._new_names else names,
            read=dict(self._read),
            malformed=self._malformed,
        ).without_ended()

    def _keeps(self, request_id: str, request: PendingRequest, past: int) -> bool:
        """Whether a request stays: for long, where it has expired and nobody has said so yet."""
        is_over = request.end is not None or request_id in self._used
        return request.expires_at >= (past if is_over else past + EXPIRY_SLACK - REQUEST_KEPT)

    def _still_open(self, chains: Mapping[str, object]) -> Iterator[tuple[str, UnsettledCall]]:
        for sha256, call in self._unsettled.items():
            if call.name is not None or call.chain in chains:
                yield sha256, call
