"""Options and arguments that several commands share, each declared once, as a type.

What they say is understood elsewhere: where a log lies in ``location.py``, which entries are wanted
in ``cli/audit/filters.py``, a time in ``times.py``.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import typer
from typer.core import TyperCommand

from agentguard.cli.terminal import times

Kind = Literal[
    "call",
    "authorization",
    "outcome",
    "resolution",
    "erasure",
    "request",
    "delegation",
    "revocation",
    "freeze",
    "adoption",
    "identity",
    "config",
    "policy",
    "roster",
    "key",
    "shard",
]
Decided = Literal["allow", "deny", "approval", "observe"]

_TRACE: Final = re.compile(r"(?:[0-9a-fA-F]{16}){1,2}")


def one_of(kind: Any) -> Callable[[str], str]:
    """Return a parser of a ``Literal``'s values, which raises ``typer.BadParameter``.

    Typer's own would say "Value error" to people.
    """
    choices: tuple[str, ...] = get_args(kind)

    def choose(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"{text!r} is none of {', '.join(choices)}")
        return text

    return choose


def trace_id(text: str) -> str:
    """Read the id of a W3C trace; raises ``typer.BadParameter``.

    One whose first half is zeros may be without these, as Jaeger writes it.
    """
    if _TRACE.fullmatch(text) is None:
        raise typer.BadParameter(f"{text!r} is no trace id, which has 32 hex digits")
    return text.lower().rjust(32, "0")


def gathered(
    name: str, gather: Callable[..., object]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command the options of ``gather`` for its parameter ``name``.

    What ``gather`` makes of them is what the command gets. Help lists them in that place, in their
    order there.
    """
    options = inspect.signature(gather, eval_str=True).parameters

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        for own, parameter in inspect.signature(command, eval_str=True).parameters.items():
            parameters += options.values() if own == name else [parameter]

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            selected_options = {option: arguments.pop(option) for option in options}
            command(**{name: gather(**selected_options)}, **arguments)

        # what typer reads
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


# --- which call is meant ------------------------------------------------------------------------

_DASHED: Final = re.compile(r"-[A-Za-z0-9_-]{7,127}")
_THUMBPRINT_LENGTH: Final = 43


class TakesNames(TyperCommand):
    """A command of which an argument may be an id that begins with ``-``, as one in 64 does.

    It has no option of one letter, so what begins with one ``-`` and is as long as an id is one;
    with two, what has a thumbprint's length. Anything else is an option, or a misspelt one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what was typed, with such ids put behind a ``--``."""
        end = args.index("--") if "--" in args else len(args)
        options = {name: one for one in self.params for name in (*one.opts, *one.secondary_opts)}
        names: list[str] = []
        others: list[str] = []
        takes_value = False
        for arg in args[:end]:
            is_value, option = takes_value, options.get(arg)
            takes_value = not is_value and option is not None and not getattr(option, "is_flag", 0)
            is_name = not is_value and _is_dashed(arg) and f"-{arg}" not in options
            (names if is_name and option is None else others).append(arg)
        if not names:
            return super().parse_args(ctx, args)
        return super().parse_args(ctx, [*others, "--", *names, *args[end + 1 :]])


def _is_dashed(arg: str) -> bool:
    if arg.startswith("--"):
        return len(arg) == _THUMBPRINT_LENGTH and _DASHED.fullmatch(arg) is not None
    return _DASHED.fullmatch(arg) is not None


CALL: Final = "INVOCATION_ID|INDEX"
NAMES: Final = (
    "An invocation id, 8 or more characters of its beginning, an index as audit list shows it, "
    "or SHARD/INDEX."
)
"""How a person names a call."""

CallArgument = Annotated[str, typer.Argument(metavar=CALL, help=NAMES)]

