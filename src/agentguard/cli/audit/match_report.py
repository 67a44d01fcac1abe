"""Prints the result of ``agentguard audit match``, for people or as JSON lines.

``match.py`` compares the logs. This file reads the entries of each listed request again, and prints
what both logs say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, NamedTuple, TypeVar

from agentguard.audit.entry import Entry
from agentguard.audit.find import read_entry
from agentguard.audit.kinds.receiver import AtReceiver, ReceivedEntry, RefusedEntry
from agentguard.audit.kinds.running import ProofEntry
from agentguard.audit.log import LogReader
from agentguard.cli.audit.verify_report import unanchored
from agentguard.cli.terminal import screen
from agentguard.cli.terminal.location import TrustedLog, from_home
from agentguard.domain.report import Report
from agentguard.errors import StorageError
from agentguard.identity.credential import agent_alias
from agentguard.signing.canonical import JSON
from agentguard.storage.request_table import Match, MatchState, ReceiptState

E = TypeVar("E", bound=Entry)

_COLUMNS: Final = ("request", "agent's entry", "receiver's", "at", "agent", "tool", "method, URL")
_WORDS: Final[Mapping[MatchState, str]] = {
    "both": "on both sides",
    "differs": "differing",
    "refused": "refused",
    "agent_only": "only at the agent",
    "receiver_only": "only at the receiver",
}
_STYLES: Final[Mapping[MatchState, str]] = {
    "both": "ok",
    "differs": "fail",
    "refused": "warn",
    "agent_only": "warn",
    "receiver_only": "fail",
}
_DIFFERENCES: Final[tuple[MatchState, ...]] = ("differs", "agent_only", "receiver_only")
_LEFT_OUT: Final = {
    "elsewhere": "requests of the agent to other servers are left out",
    "other_domains": "requests of agents of other trust domains are left out",
    "earlier": "requests of one log alone from before the time of --since are left out",
    "dpop": "requests with a DPoP proof are left out: no guard signs such a proof",
    "unrecorded": "refused requests have no entry in the receiver's log",
    "unreadable": "entries can't be read: agentguard audit verify names them",
}
_RECEIPTS: Final[Mapping[ReceiptState, str]] = {
    "unverified": "the agent's log has a receipt, whose signature is not verified",
    "valid": "the receiver has signed a receipt",
    "invalid": "the agent's log has a receipt, whose signature does not hold",
}
_NOT_VERIFIED: Final = (
    "NOT VERIFIED: neither log was verified, so anybody who can write a log may have changed what "
    "it says"
)


class Verified(NamedTuple):
    """The verification of one of the two logs: ``which`` is ``agent`` or ``receiver``."""

    which: str
    log: TrustedLog
    report: Report


class _Request(NamedTuple):
    """A listed request, with the entry that each log has of the request."""

    match: Match
    sent: ProofEntry | None
    at_receiver: AtReceiver | None

    def differences(self) -> dict[str, tuple[str | None, str | None]]:
        """Return by name the parts on which the logs differ: what the agent says comes first."""
        if self.sent is None or self.at_receiver is None:
            return {}
        here = parts_of(self.sent)
        if self.received is not None:
            there = parts_of(self.received)
        else:
            there = {**self.at_receiver.request.as_json(), "agent": self.at_receiver.agent}
        return {name: (here[name], value) for name, value in there.items() if value != here[name]}

    @property
    def entry(self) -> ProofEntry | AtReceiver | None:
        """The entry that says which request it is, and by whom: the agent's, if there is one."""
        return self.at_receiver if self.sent is None else self.sent

    @property
    def received(self) -> ReceivedEntry | None:
        """The entry of an accepted request."""
        return self.at_receiver if isinstance(self.at_receiver, ReceivedEntry) else None

    @property
    def code(self) -> str | None:
        """The reason code of a refused request."""
        return self.at_receiver.code if isinstance(self.at_receiver, RefusedEntry) else None

    @property
    def is_contradicted(self) -> bool:
        """Whether the receiver has signed the answer to a request that its log says it refused."""
        return self.match.state == "differs" and self.code is not None


