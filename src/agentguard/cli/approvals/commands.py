"""``agentguard approvals``: lists and shows the requests for approval, and signs answers.

A person signs an answer with a personal key; no command here needs a key or the passphrase of the
guard. In the configuration of a guard server's client, the commands ask the server. ``request.py``
prints a request, and ``approver.py`` loads the person's key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from agentguard.approvals.answer import Verdict, seal_answer
from agentguard.approvals.inbox import ApprovalInbox
from agentguard.approvals.request import MAX_REQUEST_BYTES, ApprovalRequest
from agentguard.approvals.roster import Answer
from agentguard.approvals.status import PastRequest
from agentguard.audit.request_status import LoggedHistory
from agentguard.cli.approvals import approver, request
from agentguard.cli.terminal import client_side, files, location, screen, times
from agentguard.cli.terminal.options import (
    AS_JSON,
    CONFIG,
    FORCE,
    OUTPUT,
    PATH,
    Argument,
    Option,
    command,
)
from agentguard.cli.terminal.shown import Shown
from agentguard.client.approvals import ClientInbox
from agentguard.errors import ConfigError
from agentguard.guard import served
from agentguard.identity.principal import require_principal
from agentguard.identity.trust import seconds
from agentguard.signing import canonical
from agentguard.storage.files import refuse_links
from agentguard.store.approvals import LoggedApprovals
from agentguard.store.sealed_pages import Keys

_REQUEST_HELP: Final = "The request's id, or its beginning, as approvals list shows it."
_REQUEST: Final = Argument("request_id", "REQUEST", _REQUEST_HELP, required=False)
_REQUEST_FILE: Final = Option(
    "--request FILE",
    "A request that approvals export has written; no state.",
    name="request_file",
    type=PATH,
)
_ANSWER: Final = (
    _REQUEST,
    Option(
        "--key FILE",
        "Your OpenSSH Ed25519 private key, encrypted; or its FILE.pub, to sign by ssh-agent.",
        type=PATH,
        default=Path("~/.ssh/id_ed25519"),
        show_default=True,
    ),
    Option("--note TEXT", "What to say beside it; it is logged.", default=""),
    Option("--yes", "Do not show the request and ask first."),
    _REQUEST_FILE,
    Option(
        "--as PRINCIPAL",
        "Who you are on the roster, as in user:bob; for --request.",
        name="principal",
    ),
    OUTPUT,
    CONFIG,
)


@command(
    Option("--ended", "List the requests that are over, and what ended them."),
    Option(
        "--last N",
        "How many, the newest; with --ended.",
        type=click.IntRange(1, 1000),
        default=50,
        show_default=True,
    ),
    CONFIG,
    AS_JSON,
)
def list_requests(*, ended: bool, last: int, config: Path | None, json: bool) -> None:
    """Warns of approvals that expired before their call was made again. With --ended, list what
    became of the requests that are over, and why. With --json, one object a line; of a request that
    waits, its member shown has the arguments that [tools.NAME] show names.
    """
    with _inbox(config) as inbox:
        if ended:
            _list_ended(inbox.ended(most=last), json=json)
        else:
            _list(inbox, Shown(location.load(config)), json=json)


def _list_ended(past: Sequence[PastRequest], *, json: bool) -> None:
    if json:
        for one in past:
            screen.json_line(request.past_as_json(one))
        return
    if not past:
        screen.line("no request is over yet")
        return
    names = ("request", "asked at", "end", "agent", "for", "tool")
    screen.columns(names, map(request.past_row, past))


def _list(inbox: ApprovalInbox, shown: Shown, *, json: bool) -> None:
    waiting = inbox.pending()
    for request_id in inbox.altered():
        screen.warn(
            f"the request {request_id} was changed in the state directory, and differs from the "
            "request in the log: it is not shown. The next attempt of the call is refused, the "
            "attempt after that asks for a new approval"
        )
    for expired in inbox.expired_approved():
        screen.warn(
            f"the request {expired.request_id} was approved, and nobody took the approval up in "
            f"time: {expired.agent_name} did not make the call of {expired.tool} again; start its "
            "run again, and the call asks anew"
        )
    if json:
        for pending in waiting:
            arguments = shown.of(pending.tool, pending.arguments)
            missing = inbox.missing(pending)
            screen.json_line({**_members(pending), "missing": missing, "shown": arguments})
        return
    if not waiting:
        screen.line(_nothing(inbox))
        return
    now = times.now()
    names = ("request", "asked at", "time left", "agent", "for", "tool")
    rows = (
        request.row(
            pending,
            inbox.missing(pending),
            inbox.answers(pending),
            now,
            shown.of(pending.tool, pending.arguments),
        )
        for pending in waiting
    )
    screen.columns(names, rows)


@command(_REQUEST, _REQUEST_FILE, CONFIG, AS_JSON)
def show(
    *, request_id: str | None, request_file: Path | None, config: Path | None, json: bool
) -> None:
    """Nothing is left out. Characters that a terminal would not show are written out, and the text
    of the call stands behind a bar. With --json, all in ASCII.
    """
    with _question(request_id, request_file, config) as (approval_request, inbox):
        if json:
            screen.json_line(_members(approval_request))
            return
        answers = inbox.answers(approval_request) if inbox is not None else ()
        request.draw(approval_request, answers)


@command(*_ANSWER)
def approve(**options: Any) -> None:
    """The request is shown first. On another machine, name the exported request with --request and
    yourself with --as: the signed answer is written to -o FILE, for approvals import.
    """
    given = _AnswerOptions(**options)
    with _question(given.request_id, given.request_file, given.config, answers=True) as question:
        _answer("approve", given, *question)


@command(*_ANSWER)
def reject(**options: Any) -> None:
    """The agent is told the note."""
    given = _AnswerOptions(**options)
    with _question(given.request_id, given.request_file, given.config, answers=True) as question:
        _answer("reject", given, *question)


@command(Argument("request_id", "REQUEST", _REQUEST_HELP), OUTPUT, FORCE, CONFIG)
def export(*, request_id: str, output: Path | None, force: bool, config: Path | None) -> None:
    """The file holds the arguments of the call."""
    with _question(request_id, None, config) as (asked, _), files.new(output, force=force) as file:
        file.write(asked.dumps() + b"\n")
    if not files.is_stream(output):
        screen.line(f"written: {output}; agentguard approvals approve --request FILE answers it")


@command(Argument("file", "FILE|-", "A signed answer.", type=PATH), CONFIG)
def import_answer(*, file: Path, config: Path | None) -> None:
    """An answer counts as one that is given here: the roster names the key, and the call waits."""
    with _inbox(config, answers=True) as inbox:
        approval_request, envelope = inbox.loads(files.read_or_stdin(file, canonical.MAX_BYTES))
        answer = inbox.accept(approval_request, envelope)
        _print_result(answer.approval.verdict, answer.approval.approver, approval_request, inbox)


def _nothing(inbox: ApprovalInbox) -> str:
    """Say that no request is there to be seen."""
    if isinstance(inbox, ClientInbox):
        return (
            "nothing waits for an approval that this user sees; sees_requests in the user's table "
            "of [clients] at the guard server shows the requests of all agents"
        )
    return "nothing waits for an approval"


class _AnswerOptions(NamedTuple):
    """The values of ``_ANSWER``."""

    request_id: str | None
    key: Path
    note: str
    yes: bool
    request_file: Path | None
    principal: str | None
    output: Path | None
    config: Path | None


@contextmanager
def _inbox(config: Path | None, *, answers: bool = False) -> Iterator[ApprovalInbox]:
    """Open the inbox of a configuration: that of its state, or of its guard server."""
    settings = location.load(config)
    if settings.server is None or not client_side.is_client(settings):
        with _own_inbox(config, answers=answers) as inbox:
            yield inbox
        return
    with closing(served.configured(settings.server, settings.telemetry, None)) as parts:
        yield parts.inbox()


@contextmanager
def _own_inbox(config: Path | None, *, answers: bool) -> Iterator[ApprovalInbox]:
    """Open the inbox of a state, which compares each request with the log."""
    settings = location.load_own(config)
    where, trust = location.trusted_log(config, None, None, None)
    refuse_links(where.state)
    document = trust.document
    with closing(where.log(document, writes_pages=answers)) as log:
        store = LoggedApprovals(log, Keys(None, lambda: document))
        history = LoggedHistory(where.reader, times.now)
        yield ApprovalInbox(store, settings.roster, times.now, history=history)


@contextmanager
def _question(
    request_id: str | None, file: Path | None, config: Path | None, *, answers: bool = False
) -> Iterator[tuple[ApprovalRequest, ApprovalInbox | None]]:
    """Yield a request and its inbox, which a request from a file has not."""
    if (request_id is None) == (file is None):
        raise click.BadParameter(
            "name one request: REQUEST as approvals list shows it, or --request"
        )
    if file is not None:
        data = files.read_or_stdin(file, MAX_REQUEST_BYTES + 2)
        yield ApprovalRequest.loads(data.removesuffix(b"\n")), None
        return
    with _inbox(config, answers=answers) as inbox:
        yield inbox.find(str(request_id)), inbox


def _answer(
    verdict: Verdict,
    options: _AnswerOptions,
    approval_request: ApprovalRequest,
    inbox: ApprovalInbox | None,
) -> None:
    if options.principal is not None:
        require_principal(options.principal, "person", ConfigError)
    if not options.yes:
        answers: Sequence[Answer] = ()
        whole = "agentguard approvals show --request FILE"
        if inbox is not None:
            answers = inbox.answers(approval_request)
            whole = f"agentguard approvals show {approval_request.request_id[:8]}"
        request.draw(approval_request, answers, whole=whole)
    # before the question: nobody decides with a key that does not answer
    signer = approver.signer(options.key.expanduser())
    principal = options.principal
    if inbox is not None:
        own = inbox.approver(signer.public_key).principal
        if principal not in (None, own):
            message = f"the key is {own}'s, and --as names {principal}: leave it out here"
            raise click.BadParameter(message)
        principal = own
    elif principal is None:
        raise click.BadParameter("say with --as who you are on the roster, as in --as user:bob")
    if not options.yes and not screen.confirmed(f"{verdict.capitalize()} exactly this call?"):
        raise SystemExit(1)
    envelope = seal_answer(
        approval_request,
        verdict,
        approver=principal,
        approval_id=os.urandom(16).hex(),
        at=max(seconds(times.now()), approval_request.requested_at),
        note=options.note,
        signer=signer,
    )
    if inbox is not None and options.output is None:
        inbox.accept(approval_request, envelope)
        _print_result(verdict, principal, approval_request, inbox)
        return
    with files.new(options.output, force=False) as file:
        file.write(canonical.dumps(envelope.as_json()) + b"\n")
    if not files.is_stream(options.output):
        screen.line(f"written: {options.output}; agentguard approvals import FILE takes it")


def _print_result(
    verdict: str, principal: str, approval_request: ApprovalRequest, inbox: ApprovalInbox
) -> None:
    request_id = approval_request.request_id
    missing = inbox.missing(approval_request)
    note = f"; it still waits: {missing}" if missing is not None else ""
    rejecters = request.rejected_by(inbox.answers(approval_request))
    if rejecters and verdict == "approve":
        note = f"; but it was rejected by {rejecters}, and stays so"
    outcome = "approved" if verdict == "approve" else "rejected"
    tool = approval_request.tool
    screen.line(f"{outcome} by {principal}: {tool}, request {request_id}{note}")


def _members(approval_request: ApprovalRequest) -> dict[str, Any]:
    members: Any = canonical.loads(approval_request.dumps(), limit=MAX_REQUEST_BYTES)
    return dict(members)
