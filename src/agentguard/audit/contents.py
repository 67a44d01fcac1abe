"""The verifier of what the entries of a log say: statements, signatures, and their order.

``ContentsVerifier`` reads the entries in the order of the log, and keeps what later entries are
checked against; each kind has its own rule (``kinds/``). ``verify.py`` checks the hashes and the
head, and feeds the entries to this verifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentguard.approvals.roster import Roster
from agentguard.audit import late_calls, statements
from agentguard.audit.ahead import ReadEntry
from agentguard.audit.entry import Content, Entry, Here, Signed, StoredEntry, parse_time
from agentguard.audit.findings import LatestCall, MissingData, OpenCall, Problems
from agentguard.audit.kinds import parse_entry
from agentguard.audit.state import Remade
from agentguard.audit.statements import Credentials
from agentguard.audit.summary import Summary
from agentguard.delegation.chain import Chain
from agentguard.errors import AgentguardError, VerificationError
from agentguard.identity.credential import Credential
from agentguard.identity.login import LogOut
from agentguard.identity.trust import TrustDocument

if TYPE_CHECKING:
    from agentguard.audit.kinds.administration import AdministeredEntry, AdoptionEntry
    from agentguard.audit.kinds.announcements import ConfigEntry
    from agentguard.audit.kinds.requests import RequestDigests, RequestEndEntry, RequestEntry


@dataclass(slots=True)
class ContentsVerifier:
    """Verifies the entries of a log in their order, and collects what is compared at the end.

    Signatures are checked in entries from the time ``since`` on (seconds since the epoch).
    ``problems`` gets what two entries together do wrong. The lists have each entry with its index,
    and what ended an authority with its time.
    """

    trust: TrustDocument
    since: int
    problems: Problems
    invocations: set[bytes] = field(default_factory=set)
    """The digests of all invocations and evaluations so far: each is signed once, and so is the
    outcome of an invocation that is not in the log."""

    latest_time: int = 0
    """The latest time of an entry so far, in seconds since the epoch."""

    log_keys: set[str] = field(default_factory=set)
    """The thumbprints of the log's keys that were announced so far."""

    unvouched: list[int] = field(default_factory=list)
    """The indices of the entries for which no key of the log vouches that counted by then."""

    missing_data: list[MissingData] = field(default_factory=list)
    """The data that are not there; an erasure that comes later may explain it."""

    admin_statements: list[tuple[int, AdministeredEntry]] = field(default_factory=list)
    """The erasures, and the resolutions of calls that were not open by then."""

    requests: dict[str, RequestEntry] = field(default_factory=dict)
    asked_calls: set[str] = field(default_factory=set)
    """The digests of the calls that people were asked to approve."""

    adoptions: list[tuple[int, AdoptionEntry]] = field(default_factory=list)
    values: Remade = field(default_factory=Remade)
    """The map, made again from the entries."""

    changed: int = 0
    """How many entries have made their changes in the map."""

    logouts: list[tuple[LogOut, int]] = field(default_factory=list)
    surrenders: list[tuple[str, int]] = field(default_factory=list)
    latest_calls: dict[str, LatestCall] = field(default_factory=dict)
    open_calls: dict[str, OpenCall] = field(default_factory=dict)
    observed_calls: int = 0
    chains: dict[str, Chain] = field(default_factory=dict)
    rosters: dict[str, Roster] = field(default_factory=dict)
    credentials: Credentials = field(default_factory=Credentials)
    configs: dict[str, ConfigEntry] = field(default_factory=dict)
    policies: set[str | None] = field(default_factory=lambda: {None})
    unauthorised: dict[str | None, int] = field(default_factory=dict)
    """The indices of outcomes without a call, by the id that they give the call."""

    @property
    def checks_signatures(self) -> bool:
        """Whether the newest entry is recent enough for its signatures to be checked."""
        return self.latest_time >= self.since

    def verify(self, read: ReadEntry) -> None:
        """Verify the next entry and the data beside the entry.

        Raises ``DecodeError`` or ``VerificationError``.
        """
        stored, reading = read.stored, read.reading
        entry = parse_entry(stored.body) if reading.entry is None else reading.entry
        at = parse_time(entry.at) if reading.at is None else reading.at
        # an entry with an older time does not revive a key that has ended
        self.latest_time = max(self.latest_time, at)
        if stored.index == 0 and entry.kind != "key":
            raise VerificationError("a log begins with the announcement of a key")
        if entry.kind != "key" and not self._is_vouched():  # the issuer vouches for a key
            self.unvouched.append(stored.index)
        refused = self._change(entry)
        content = entry.check(self, Here(stored.index, at, reading.signer))
        statements.check_attachments(stored.attachments, content.commitments)
        self._note_missing_data(stored, content)
        if stored.summary != content.summary:
            raise VerificationError(_column_problem(stored.summary, content.summary))
        if refused is not None:
            raise refused

    def _change(self, entry: Entry) -> AgentguardError | None:
        """Make the changes of an entry in the map, also of one that does not verify."""
        try:
            self.values.apply(entry.change)
        except AgentguardError as error:
            return error
        self.changed += 1
        return None

    def _is_vouched(self) -> bool:
        """Whether a key of the log counts by now, and the one announced last is not compromised.

        The next key may have signed before its announcement, but then nobody can tell.
        """
        counts, since = False, None
        for trusted in self.trust.keys_for("log"):  # in the order in which they were in force
            if trusted.key.thumbprint in self.log_keys:
                since = trusted.compromised_since
            with suppress(VerificationError):
                trusted.check(self.latest_time)
                counts = True
        return counts and (since is None or self.latest_time < since)

    def finish(self) -> None:
        """Add the problems that show after the last entry."""
        for call in self.open_calls.values():
            if call.invocation_id in self.unauthorised:
                what = f"an outcome of another call has the id of the call at {call.place}"
                self.problems.add(self.unauthorised[call.invocation_id], what)
        latest = self.latest_calls.values()
        for index, what in late_calls.late_calls(latest, self.logouts, self.surrenders):
            self.problems.add(index, what)

    def _note_missing_data(self, stored: StoredEntry, content: Content) -> None:
        if content.call is None:
            return
        present = [attachment.role for attachment in stored.attachments]
        stated = content.commitments.items()
        missing = [role for role, value in stated if value is not None and role not in present]
        if missing:
            self.missing_data.append(MissingData(stored.index, tuple(missing), *content.call))

    # --- what the rules of the kinds ask for -----------------------------------------------------

    def verify_signed(self, entry: Signed) -> None:
        """Check the signature of the issuer or the administrator.

        The key must be valid at the entry's time and at the time of all entries before. Otherwise
        the holder of a compromised key could give an older time.
        """
        entry.verify(self.trust, self.latest_time, signatures=self.checks_signatures)

    def is_unchecked(self, here: Here, issued: Credential) -> bool:
        """Whether the statement in an entry is still to be checked against an instance's key."""
        if not self.checks_signatures:
            return False
        return here.signer is not issued.key and here.signer != issued.key

    def require_announced(self, config_sha256: str, policy_sha256: str | None, mode: str) -> None:
        """Require that entries before have the configuration, the policy and the mode of a call."""
        config = self.configs.get(config_sha256)
        if config is None or policy_sha256 not in self.policies:
            raise VerificationError("a configuration or policy that no entry before it announces")
        if config.mode != mode:
            raise VerificationError("the policy was asked in another mode than is configured")

    def require_first(self, sha256: str, problem: str) -> None:
        """Require that no statement with this digest (hex) stands before."""
        digest = bytes.fromhex(sha256)  # half the size of the text, for many calls
        if digest in self.invocations:
            raise VerificationError(problem)
        self.invocations.add(digest)

    def chain(self, sha256: str) -> Chain:
        """Return the chain of delegation that an entry names."""
        chain = self.chains.get(sha256)
        if chain is None:
            raise VerificationError("a chain of delegation that no entry before it keeps")
        return chain

    def roster(self, sha256: str | None) -> Roster | None:
        """Return the roster that an entry names for its answers; None where it names none."""
        if sha256 is None:
            return None
        roster = self.rosters.get(sha256)
        if roster is None:
            raise VerificationError("a roster of approvers that no entry before it states")
        return roster

    def use_approval(self, request: RequestDigests, here: Here) -> None:
        """Note that the answers to a request let a call run; ``State.close`` lets only one."""
        stated = self.requests.get(request.request_id)
        if stated is not None and stated.digests != request:
            what = "no entry states the request that was approved, as it was approved"
            self.problems.add(here.index, what)

    def end_request(self, end: RequestEndEntry, here: Here) -> None:
        """Note that a request has ended without a call; ``State.close`` lets it end once."""
        stated = self.requests.get(end.request_id)
        if stated is not None and stated.asked != end.asked:
            what = "no entry states the request that ended, as it ended"
            self.problems.add(here.index, what)

    def note_latest(self, chain: Chain, here: Here) -> None:
        """Note the latest call under a chain."""
        before = self.latest_calls.get(chain.sha256)
        names = late_calls.names_of(chain) if before is None else before.names
        self.latest_calls[chain.sha256] = LatestCall(here.at, here.index, names)


def _column_problem(kept: Summary | None, recomputed: Summary) -> str:
    if kept is None:
        return "the columns by which it is searched for are missing"
    changed: Sequence[str] = [
        name for name in Summary._fields if getattr(kept, name) != getattr(recomputed, name)
    ]
    return f"the columns by which it is searched for were changed ({', '.join(changed)})"
