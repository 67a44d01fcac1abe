"""``agentguard audit match``: compares the requests in an agent's log and in a receiver's log.

This module opens and verifies both logs, and reads their entries. ``storage/request_table.py``
joins the requests, and ``match_report.py`` prints the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Final

import click

from agentguard.audit.entry import Entry
from agentguard.audit.entry_bytes import may_be_kind
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.receiver import AtReceiver, ReceivedEntry, RefusedEntry
from agentguard.audit.kinds.running import ProofEntry, ReceiptEntry
from agentguard.audit.log import LogReader
from agentguard.call.invocation import timestamp
from agentguard.cli.audit import history
from agentguard.cli.audit.match_report import MatchReport, Verified, parts_of
from agentguard.cli.terminal import files, location, screen, times
from agentguard.cli.terminal.location import Location, TrustedLog
from agentguard.cli.terminal.options import AS_JSON, JOBS, PATH, Argument, Option, command
from agentguard.delegation.grant import is_audience
from agentguard.domain import config, keystore
from agentguard.domain.verify import examine
from agentguard.domain.worker_processes import default_jobs
from agentguard.errors import ConfigError, DecodeError, ProofError
from agentguard.proof import receipt
from agentguard.proof.target import Target, parse_audience
from agentguard.signing import canonical
from agentguard.signing.keys import PublicKey
from agentguard.storage.request_table import ReceiptState, RequestTable
from agentguard.store import sqlite

_MOST_SERVERS: Final = 64
"""The most servers that a receiver's log may name: each request is compared with all of them."""

_KINDS: Final = (ProofEntry.kind, ReceiptEntry.kind, ReceivedEntry.kind, RefusedEntry.kind)


@command(
    Argument(
        "agent", "AGENT", "The agent's log: a state, an agentguard.toml, or its folder.", type=PATH
    ),
    Argument("receiver", "RECEIVER", "The receiver's log, named in the same way.", type=PATH),
    Option(
        "--server URL",
        "Take the agent's requests to this URL and below, or to the MCP server of this name; may "
        "be repeated; by default the receiver's log says.",
        multiple=True,
    ),
    Option(
        "--since TIME",
        "From a time on: 2026-11-25, 2026-11-25T09:30:00Z, or 30m, 2h, 7d ago.",
        type=times.parse,
    ),
    Option("--all", "Also list the requests on which both logs agree.", name="every"),
    Option("--no-verify", "Compare without a verification of the logs."),
    Option(
        "--agent-trust FILE",
        "The trust document of the agent's log; by default the copy in the anchor.",
        type=PATH,
    ),
    Option(
        "--receiver-trust FILE",
        "The trust document of the receiver's log; by default the copy in the anchor.",
        type=PATH,
    ),
    Option(
        "--receipt-keys FILE",
        "The receiver's public keys for receipts, each a line ssh-ed25519 ...: verifies the "
        "receipts in the agent's log.",
        type=PATH,
    ),
    JOBS,
    AS_JSON,
)
def match(  # noqa: PLR0913  the options of the command
    *,
    agent: Path,
    receiver: Path,
    server: tuple[str, ...],
    since: datetime | None,
    every: bool,
    no_verify: bool,
    agent_trust: Path | None,
    receiver_trust: Path | None,
    receipt_keys: Path | None,
    jobs: int | None,
    json: bool,
) -> None:
    """Verifies both logs, and lists each request that is only in one log (lost or not received, or
    forged) or that differs, and what the receiver has refused. Exit code 1 if there is such a
    difference, or if a log or a receipt does not verify. A refused request is no difference: both
    logs know it.

    With --json, one object a line for each listed request: state (both, differs, refused,
    agent_only, receiver_only), at, method, url, agent, tool, invocation_id, invocation_sha256,
    agent_entry, receiver_entry, receipt_entry, receipt, differs, code, assurance. The last line has
    the member summary: ok, the number of requests of each state, and what was left out.
    """
    servers = {*map(_server, server)}
    keys = () if receipt_keys is None else _keys(receipt_keys)
    logs = _open(agent, agent_trust), _open(receiver, receiver_trust)
    at_agent, at_receiver = (log.location.reader() for log in logs)
    verified: Sequence[Verified] = ()
    if not no_verify:
        verified = [
            _verify(which, log, reader, jobs or default_jobs())
            for which, log, reader in zip(
                ("agent", "receiver"), logs, (at_agent, at_receiver), strict=True
            )
        ]
    with closing(at_agent), closing(at_receiver), RequestTable() as table:
        start = timestamp(since) if since is not None else ""
        filling = _Filling(table, logs[0].trust.document.trust_domain, servers, start, keys)
        filling.read(at_agent, at_receiver)
        left_out = {**filling.left_out, **table.left_out()}
        report = MatchReport(
            at_agent, at_receiver, verified, left_out, every=every, verifies_receipts=bool(keys)
        )
        report.print(table.matches(), json=json)
    if not report.ok:
        raise SystemExit(1)


