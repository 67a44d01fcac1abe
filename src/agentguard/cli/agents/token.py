"""``agentguard token``: what an access token or a stored delegation says, and whether it holds.

What is read comes from anywhere: nothing of it is believed before it verifies, and what can be read
of one that does not is still shown, with what is wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer
from rich.text import Text

from agentguard.cli.agents import delegations
from agentguard.cli.audit import phrases
from agentguard.cli.lazy import Group
from agentguard.cli.terminal import files, location, screen, times
from agentguard.cli.terminal.options import (
    AnchorOption,
    ConfigOption,
    JsonOption,
    NoteOption,
    StateOption,
    TakesNames,
    TrustOption,
    gathered,
)
from agentguard.delegation import access_token, grant, verification
from agentguard.delegation.grant import Grant
from agentguard.domain import administration
from agentguard.domain.config import Config
from agentguard.domain.passphrase import passphrase_of
from agentguard.errors import AgentguardError, ConfigError, DecodeError
from agentguard.identity.trust import TrustDocument, seconds
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import JSON
from agentguard.storage import ledger
from agentguard.storage.reader import StateReader

app = typer.Typer(no_args_is_help=True, cls=Group)

# its header is a JSON object; a name may have dots as well (a trust domain's)
_COMPACT_JWS: Final = re.compile(r"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*")

# as they are made here; that of an access token stands in calls alone, too many to look through
_OWN_JTI: Final = re.compile(r"[0-9a-f]{32}")

TokenArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE|-|TOKEN",
        help="A file with an access token or a stored delegation, - for stdin, or the token.",
    ),
]
AudienceOption = Annotated[
    str | None,
    typer.Option(
        "--audience", metavar="NAME", help="Who asks; by default the trust domain itself."
    ),
]
AtOption = Annotated[
    datetime | None,
    typer.Option(
        "--at",
        metavar="TIME",
        formats=["%Y-%m-%dT%H:%M:%S%z"],
        help="As of a time; by default now.",
    ),
]


@dataclass(frozen=True, slots=True)
class Read:
    """What was given, taken apart and not verified: the hops as far as they can be read."""

    text: str
    claims: Mapping[str, JSON] | None  # of an access token
    hops: list[Grant | AgentguardError]

    @property
    def names(self) -> frozenset[str]:
        """All by which it can be revoked, as it says itself."""
        found: set[str] = set()
        for hop in self.hops:
            if isinstance(hop, Grant):
                found |= delegations.names(hop)
        jti = self.claims.get("jti") if self.claims is not None else None
        return frozenset(found | ({jti} if isinstance(jti, str) else set()))


class Verification(NamedTuple):
    """What a token is held against: a log, whom to believe about it, who asks, and as of when."""

    config: Path | None
    state: Path | None
    anchor: str | None
    trust: Path | None
    audience: str | None
    at: datetime

    @property
    def names_a_state(self) -> bool:
        """Whether it was said where the state is: then it is an error that there is none."""
        return self.config is not None or self.state is not None


def _asked(
    *,
    config: ConfigOption = None,
    state: StateOption = None,
    anchor: AnchorOption = None,
    trust: TrustOption = None,
    audience: AudienceOption = None,
    at: AtOption = None,
) -> Verification:
    return Verification(config, state, anchor, trust, audience, at or times.now())


_with_options: Final = gathered("asked", _asked)


@app.command("inspect")
@_with_options
def inspect(
    given: TokenArgument,
    *,
    asked: Verification,
    json: JsonOption = False,
) -> None:
    """Explain a token or a delegation: who, for whom, through whom, what, and until when.

    It says which hop is wrong, and why. With a trust document (--trust, or the one of the state)
    its signatures are checked.
    """
    read = _read(given)
    found: TrustDocument | None = None
    doubt = ""
    try:
        found = _document(asked)
    except AgentguardError as error:
        if asked.trust is not None or asked.names_a_state:
            raise
        doubt = f"no trust document: {error}"
    problem = _problem(read, found, asked) if found is not None else None
    if json:
        screen.json_line(_as_json(read, problem, checked=found is not None))
    else:
        screen.sheet(_rows(read))
        screen.line()
        if found is None:
            screen.line(screen.styled("warn", "NOT CHECKED: "), doubt)
        elif problem is None:
            holds = screen.styled("ok", "it holds: every signature, link and limit")
            screen.line(holds, "; agentguard token verify says whether it was revoked")
        else:
            screen.line(screen.styled("fail", f"it does not hold [{problem.code}]: "), str(problem))
    if problem is not None:
        raise typer.Exit(1)


@app.command("verify")
@_with_options
def verify(
    given: TokenArgument,
    *,
    asked: Verification,
    json: JsonOption = False,
) -> None:
    """Verify a token or a delegation, as whoever receives it would; exit 1 if it does not hold.

    Where a state is at hand, revocations count as well.
    """
    read = _read(given)
    problem = _problem(read, _document(asked), asked)
    refused = None if problem is not None else _revoked(read, asked)
    code, what = (problem.code, str(problem)) if problem is not None else refused or ("", "")
    if json:
        screen.json_line({"ok": not code, "code": code or None, "problem": what or None})
    elif code:
        screen.line(screen.styled("fail", f"it does not hold [{code}]: "), what)
    else:
        screen.line(screen.styled("ok", "it holds: every signature, link and limit"))
    if code:
        raise typer.Exit(1)


@app.command("revoke", cls=TakesNames)
def revoke(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE|TOKEN",
            help="A token or a stored delegation; or a jti, a key's thumbprint, an agent's URI, "
            "agent:NAME, a service or a principal.",
        ),
    ],
    *,
    note: NoteOption,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Cut off a token, a delegation, a key, an agent, or all that goes through somebody.

    The next call of every descendant is denied, in every process on the state. It is signed with
    the admin key and logged, and can't be taken back. A name that nothing goes by is taken, too,
    with a warning: it may come.
    """
    settings = location.load_own(config)
    name, doubtful = what, False
    if what == "-" or what.startswith("{") or _COMPACT_JWS.fullmatch(what) or _is_file(what):
        name = _id_of(_read(what))
    elif _looks_like_a_file(what) and not _is_known(settings, what):
        message = (
            f"there is no file {what}, and nothing in the log or the configuration goes by that "
            "name: give the file's path, or the name of what is to be revoked"
        )
        raise ConfigError(message, code="revocation.name")
    else:
        doubtful = not _OWN_JTI.fullmatch(what)
    recorded = administration.revoke(
        settings, passphrase_of(settings), name, note=note, now=times.now()
    )
    screen.recorded(f"revoked: {name}", {"revoked": name}, recorded, json=json)
    if doubtful and not _is_known(settings, name):  # afterwards: the brake does not wait
        screen.warn(
            f"nobody is called {name} so far, in the log or in {settings.source}, and nothing is "
            "denied by it as yet: names are compared whole, as in user:alice, service:chat, "
            "agent:NAME or an instance's whole URI, and a file must be there"
        )


