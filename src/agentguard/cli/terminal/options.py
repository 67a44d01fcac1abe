"""How a command is declared, and the options that several commands share.

A command is a function below ``@command(...)``, which gets each option under its name. The
docstring is the help page without its first sentence, which is in the table of ``cli/commands.py``.
Other modules interpret the values: ``location.py`` finds the log, ``cli/audit/filters.py`` makes
the filter of entries, and ``times.py`` parses times.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final, TypedDict

import click

from agentguard.cli.terminal import times

PATH: Final = click.Path(path_type=Path)
PROGRAM: Final = {"allow_interspersed_args": False}
"""The settings of a command whose options end before the first word of another program."""

_MOST_JOBS: Final = 64
"""The most processes that a user may ask for: each takes memory, and has work waiting ahead."""

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
    """An argument: its name in the function, its name on the help page, and a text."""

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
    "An invocation id, 8 or more characters of its beginning, or an index as audit list shows it."
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


JOBS: Final = Option(
    "--jobs N",
    "Verify in N processes; by default one on each core, four at most.",
    type=click.IntRange(1, _MOST_JOBS),
)

# --- the output ---------------------------------------------------------------------------------

WITHOUT_ARGUMENTS: Final = Option(
    "--without-arguments",
    "Leave out arguments, policy input and result: their commitments stay.",
)
EVERY: Final = Option(
    "--all",
    "Also print outcomes, keys, configuration and policy, as --json always does.",
    name="every",
)
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