# --- where a log lies, and whom to believe about it ---------------------------------------------

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration; by default the nearest agentguard.toml, from here upwards.",
    ),
]
StateOption = Annotated[
    Path | None, typer.Option("--state", metavar="DIR", help="The state directory to read.")
]
AnchorOption = Annotated[
    str | None,
    typer.Option(
        "--anchor",
        metavar="DIR",
        help="Where checkpoints are kept outside the state; '' for nowhere.",
    ),
]
TrustOption = Annotated[
    Path | None,
    typer.Option(
        "--trust",
        metavar="FILE",
        help="The trust document to believe; by default the copy that is kept with the anchors.",
    ),
]

# --- what is printed or written -----------------------------------------------------------------

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
EveryOption = Annotated[
    bool,
    typer.Option(
        "--all", help="Also outcomes, keys, configuration and policy; --json always has them."
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", help="A new file; by default stdout."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite FILE.")]

CompromisedSinceOption = Annotated[
    datetime | None,
    typer.Option(
        "--compromised-since",
        metavar="TIME",
        parser=times.given_exactly,
        help="The old key counts for nothing from then on (RFC 3339, with an offset).",
    ),
]

# --- which policy is asked --------------------------------------------------------------------

_URL: Final = re.compile(r"https?:/", re.IGNORECASE)
"""How a URL begins, as a path has it: with one slash."""


def not_url(path: Path | None) -> Path | None:
    """Refuse the URL of a server where a file is meant."""
    if path is not None and _URL.match(str(path)):
        raise typer.BadParameter(
            "a URL is taken by agentguard policy replay alone; for a policy on a server name a "
            'configuration with engine = "opa" and its url in [policy]: --config FILE'
        )
    return path


PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="PATH",
        callback=not_url,
        help="A file or folder in Rego or Cedar, not the configuration's.",
    ),
]
QueryOption = Annotated[
    str | None,
    typer.Option(
        "--query",
        metavar="DATA.PATH",
        help="The package to ask; by default the configuration's, or data.agent.authz.",
    ),
]

NoteOption = Annotated[
    str, typer.Option("--note", metavar="TEXT", help="Why, or how you know; it is logged.")
]

# --- which entries are wanted -------------------------------------------------------------------

AgentOption = Annotated[
    str | None,
    typer.Option(
        "--agent",
        metavar="NAME|URI",
        help="An agent, or one instance of it: its URI, or its short name as in assistant:Zq3x.",
    ),
]
PrincipalOption = Annotated[
    str | None,
    typer.Option("--principal", metavar="NAME", help="Calls for somebody, as in agent:assistant."),
]
ToolOption = Annotated[str | None, typer.Option("--tool", metavar="NAME", help="Calls of a tool.")]
DecisionOption = Annotated[
    Decided | None,
    typer.Option(
        "--decision",
        metavar="DECISION",
        parser=one_of(Decided),
        help="Calls that were decided so: allow, deny or approval; observe for those that ran "
        "while the policy was only observed.",
    ),
]
SinceOption = Annotated[
    datetime | None,
    typer.Option(
        "--since",
        metavar="TIME",
        parser=times.given,
        help="From a time on: 2026-11-25, 2026-11-25T09:30:00Z, or 30m, 2h, 7d ago.",
    ),
]
UntilOption = Annotated[
    datetime | None,
    typer.Option("--until", metavar="TIME", parser=times.given, help="Before a time."),
]
TaskOption = Annotated[str | None, typer.Option("--task", metavar="ID", help="Calls of a task.")]
TraceOption = Annotated[
    str | None,
    typer.Option(
        "--trace", metavar="ID", parser=trace_id, help="Calls of a trace (32 hex digits)."
    ),
]
KindOption = Annotated[
    Kind | None,
    typer.Option(
        "--kind",
        metavar="KIND",
        parser=one_of(Kind),
        help="Entries of a kind: call, outcome, resolution, erasure, request, delegation, "
        "revocation, freeze, adoption, identity, config, policy, roster, key, shard.",
    ),
]
InDoubtOption = Annotated[
    bool,
    typer.Option("--in-doubt", help="Calls that were authorised, of which nothing is known since."),
]
