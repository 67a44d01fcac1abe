"""How a command is declared, and the options that several commands share.

A command is a function below ``@command(...)``, which gets each option under its name. The
docstring is the help page without its first sentence, which is in the table of ``cli/commands.py``.
Other modules interpret the values: ``location.py`` finds the log, ``cli/audit/filters.py`` makes
the filter of entries, and ``times.py`` parses times.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from datetime import datetime
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypedDict, get_args

import click
import typer

from agentguard.cli.terminal import times

PATH: Final = click.Path(path_type=Path)
PROGRAM: Final = {"allow_interspersed_args": False}
"""The settings of a command whose options end before the first word of another program."""

_TRACE: Final = re.compile(r"[0-9a-fA-F]{4,32}")


class Option(click.Option):
    """An option as the help page shows it: its names, its value unless it is a flag, and a text.

    ``name`` is the function's name for the option, where it is not the option's own. An empty text
    is refused, unless it says something (``MAY_BE_EMPTY``): a shell passes one for a variable that
    is not set, and what grants, limits or names somebody would be as if it were not there.
    """

    def __init__(self, shown: str, text: str, *, name: str = "", **settings: Any) -> None:
        words = shown.replace(",", "").split()
        names = [word for word in words if word.startswith("-")]
        metavar = " ".join(words[len(names) :])
        settings |= {"metavar": metavar} if metavar else {"is_flag": True}
        super().__init__([*names, *filter(None, [name])], help=text, **settings)

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Refuse an empty text; then convert the value as Click does."""
        given = value if isinstance(value, list | tuple) else [value]
        if "" in given and self.name not in MAY_BE_EMPTY:
            message = "an empty text names nothing: give a value, or leave the option out"
            raise click.BadParameter(message, ctx=ctx, param=self)
        return super().type_cast_value(ctx, value)


class Argument(click.Argument):
    """The function's name for an argument, how the help page names it, and a text about it."""

    def __init__(self, name: str, metavar: str, text: str, **settings: Any) -> None:
        super().__init__([name], metavar=metavar, help=text, **settings)

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the words of the usage line."""
        metavar = self.make_metavar(ctx)
        return [metavar if self.required else f"[{metavar}]"]


MAY_BE_EMPTY: Final = frozenset({"anchor", "note"})
"""The options of which an empty text says something: no anchor, and no note."""


def command(
    *parameters: click.Parameter, cls: type[click.Command] = click.Command, **settings: Any
) -> Callable[[Callable[..., None]], click.Command]:
    """Return a decorator that makes a command of a function; ``cli/commands.py`` names it."""

    def decorate(run: Callable[..., None]) -> click.Command:
        return cls(
            None, callback=run, params=[*parameters], help=cleandoc(run.__doc__ or ""), **settings
        )

    return decorate


def trace_id(text: str) -> str:
    """Parse the whole id of a W3C trace; raises ``click.BadParameter``.

    If the first half of the id is zeros, 16 digits are enough, as Jaeger writes such an id.
    """
    if _TRACE.fullmatch(text) is None or len(text) not in (16, 32):
        raise click.BadParameter(f"{text!r} is not a trace id, which has 32 hex digits")
    return text.lower().rjust(32, "0")


def beginning_of_trace_id(text: str) -> str:
    """Parse the id of a W3C trace, or its beginning; raises ``click.BadParameter``.

    ``lookup.whole_trace`` finds the whole id.
    """
    if _TRACE.fullmatch(text) is None:
        raise click.BadParameter(
            f"{text!r} is not a trace id, which has 32 hex digits, and not the beginning of one, "
            "which has 4 at least"
        )
    return text.lower()


# --- the call -----------------------------------------------------------------------------------

CALL: Final = "INVOCATION_ID|INDEX"
NAMES: Final = (
    "An invocation id, 8 or more characters of its beginning, an index as audit list shows it, "
    "or SHARD/INDEX."
)
"""How a person names a call."""

CALL_ARGUMENT: Final = Argument("call", CALL, NAMES)

# --- the log and its trust document -------------------------------------------------------------

CONFIG: Final = Option(
    "--config FILE",
    "The configuration; by default the nearest agentguard.toml, from here upwards.",
    type=PATH,
)
STATE: Final = Option("--state DIR", "The state directory to read.", type=PATH)
ANCHOR: Final = Option(
    "--anchor DIR", "Where checkpoints are kept outside the state; '' for nowhere."
)
TRUST: Final = Option(
    "--trust FILE",
    "The trust document to verify with; by default the copy in the anchor.",
    type=PATH,
)
LOG: Final = (CONFIG, STATE, ANCHOR, TRUST)


class LogOptions(TypedDict):
    """The values of ``LOG``, which ``location.trusted_log`` takes."""

    config: Path | None
    state: Path | None
    anchor: str | None
    trust: Path | None


# --- the output ---------------------------------------------------------------------------------

AS_JSON: Final = Option("--json", "Print JSON, for scripts.")
OUTPUT: Final = Option("-o, --output FILE", "A new file; by default stdout.", type=PATH)
FORCE: Final = Option("--force", "Overwrite an existing file.")
COMPROMISED_SINCE: Final = Option(
    "--compromised-since TIME",
    "Signatures of the old key are invalid from this time on (RFC 3339, with an offset).",
    type=times.parse_exact,
)
NOTE: Final = Option("--note TEXT", "Why, or how you know; the text is logged.", required=True)

# --- the policy ---------------------------------------------------------------------------------

_URL: Final = re.compile(r"https?:/", re.IGNORECASE)


def policy_path(text: str) -> Path:
    """Parse the path of a policy; raises ``click.BadParameter`` for the URL of a server."""
    if _URL.match(text):
        raise click.BadParameter(
            "only agentguard policy replay takes a URL; for a policy on a server, name a "
            'configuration that has engine = "opa" and the url in [policy] with --config FILE'
        )
    return Path(text)


POLICY: Final = Option(
    "--policy PATH",
    "A file or folder in Rego or Cedar, instead of the configuration's policy.",
    type=policy_path,
)
QUERY: Final = Option(
    "--query DATA.PATH",
    "The package to query; by default the configuration's, or data.agent.authz.",
)

# --- typer's forms, for the commands that are not Click's yet -----------------------------------

Kind = Literal[
    "call",
    "outcome",
    "secret",
    "proof",
    "receipt",
    "received",
    "refused",
    "resolution",
    "erasure",
    "request",
    "request_end",
    "evaluation",
    "delegation",
    "revocation",
    "freeze",
    "logout",
    "surrender",
    "adoption",
    "identity",
    "config",
    "policy",
    "roster",
    "key",
    "shard",
]
Decided = Literal["allow", "deny", "approval", "observe"]

_MOST_JOBS: Final = 64
"""The most processes that a user may ask for: each takes memory, and has work waiting ahead."""


def one_of(kind: Any) -> Callable[[str], str]:
    """Return a parser of a ``Literal``'s values, which raises ``typer.BadParameter``.

    Typer's own parser would print "Value error", which helps nobody.
    """
    choices: tuple[str, ...] = get_args(kind)

    def choose(text: str) -> str:
        if text not in choices:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return choose


def options_from(
    name: str, gather: Callable[..., object]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that replaces a command's parameter ``name`` by the options of ``gather``.

    The command gets the value that ``gather`` returns for the options. Help lists the options in
    the place of the parameter, in the order of ``gather``.
    """
    options = inspect.signature(gather, eval_str=True).parameters

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        for own_name, parameter in inspect.signature(command, eval_str=True).parameters.items():
            parameters += options.values() if own_name == name else [parameter]

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            selected_options = {option: arguments.pop(option) for option in options}
            command(**{name: gather(**selected_options)}, **arguments)

        # Typer reads the signature and the annotations.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


