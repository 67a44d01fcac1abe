"""The group ``agentguard token``: inspects and verifies a token or a stored delegation.

The input comes from anywhere, and nothing in it is believed before it verifies. How it is taken
apart is in ``token_parts.py``. ``token_exchange.py`` has the command ``exchange``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
from rich.text import Text

from agentguard.cli.agents import token_parts
from agentguard.cli.agents.token_exchange import token_in
from agentguard.cli.agents.token_parts import TokenParts
from agentguard.cli.audit import phrases
from agentguard.cli.terminal import files, location, screen, times
from agentguard.cli.terminal.options import AS_JSON, LOG, PATH, Argument, Option, command
from agentguard.delegation import access_token, verification
from agentguard.delegation.grant import Grant
from agentguard.errors import AgentguardError, ConfigError, DecodeError
from agentguard.identity.trust import TrustDocument, seconds
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON

_SOURCE: Final = Argument(
    "source",
    "FILE|-|TOKEN",
    "A file with an access token or a stored delegation, - for stdin, or the token.",
)
_GIVEN: Final = (
    *LOG,
    Option(
        "--chain FILE",
        "The chain of an access token; by default the one in the state's log.",
        type=PATH,
    ),
    Option("--audience NAME", "The audience to verify for; by default the trust domain itself."),
    Option(
        "--issuer URL",
        "The URL of the trust domain's token service, as the issuer of the token; by default no "
        "such URL counts.",
    ),
    Option(
        "--at TIME",
        "Verify as of this time; by default now.",
        type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z"]),
    ),
)
"""The options of a ``VerificationInput``."""


class VerificationInput(NamedTuple):
    """The input of a verification: where the log is, whom to trust, the audience and the time.

    ``chain`` is the file with the chain of an access token, None to look into the log. ``issuer``
    is the URL of a token service, None where no URL counts as an issuer. ``at`` is None for now.
    """

    config: Path | None
    state: Path | None
    anchor: str | None
    trust: Path | None
    chain: Path | None
    audience: str | None
    issuer: str | None
    at: datetime | None

    @property
    def names_a_state(self) -> bool:
        """Whether the person has named a state, so that a missing state is an error."""
        return self.config is not None or self.state is not None


@command(_SOURCE, *_GIVEN, AS_JSON)
def inspect(*, source: str, json: bool, **options: Any) -> None:
    """The output names the agent, its principal, the services and agents in between, the scope and
    the time of expiry, and says which hop is wrong. Signatures are checked where there is a trust
    document (--trust, or that of the state).
    """
    given = VerificationInput(**options)
    parts = _parts(source, given)
    trust: TrustDocument | None = None
    doubt = "its chain is not known: give --chain FILE" if parts.lacks_chain else ""
    try:
        trust = None if parts.lacks_chain else _trust(given)
    except AgentguardError as error:
        if given.trust is not None or given.names_a_state:
            raise
        doubt = f"no trust document: {error}"
    problem = _problem(parts, trust, given) if trust is not None else None
    if json:
        screen.json_line(_as_json(parts, problem, checked=trust is not None))
    else:
        screen.sheet(_rows(parts))
        screen.line()
        if trust is None:
            screen.line(screen.styled("warn", "NOT CHECKED: "), doubt)
        elif problem is None:
            holds = screen.styled("ok", "it holds: every signature, link and limit")
            screen.line(holds, "; agentguard token verify says whether it was revoked")
        else:
            screen.line(screen.styled("fail", f"it does not hold [{problem.code}]: "), str(problem))
    if problem is not None:
        raise SystemExit(1)


@command(
    _SOURCE,
    *_GIVEN,
    Option(
        "--introspect URL", "Ask the token service at this URL as well, which knows of revocations."
    ),
    Option(
        "--workload-token FILE",
        "A file with the workload token of this program, for --introspect.",
        type=PATH,
    ),
    AS_JSON,
)
def verify(
    *, source: str, introspect: str | None, workload_token: Path | None, json: bool, **options: Any
) -> None:
    """Exit code 1 if it does not hold. Where there is a state, revocations and a freeze count as
    well.
    """
    if (introspect is None) is not (workload_token is None):
        raise ConfigError("--introspect and --workload-token go together: give both, or none")
    given = VerificationInput(**options)
    parts = _parts(source, given)
    if parts.lacks_chain:
        message = "the chain of the token is not known: give its file with --chain FILE"
        raise ConfigError(message)
    problem = _problem(parts, _trust(given), given)
    refusal = None if problem is not None else _refusal(parts, given)
    holds = problem is None and refusal is None
    if holds and introspect is not None and workload_token is not None:
        refusal = _told(parts, introspect, workload_token)
    code, what = (problem.code, str(problem)) if problem is not None else refusal or ("", "")
    if json:
        screen.json_line({"ok": not code, "code": code or None, "problem": what or None})
    elif code:
        screen.line(screen.styled("fail", f"it does not hold [{code}]: "), what)
    else:
        screen.line(screen.styled("ok", "it holds: every signature, link and limit"))
    if code:
        raise SystemExit(1)


def _parts(source: str, given: VerificationInput) -> TokenParts:
    """Return the parts of what a person names, with the chain of a token if it can be found."""
    parts = token_parts.read(source)
    if given.chain is not None:
        if parts.claims is None:
            raise ConfigError("--chain is for an access token: leave the option out")
        return parts.with_chain(files.read(given.chain))
    if not parts.lacks_chain:
        return parts
    try:
        reader = location.locate(given.config, given.state, given.anchor).reader()
    except AgentguardError:
        if given.names_a_state:
            raise
        return parts
    with closing(reader):
        return parts.with_chain_of(reader)


def _trust(given: VerificationInput) -> TrustDocument:
    if given.trust is not None:  # no state is needed
        return location.trust_in(given.trust)
    log = location.trusted_log(given.config, given.state, given.anchor, None)
    return log.trust.document


def _problem(
    parts: TokenParts, trust: TrustDocument, given: VerificationInput
) -> AgentguardError | None:
    """Return why the token or the delegation does not verify; None if it does."""
    at = seconds(given.at or times.now())
    try:
        if parts.chain is None:
            message = "a hop by itself shows nothing: give the token or the delegation"
            raise DecodeError(message, code="chain.malformed")
        if parts.claims is not None:
            receiver = {"audience": given.audience, "issuer": given.issuer}
            access_token.verify(parts.text, parts.chain, trust, at=at, **receiver)
        else:
            verification.loads(parts.chain, trust, at=at)
    except AgentguardError as error:
        return error
    return None


def _refusal(parts: TokenParts, given: VerificationInput) -> tuple[str, str] | None:
    """Return the code and the reason of a revocation or a freeze, None where there is no state."""
    try:
        where = location.locate(given.config, given.state, given.anchor)
    except AgentguardError:
        if given.names_a_state:
            raise
        return None
    document = location.trust_of(where, given.trust).document
    with closing(where.log(document)) as log:
        return log.refusal(parts.names)


def _told(parts: TokenParts, service: str, workload_token: Path) -> tuple[str, str] | None:
    """Return the code and the reason where a token service says that a token does not count now."""
    # few commands send a request, and the extra brings what the module imports
    from agentguard.service.client import TokenService  # noqa: PLC0415

    if parts.claims is None or parts.chain is None:
        raise ConfigError("--introspect is for an access token: leave the option out")
    shown = token_in(workload_token)
    chain = canonical.dumps(canonical.loads_object(parts.chain))  # a file may have line feeds
    with TokenService(service) as asked:
        said = asked.introspect(parts.text, workload_token=shown, chain=chain)
    if said is None:
        return "token.inactive", "the token service says that the token does not count now"
    return None


def _rows(parts: TokenParts) -> Iterator[tuple[str, str | Text]]:
    readable = [hop for hop in parts.hops if isinstance(hop, Grant)]
    if readable:
        first, last = readable[0], readable[-1]
        yield "who", phrases.delegatee(last)
        yield "for", f"{first.principal} (assurance: {first.assurance or 'none said'})"
        if first.subject_token is not None:
            yield "vouched for", f"by {phrases.voucher(first)}"
        if first.via_token is not None:
            yield "service", phrases.service(first)
        through = [phrases.delegatee(hop) for hop in readable[:-1]]
        yield "through", ", then ".join(through) or "nobody"
        yield "may", " ".join(last.scope) or "nothing: its scope is empty"
        yield "towards", " ".join(last.audience)
        yield "task", last.task_id or "none named"
        yield "until", _time(last.expires_at)
        calls = [f"{hop.max_calls} (hop {hop.depth})" for hop in readable if hop.max_calls]
        yield "calls", ", ".join(calls) or "as many as it likes"
    if parts.claims is not None:
        expires_at = parts.claims.get("exp")
        yield "token", f"{parts.claims.get('jti')}, until {_time(expires_at)}"
        if parts.lacks_chain:
            yield from _claimed(parts.claims)
    before = None
    for number, hop in enumerate(parts.hops, start=1):
        parent, before = before, hop if isinstance(hop, Grant) else None
        if isinstance(hop, Grant):
            line = f"{phrases.lets(hop, parent)}: "
            line += f"{' '.join(hop.scope) or 'nothing'}; until {_time(hop.expires_at)}; {hop.jti}"
            yield f"hop {number}", line
        else:
            yield f"hop {number}", screen.styled("fail", f"can't be read [{hop.code}]: {hop}")


def _claimed(claims: Mapping[str, JSON]) -> Iterator[tuple[str, str]]:
    """Return rows of what a token says by itself, without its chain."""
    named = {"who": "client_id", "for": "sub", "may": "scope", "towards": "aud"}
    for title, claim in named.items():
        value = claims.get(claim)
        yield title, " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _time(moment: JSON) -> str:
    if not canonical.is_integer(moment):
        return "no time"
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "no time"


def _as_json(
    parts: TokenParts, problem: AgentguardError | None, *, checked: bool
) -> dict[str, object]:
    hops = [
        hop.claims() if isinstance(hop, Grant) else {"error": str(hop), "code": hop.code}
        for hop in parts.hops
    ]
    description = {"code": problem.code, "what": str(problem)} if problem is not None else None
    holds = problem is None if checked else None
    claims = None if parts.claims is None else dict(parts.claims)
    return {"holds": holds, "problem": description, "claims": claims, "hops": hops}