def _looks_like_a_file(what: str) -> bool:
    """Whether it is written like a path; that of a URI has a scheme."""
    return what.endswith(".json") or ("/" in what and "://" not in what)


def _is_known(settings: Config, name: str) -> bool:
    if name in {*(settings.principals or ()), *(f"agent:{agent}" for agent in settings.agents)}:
        return True
    with closing(StateReader(settings.state)) as reader:
        return delegations.is_known(reader, name)


def _read(given: str) -> Read:
    """Take apart what was given; raises ``DecodeError`` or ``ConfigError`` for neither."""
    if given == "-":
        text = sys.stdin.read()
    elif given.startswith("{") or _COMPACT_JWS.fullmatch(given):
        text = given
    else:
        text = files.read(Path(given)).decode("utf-8", "replace")
    text = text.strip()
    if text.startswith("{"):
        return Read(text, None, _hops(canonical.loads_object(text.encode())))
    parsed = jws.parse(text)
    claims = parsed.claims()
    if parsed.header.get("typ") == grant.TYPE:
        return Read(text, None, [grant.read(text)])
    carried = claims.get(access_token.CHAIN_CLAIM)
    return Read(text, claims, _hops(carried) if isinstance(carried, dict) else [])


def _is_file(given: str) -> bool:
    with suppress(OSError):  # too long for a file's name
        return Path(given).is_file()
    return False


