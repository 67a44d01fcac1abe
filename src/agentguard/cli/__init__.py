"""The command line: ``agentguard``.

Here the commands are put together, those of other distributions included, and errors become one
line and an exit code: 0 ok, 1 the check failed, 2 usage or configuration. Each command stands in a
module of its own and imports no other command's; they share options (``options.py``), where a
domain lies (``location.py``), how a log is read (``history.py``) and shown (``screen.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Final

import typer

from agentguard.cli import brake, screen, wording
from agentguard.cli.adopt import adopt
from agentguard.cli.agents import app as agents
from agentguard.cli.approvals import app as approvals
from agentguard.cli.audit import app as audit
from agentguard.cli.doctor import doctor
from agentguard.cli.init import init
from agentguard.cli.keys import app as keys
from agentguard.cli.policy import app as policy
from agentguard.cli.token import app as token
from agentguard.cli.trust import app as trust
from agentguard.errors import AgentguardError, ConfigError

GROUP: Final = "agentguard.commands"
"""The entry point group through which other distributions bring commands (plain functions)."""

_DEMO: Final = "demo"
_SUMMARIES: Final = {_DEMO: "Watch a guarded agent at work, offline."}
_FAILED: Final = 2

app = typer.Typer(
    name="agentguard",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("init")(init)
app.command("doctor")(doctor)
app.command("freeze")(brake.freeze)
app.command("thaw")(brake.thaw)
app.command("adopt")(adopt)
app.add_typer(agents, name="agents")
app.add_typer(approvals, name="approvals")
app.add_typer(audit, name="audit")
app.add_typer(keys, name="keys")
app.add_typer(policy, name="policy")
app.add_typer(token, name="token")
app.add_typer(trust, name="trust")


def main() -> None:
    """Run the command line and exit."""
    try:
        app(prog_name="agentguard")
    except AgentguardError as error:
        screen.error(error.code, wording.with_query(str(error)))
        sys.exit(_FAILED)
    except OSError as error:
        screen.error("system.failed", str(error))
        sys.exit(_FAILED)


def _version(wanted: bool) -> None:  # noqa: FBT001  typer passes the option's value
    if wanted:
        screen.line(f"agentguard {version('agentguard')}")
        raise typer.Exit


@app.callback()
def root(
    *,
    _show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Identity, authority and a record for every tool call of an AI agent."""


def _add_others() -> None:
    """List the commands of other distributions; each is imported only when it is called.

    They stand beside agentguard's own commands and never in their place.
    """
    own = {command.name for command in app.registered_commands}
    own |= {group.name for group in app.registered_groups}
    brought = {found.name: found for found in entry_points(group=GROUP)}
    for name in sorted({_DEMO, *brought} - own):
        _add(name, brought.get(name))


def _add(name: str, brought: EntryPoint | None) -> None:
    @app.command(
        name,
        help=_SUMMARIES.get(name, f"A command of {brought.module if brought else ''}."),
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def run(context: typer.Context) -> None:
        command = typer.Typer(
            add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
        )
        command.command()(_load(name, brought))
        command(args=context.args, prog_name=f"agentguard {name}")


def _load(name: str, brought: EntryPoint | None) -> Callable[..., object]:
    missing: str | None = "agentguard-langchain"
    if brought is not None:
        try:
            return brought.load()  # type: ignore[no-any-return]  # what the entry point names
        except ModuleNotFoundError as error:
            missing = error.name
    message = f"agentguard {name} needs {missing}, which is not installed"
    if name == _DEMO:
        message += (
            ": from a clone of the project, run pip install . "
            "'./integrations/agentguard-langchain[demo]'"
        )
    raise ConfigError(message, code="command.missing")


_add_others()
