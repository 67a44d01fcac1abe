"""Options and arguments that several commands share, each declared once, as a type.

Other modules interpret the values: ``location.py`` finds the log, ``cli/audit/filters.py`` makes
the filter of entries, and ``times.py`` parses times.
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

_TRACE: Final = re.compile(r"[0-9a-fA-F]{4,32}")


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


def trace_id(text: str) -> str:
    """Parse the whole id of a W3C trace; raises ``typer.BadParameter``.

    If the first half of the id is zeros, 16 digits are enough, as Jaeger writes such an id.
    """
    if _TRACE.fullmatch(text) is None or len(text) not in (16, 32):
        raise typer.BadParameter(f"{text!r} is not a trace id, which has 32 hex digits")
    return text.lower().rjust(32, "0")


def beginning_of_trace_id(text: str) -> str:
    """Parse the id of a W3C trace, or its beginning; raises ``typer.BadParameter``.

    ``lookup.whole_trace`` finds the whole id.
    """
    if _TRACE.fullmatch(text) is None:
        raise typer.BadParameter(
            f"{text!r} is not a trace id, which has 32 hex digits, and not the beginning of one, "
            "which has 4 at least"
        )
    return text.lower()


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

_DASHED: Final = re.compile(r"-[A-Za-z0-9_-]{7,127}")
_THUMBPRINT_LENGTH: Final = 43


class TakesNames(TyperCommand):
    """A command with an argument that may be an id that begins with ``-``, as one id in 64 does.

    The command has no option of one letter. So a word that begins with one ``-`` and is as long as
    an id is an id, and a word that begins with two and is as long as a thumbprint is a thumbprint.
    Any other such word is an option, or a misspelt option.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line, after such ids have been moved behind a ``--``."""
        end = args.index("--") if "--" in args else len(args)
        options = {
            name: option
            for option in self.params
            for name in (*option.opts, *option.secondary_opts)
        }
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

_URL: Final = re.compile(r"https?:/", re.IGNORECASE)
"""The beginning of a URL as a ``Path`` writes it: with one slash."""


def not_url(path: Path | None) -> Path | None:
    """Refuse the URL of a server in the place of a file."""
    if path is not None and _URL.match(str(path)):
        raise typer.BadParameter(
            "only agentguard policy replay takes a URL; for a policy on a server, name a "
            'configuration that has engine = "opa" and the url in [policy] with --config FILE'
        )
    return path


PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="PATH",
        callback=not_url,
        help="A file or folder in Rego or Cedar, instead of the configuration's policy.",
    ),
]
QueryOption = Annotated[
    str | None,
    typer.Option(
        "--query",
        metavar="DATA.PATH",
        help="The package to query; by default the configuration's, or data.agent.authz.",
    ),
]

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