def _hops(members: Mapping[str, JSON]) -> list[Grant | AgentguardError]:
    hops = members.get("hops")
    if not isinstance(hops, list):
        raise DecodeError("neither an access token nor a stored delegation", code="chain.malformed")
    read: list[Grant | AgentguardError] = []
    for hop in hops[: grant.MAX_DEPTH]:
        try:
            read.append(grant.read(str(hop)))
        except AgentguardError as error:
            read.append(error)
    return read


def _document(asked: Verification) -> TrustDocument:
    if asked.trust is not None:  # so no state is needed
        return location.trust_in(asked.trust)
    return location.trusted_log(asked.config, asked.state, asked.anchor, None).trust.document


def _problem(read: Read, trust: TrustDocument, asked: Verification) -> AgentguardError | None:
    """Return what does not hold; None where all does."""
    at = seconds(asked.at)
    try:
        if read.claims is not None:
            access_token.verify(read.text, trust, at=at, audience=asked.audience)
        elif read.text.startswith("{"):
            verification.loads(read.text.encode(), trust, at=at)
        else:
            message = "a hop by itself shows nothing: give the token or the delegation"
            raise DecodeError(message, code="chain.malformed")
    except AgentguardError as error:
        return error
    return None


def _revoked(read: Read, asked: Verification) -> tuple[str, str] | None:
    """Look whether it was revoked, as far as there is a state whose log would say so."""
    try:
        where = location.locate(asked.config, asked.state, asked.anchor)
    except AgentguardError:
        if asked.names_a_state:
            raise
        return None
    document = location.trust(where, asked.trust).document
    return ledger.current(where.state, where.anchor, document).refusal(read.names)


def _id_of(read: Read) -> str:
    """Return what cuts off just this: a token's chain at its last hop, or the delegation."""
    last = read.hops[-1] if read.hops else None
    if isinstance(last, Grant):
        return last.jti
    raise ConfigError("it has no hop that can be read: name what to revoke", code="hop.malformed")


def _rows(read: Read) -> Iterator[tuple[str, str | Text]]:
    readable = [hop for hop in read.hops if isinstance(hop, Grant)]
    if readable:
        first, last = readable[0], readable[-1]
        yield "who", phrases.delegatee(last)
        yield "for", f"{first.principal} (assurance: {first.assurance or 'none said'})"
        through = [phrases.delegatee(hop) for hop in readable[:-1]]
        yield "through", ", then ".join(through) or "nobody"
        yield "may", " ".join(last.scope) or "nothing: its scope is empty"
        yield "towards", " ".join(last.audience)
        yield "task", last.task_id or "none named"
        yield "until", _time(last.expires_at)
        calls = [f"{hop.max_calls} (hop {hop.depth})" for hop in readable if hop.max_calls]
        yield "calls", ", ".join(calls) or "as many as it likes"
    if read.claims is not None:
        expires_at = read.claims.get("exp")
        yield "token", f"{read.claims.get('jti')}, until {_time(expires_at)}"
    before = None
    for number, hop in enumerate(read.hops, start=1):
        parent, before = before, hop if isinstance(hop, Grant) else None
        if isinstance(hop, Grant):
            says = f"{phrases.lets(hop, parent)}: "
            says += f"{' '.join(hop.scope) or 'nothing'}; until {_time(hop.expires_at)}; {hop.jti}"
            yield f"hop {number}", says
        else:
            yield f"hop {number}", screen.styled("fail", f"can't be read [{hop.code}]: {hop}")


def _time(moment: JSON) -> str:
    if not canonical.is_integer(moment):
        return "no time"
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "no time"


def _as_json(read: Read, problem: AgentguardError | None, *, checked: bool) -> dict[str, object]:
    hops = [
        hop.claims() if isinstance(hop, Grant) else {"error": str(hop), "code": hop.code}
        for hop in read.hops
    ]
    found = {"code": problem.code, "what": str(problem)} if problem is not None else None
    holds = problem is None if checked else None
    claims = {k: v for k, v in (read.claims or {}).items() if k != access_token.CHAIN_CLAIM}
    return {"holds": holds, "problem": found, "claims": claims or None, "hops": hops}