@dataclass
class MatchReport:
    """The result of a comparison: prints each request as the request comes, and a summary.

    ``verified`` is empty where no log was verified. ``left_out`` has the numbers of ``match.py``.
    ``every`` also lists the requests on which both logs agree. ``verifies_receipts`` says whether
    the keys of receipts are known.
    """

    at_agent: LogReader
    at_receiver: LogReader
    verified: Sequence[Verified]
    left_out: Mapping[str, int]
    every: bool
    verifies_receipts: bool
    counts: Counter[MatchState] = field(default_factory=Counter)
    receipts: Counter[ReceiptState] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """Whether both logs agree, verify and can be read; known once all is printed.

        A receipt whose signature does not hold counts as a difference.
        """
        has_difference = self.receipts["invalid"] or any(self.counts[one] for one in _DIFFERENCES)
        is_whole = all(one.report.ok for one in self.verified) and not self.left_out["unreadable"]
        return is_whole and not has_difference

    def print(self, matches: Iterable[Match], *, json: bool) -> None:
        """Print the requests and the summary; raises ``StorageError`` for an entry that is gone."""
        listed = self._listed(matches)
        if json:
            for request in listed:
                screen.json_line(_as_json(request))
            screen.json_line({"summary": self._summary()})
            for warning in self._warnings():
                screen.warn(warning)
        else:
            first = next(listed, None)
            if first is not None:
                rows = map(_row, chain([first], listed))
                screen.columns(_COLUMNS, rows)
            self._draw_summary()

    def _listed(self, matches: Iterable[Match]) -> Iterator[_Request]:
        for match in matches:
            self.counts[match.state] += 1
            if match.receipt_state is not None:
                self.receipts[match.receipt_state] += 1
            if self.every or match.state != "both" or match.receipt_state == "invalid":
                yield self._request(match)

    def _request(self, match: Match) -> _Request:
        sent = _entry(self.at_agent, match.at_agent, ProofEntry)
        return _Request(match, sent, _entry(self.at_receiver, match.at_receiver, AtReceiver))

    def _summary(self) -> dict[str, JSON]:
        verified: dict[str, JSON] = {"agent": None, "receiver": None}
        verified |= {one.which: one.report.ok for one in self.verified}
        counts: dict[str, JSON] = {state: self.counts[state] for state in _WORDS}
        return {
            "ok": self.ok,
            **counts,
            "receipts": self.receipts.total(),
            "receipts_invalid": self.receipts["invalid"] if self.verifies_receipts else None,
            **self.left_out,
            "verified": verified,
        }

    def _draw_summary(self) -> None:
        for one in self.verified:
            kind, verdict = ("ok", "consistent") if one.report.ok else ("fail", "FAILED")
            entries = screen.count(one.report.entries, "entry", "entries")
            screen.line(
                f"the {one.which}'s log: ",
                screen.styled(kind, verdict),
                f", {entries} in {from_home(one.log.location.state)}",
            )
        for warning in self._warnings():
            screen.line(screen.styled("warn", warning))
        for name, words in _LEFT_OUT.items():
            if self.left_out[name]:
                screen.line(f"{self.left_out[name]:,} {words}")
        if self.receipts:
            requests = screen.count(self.receipts.total(), "request has", "requests have")
            kind, verdict = self._verdict_on_receipts()
            words = f"{requests} a receipt of the server in the agent's log: "
            screen.line(words, screen.styled(kind, verdict))
        counts = ", ".join(f"{self.counts[state]:,} {words}" for state, words in _WORDS.items())
        kind, verdict = ("ok", "the logs agree") if self.ok else ("fail", "FAILED")
        screen.line(screen.styled(kind, verdict), f": {counts}")

    def _verdict_on_receipts(self) -> tuple[str, str]:
        """Return the style and the words of what is known of all receipts."""
        if not self.verifies_receipts:
            return "warn", "not verified, name the server's keys with --receipt-keys"
        if self.receipts["invalid"]:
            return "fail", f"FAILED, the signatures of {self.receipts['invalid']:,} do not hold"
        return "ok", "the signatures hold"

    def _warnings(self) -> Iterator[str]:
        if not self.verified:
            yield _NOT_VERIFIED
        for one in self.verified:
            if not one.report.ok:
                state = from_home(one.log.location.state)
                command = f"agentguard audit verify --state {state}"
                yield f"the {one.which}'s log does not verify: {command} says why"
            if not one.report.anchored:
                yield f"the {one.which}'s log: {unanchored(one.log.location.anchor, one.report)}"
            if not one.log.trust.outside:
                source = one.log.trust.source
                yield (
                    f"the {one.which}'s log: UNTRUSTED KEY: the keys come from {source}, which is "
                    f"part of the log's state; name a trust document with --{one.which}-trust"
                )