# --- the call -----------------------------------------------------------------------------------

CallArgument = Annotated[str, typer.Argument(metavar=CALL, help=NAMES)]

# --- the log and its trust document -------------------------------------------------------------

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
        help="The trust document to verify with; by default the copy in the anchor.",
    ),
]

WithoutArgumentsOption = Annotated[
    bool,
    typer.Option(
        "--without-arguments",
        help="Leave out arguments, policy input and result: their commitments stay.",
    ),
]
JobsOption = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        metavar="N",
        min=1,
        max=_MOST_JOBS,
        help="Verify in N processes; by default one on each core, four at most.",
    ),
]

# --- the output ---------------------------------------------------------------------------------

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
EveryOption = Annotated[
    bool,
    typer.Option(
        "--all", help="Also print outcomes, keys, configuration and policy, as --json always does."
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", help="A new file; by default stdout."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")]

CompromisedSinceOption = Annotated[
    datetime | None,
    typer.Option(
        "--compromised-since",
        metavar="TIME",
        parser=times.parse_exact,
        help="Signatures of the old key are invalid from this time on (RFC 3339, with an offset).",
    ),
]

# --- the policy ---------------------------------------------------------------------------------

NoteOption = Annotated[
    str, typer.Option("--note", metavar="TEXT", help="Why, or how you know; the text is logged.")
]

# --- the filter of entries ----------------------------------------------------------------------

AgentOption = Annotated[
    str | None,
    typer.Option(
        "--agent",
        metavar="NAME|URI",
        help="An agent, or one instance by its URI or its short name, as in assistant:Zq3x.",
    ),
]
PrincipalOption = Annotated[
    str | None,
    typer.Option("--principal", metavar="NAME", help="Calls for a principal, as in user:alice."),
]
ToolOption = Annotated[str | None, typer.Option("--tool", metavar="NAME", help="Calls of a tool.")]
DecisionOption = Annotated[
    Decided | None,
    typer.Option(
        "--decision",
        metavar="DECISION",
        parser=one_of(Decided),
        help="Calls with a decision: allow, deny or approval; observe for calls that ran while the "
        "policy was only observed.",
    ),
]
SinceOption = Annotated[
    datetime | None,
    typer.Option(
        "--since",
        metavar="TIME",
        parser=times.parse,
        help="From a time on: 2026-11-25, 2026-11-25T09:30:00Z, or 30m, 2h, 7d ago.",
    ),
]
UntilOption = Annotated[
    datetime | None,
    typer.Option("--until", metavar="TIME", parser=times.parse, help="Before a time."),
]
TaskOption = Annotated[str | None, typer.Option("--task", metavar="ID", help="Calls of a task.")]
TraceOption = Annotated[
    str | None,
    typer.Option(
        "--trace",
        metavar="ID",
        parser=beginning_of_trace_id,
        help="Calls of a trace, by its id or the beginning of its id.",
    ),
]
KindOption = Annotated[
    Kind | None,
    typer.Option(
        "--kind",
        metavar="KIND",
        parser=one_of(Kind),
        help="Entries of a kind: call, secret, proof, receipt, received, refused, outcome, "
        "resolution, erasure, request, evaluation, delegation, revocation, freeze, adoption, "
        "identity, config, policy, roster, key, shard.",
    ),
]
InDoubtOption = Annotated[
    bool,
    typer.Option("--in-doubt", help="Calls that are authorised in the log and have no outcome."),
]