@dataclass(slots=True)
class _Filling:
    """Reads the entries of both logs into a table, and counts what is not in the table.

    ``trust_domain`` is that of the agent's log. Requests from before ``start`` (RFC 3339) are left
    out if only one log has them. ``keys`` are those of the receiver's receipts, empty for none.
    """

    table: RequestTable
    trust_domain: str
    servers: set[str]
    start: str
    keys: Sequence[PublicKey]
    left_out: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("elsewhere", "other_domains", "earlier", "dpop", "unrecorded", "unreadable"), 0
        )
    )

    def read(self, at_agent: LogReader, at_receiver: LogReader) -> None:
        """Read the receiver's log first, and then the agent's.

        The agent's entry is durable before its request is sent. So the agent's log has, when it is
        read, each request that the receiver's log had when that was read. Raises
        ``click.BadParameter`` for two logs that are named the other way round.
        """
        names_servers = not self.servers
        in_receiver: set[str] = set()
        in_agent: set[str] = set()
        for index, entry in self._entries(at_receiver, "reading the receiver's entry"):
            in_receiver.add(entry.kind)
            if isinstance(entry, AtReceiver):
                self._at_receiver(index, entry, names_servers=names_servers)
        for index, entry in self._entries(at_agent, "reading the agent's entry"):
            in_agent.add(entry.kind)
            match entry:
                case ProofEntry():
                    self._sent(index, entry)
                case ReceiptEntry():
                    self.table.add_receipt(entry.proof_sha256, index, self._state_of(entry))
        # a server that is an agent too has all kinds
        if "proof" in in_receiver - in_agent and not in_receiver & {"received", "refused"}:
            message = "RECEIVER has what an agent's log has, and AGENT does not: name AGENT first"
            raise click.BadParameter(message)

    def _state_of(self, noted: ReceiptEntry) -> ReceiptState:
        """Verify the signature of a receipt, if the keys of receipts are known."""
        if not self.keys:
            return "unverified"
        try:
            signed = receipt.verify_signature(noted.receipt, self.keys)
        except ProofError:
            return "invalid"
        # the entry names the key with which the client says that it has verified the receipt
        return "valid" if signed.key_id == noted.key_id else "invalid"

    def _entries(self, reader: LogReader, what: str) -> Iterator[tuple[int, Entry]]:
        with screen.counter(what, history.expected(reader)) as progress:
            for count, (index, body) in enumerate(reader.entries(), start=1):
                progress(count)
                if not any(may_be_kind(body, kind) for kind in _KINDS):
                    continue
                try:
                    yield index, parse_entry(body)
                except DecodeError:
                    self.left_out["unreadable"] += 1

    def _at_receiver(self, index: int, entry: AtReceiver, *, names_servers: bool) -> None:
        self.left_out["unrecorded"] += entry.unrecorded
        self._note_server(entry.server, names_servers=names_servers)
        match entry:
            case RefusedEntry():
                self.table.add_refused(entry.proof_sha256, index)
            case ReceivedEntry(assurance="dpop"):
                # no guard has signed the proof, so no agent's log has it
                self.left_out["dpop"] += 1
            case ReceivedEntry():
                is_of_the_domain = entry.agent.startswith(f"spiffe://{self.trust_domain}/")
                reason = self._earlier(entry) if is_of_the_domain else "other_domains"
                self.table.add_received(entry.proof.sha256, index, _digest(entry), reason=reason)

    def _sent(self, index: int, entry: ProofEntry) -> None:
        reason = self._earlier(entry) if self._is_here(entry) else "elsewhere"
        self.table.add_sent(entry.proof.sha256, index, _digest(entry), reason=reason)

    def _note_server(self, url: str, *, names_servers: bool) -> None:
        if names_servers:
            self.servers.add(url)
            if len(self.servers) > _MOST_SERVERS:
                message = (
                    f"the receiver's log names more than {_MOST_SERVERS} servers: name those that "
                    "you mean with --server"
                )
                raise click.BadParameter(message)

    def _is_here(self, proved: ProofEntry) -> bool:
        """Whether a request was for the receiver; in doubt it was."""
        url = proved.request.url
        if proved.assurance == "call":  # the server of the Model Context Protocol has one name
            is_here = url in self.servers
        else:
            target, bases = _target(url), filter(None, map(_target, self.servers))
            is_here = target is None or any(map(target.is_within, bases))
        return is_here or not self.servers

    def _earlier(self, entry: Entry) -> str | None:
        """Return the reason to leave out a request from before ``start``, None for a later one."""
        return None if entry.at >= self.start else "earlier"


def _digest(entry: ProofEntry | ReceivedEntry) -> bytes:
    """Return what stands for the parts of a request that both logs name."""
    return bytes.fromhex(canonical.digest(parts_of(entry)))


@lru_cache(256)
def _target(url: str) -> Target | None:
    try:
        return Target.parse(url)
    except ProofError:
        return None


def _server(name: str) -> str:
    """Return the URL or the name of --server; raises ``click.BadParameter``."""
    if "://" not in name and is_audience(name):
        return name
    try:
        return parse_audience(name).uri
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error


def _keys(path: Path) -> tuple[PublicKey, ...]:
    """Return the keys in the file of --receipt-keys; raises ``StorageError`` or ``ConfigError``."""
    lines = files.read(path).decode("utf-8", "replace").splitlines()
    written = (line for line in lines if line.strip() and not line.startswith("#"))
    return receipt.public_keys(str(path), written)


def _open(path: Path, trust: Path | None) -> TrustedLog:
    where = _locate(path)
    return TrustedLog(where, location.trust_of(where, trust))


def _locate(path: Path) -> Location:
    """Find the log that an argument names; raises as ``location.locate`` does.

    A folder with a state is a state, whatever else lies there: a configuration beside a state may
    come from whoever sent the state.
    """
    is_state = (path / keystore.TRUST).exists() or sqlite.path_in(path).exists()
    file = path / config.FILE if path.is_dir() else path
    if not is_state and file.is_file():
        return location.locate(file)
    return location.locate(None, path)


def _verify(which: str, log: TrustedLog, reader: LogReader, jobs: int) -> Verified:
    """Verify one of the two logs, as ``audit verify`` does."""
    with screen.counter(f"verifying the {which}'s entry", history.expected(reader)) as count:
        report = examine(
            reader,
            log.trust.document,
            anchor=log.location.anchor,
            apart=log.is_apart(),
            jobs=jobs,
            progress=count,
        )
    return Verified(which, log, report)
