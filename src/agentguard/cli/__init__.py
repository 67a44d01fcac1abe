"""The command line: ``agentguard``.

Here the commands are put together, those of other distributions included, and errors become one
line and an exit code: 0 ok, 1 the check failed, 2 usage or configuration. Each command stands in a
module of its own, which imports no other command's and is imported when the command is called
(``lazy.py``). Commands share options (``cli/terminal/options.py``), where a domain lies
(``cli/terminal/location.py``), how a log is read (``cli/audit/history.py``) and shown
(``cli/terminal/screen.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

import typer

from agentguard.cli.lazy import PLAIN, Deferred, Group
from agentguard.errors import AgentguardError, ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP: Final = "agentguard.commands"
"""The entry point group through which other distributions bring commands (plain functions)."""

_DEMO: Final = "demo"
_SUMMARIES: Final = {_DEMO: "Watch a guarded agent at work, offline."}
_FAILED: Final = 2

_COMMANDS: Final = {
    "init": ("setup.init:init", "Found a trust domain in a folder."),
    "doctor": ("setup.doctor:doctor", "Check whether this set-up is sound."),
    "freeze": ("agents.freeze:freeze", "Deny every call of every agent, from its next one on."),
    "thaw": ("agents.freeze:thaw", "Let calls go on after a freeze."),
    "adopt": ("setup.adopt:adopt", "Let the log go on in this state, as it is now."),
}
_GROUPS: Final = {
    "agents": ("agents.agents:app", "The agents, configured and seen in the log."),
    "approvals": ("approvals.commands:app", "Calls that wait for a person, and their answers."),
    "audit": ("audit.commands:app", "Look at the log, and verify it."),
    "keys": ("setup.keys:app", "The keys of the trust domain, and their rotation."),
    "policy": ("policy.commands:app", "Check and test a policy, and ask it about calls."),
    "token": ("agents.token:app", "Access tokens and delegations."),
    "trust": ("setup.trust:app", "The public keys of the trust domain."),
}


class _Root(Group):
    """All commands: agentguard's own, and behind them those of other distributions."""

    places: ClassVar[Mapping[str, tuple[str, str]]] = _COMMANDS | _GROUPS

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  typer passes it
        """Return the names of all commands, of other distributions as well, the groups last."""
        self._add_others()
        return [*_COMMANDS, *sorted({*self.commands} - {*_COMMANDS, *_GROUPS}), *_GROUPS]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Look at other distributions only for what is no command of agentguard's own."""
        if args[0] not in self.commands:
            self._add_others()
        return super().resolve_command(ctx, args)

    def _add_others(self) -> None:
        """Add the commands of other distributions; none takes the place of an own one."""
        from importlib.metadata import entry_points  # noqa: PLC0415  it is slow

        brought = {found.name: found for found in entry_points(group=GROUP)}
        for name in sorted({_DEMO, *brought} - {*self.commands}):
            self.add_command(_other(name, brought.get(name)))


app = typer.Typer(name="agentguard", no_args_is_help=True, cls=_Root, **PLAIN)


def main() -> None:
    """Run the command line and exit."""
    try:
        app(prog_name="agentguard")
    except (AgentguardError, OSError) as error:
        _report(error)
        sys.exit(_FAILED)


def _report(error: AgentguardError | OSError) -> None:
    from agentguard.cli.audit import phrases  # noqa: PLC0415  help needs neither
    from agentguard.cli.terminal import screen  # noqa: PLC0415

    if isinstance(error, AgentguardError):
        screen.error(error.code, phrases.with_query(str(error)))
    else:
        screen.error("system.failed", str(error))


def _version(wanted: bool) -> None:  # noqa: FBT001  typer passes the option's value
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415  it is slow

        typer.echo(f"agentguard {version('agentguard')}")
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


def _other(name: str, brought: EntryPoint | None) -> Deferred:
    summary = _SUMMARIES.get(name, f"A command of {brought.module if brought else ''}.")
    return Deferred(name, summary, lambda: _load(name, brought))


def _load(name: str, brought: EntryPoint | None) -> Callable[..., object]:
    missing: str | None = "agentguard-demo"
    if brought is not None:
        try:
            return brought.load()  # type: ignore[no-any-return]  # what the entry point names
        except ModuleNotFoundError as error:
            missing = error.name
    message = f"agentguard {name} needs {missing}, which is not installed"
    if name == _DEMO:
        message += (
            ": from a clone of the project, run pip install . "
            "./integrations/agentguard-langchain ./integrations/agentguard-demo"
        )
    raise ConfigError(message, code="command.missing")