def parts_of(entry: ProofEntry | ReceivedEntry) -> dict[str, str | None]:
    """Return by name what is compared of one request in the logs of both sides."""
    return {
        **entry.request.as_json(),
        "assurance": entry.assurance,
        "invocation_sha256": entry.invocation_sha256,
        "agent": entry.agent,
        "proof_jti": entry.proof.jti,
    }


def _entry(reader: LogReader, index: int | None, kind: type[E]) -> E | None:
    """Return the entry at an index, None for no index; raises ``StorageError``."""
    if index is None:
        return None
    located = read_entry(reader, index)
    if located is None or not isinstance(located.entry, kind):
        message = f"the entry {index} is gone: another program changes the log"
        raise StorageError(message, code="storage.corrupt")
    return located.entry


def _row(request: _Request) -> screen.Row:
    match, sent, entry = request.match, request.sent, request.entry
    cells = (
        screen.styled(_STYLES[match.state], _WORDS[match.state]),
        "" if match.at_agent is None else str(match.at_agent),
        "" if match.at_receiver is None else str(match.at_receiver),
        "" if entry is None else entry.at[:19].replace("T", " "),
        agent_alias(None if entry is None else entry.agent).removeprefix("agent:"),
        "" if sent is None else sent.tool,
        "" if entry is None else f"{entry.request.method} {entry.request.url}",
    )
    return cells, "; ".join(_notes(request))


def _notes(request: _Request) -> Iterator[str]:
    if request.code is not None:
        yield request.code
    receipt = request.match.receipt_state
    if receipt is not None:
        yield f"{_RECEIPTS[receipt]} (the agent's entry {request.match.receipt})"
    if request.is_contradicted:
        yield "the receiver has signed an answer, and its log says that the request was refused"
    for name, (here, there) in request.differences().items():
        yield f"{name} is {_short(here)} at the agent, and {_short(there)} at the receiver"
    if request.match.state == "agent_only" and request.sent is not None:
        call = f"the call {request.sent.invocation_id}"
        if receipt == "valid":
            yield f"answered by the receiver, whose log lacks the request; {call}"
        else:
            yield f"lost, or never received; {call}"
    if request.match.state == "receiver_only":
        yield "forged, accepted twice, or the agent's log is cut or another one"


def _short(value: str | None) -> str:
    return "none" if value is None else value


def _as_json(request: _Request) -> dict[str, JSON]:
    match, sent, entry = request.match, request.sent, request.entry
    known = sent or request.received
    return {
        "state": match.state,
        "at": "" if entry is None else entry.at,
        "method": None if entry is None else entry.request.method,
        "url": None if entry is None else entry.request.url,
        "agent": None if entry is None else entry.agent,
        "tool": None if sent is None else sent.tool,
        "invocation_id": None if sent is None else sent.invocation_id,
        "invocation_sha256": None if known is None else known.invocation_sha256,
        "agent_entry": match.at_agent,
        "receiver_entry": match.at_receiver,
        "receipt_entry": match.receipt,
        "receipt": match.receipt_state,
        "differs": [*request.differences(), *(["receipt"] if request.is_contradicted else [])],
        "code": request.code,
        "assurance": None if known is None else known.assurance,
    }
