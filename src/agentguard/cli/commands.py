"""The command line ``agentguard``: the tree of commands, its entry point and its exit codes.

The tree includes the commands of other distributions. An error becomes one line on stderr and an
exit code: 0 ok, 1 the check failed, 2 usage or configuration. The module of a command imports no
other command's module, and is imported when the command is called (``lazy.py``). Commands share
options (``cli/terminal/options.py``), the search for a state (``cli/terminal/location.py``), the
reading of a log (``cli/audit/history.py``) and the printing (``cli/terminal/screen.py``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

import typer

from agentguard.cli.lazy import PLAIN, Deferred, Group
from agentguard.errors import AgentguardError, ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP: Final = "agentguard.commands"
"""The entry point group of the commands of other distributions, which are plain functions."""

# The help page lists this command of another distribution even where that one is not installed: the
# README begins with ``agentguard demo``, and the command's message says how to install it.
_DEMO: Final = "demo"
_SUMMARIES: Final = {_DEMO: "Watch a guarded agent at work, offline."}
_FAILED: Final = 2

_PLACES: Final = {
    "init": ("setup.init:init", "Create a trust domain in a folder."),
    "doctor": ("setup.doctor:doctor", "Check the setup of a trust domain."),
    "policy": ("policy.commands:app", "Check a policy, test it, and replay calls against it."),
    "agents": ("agents.agents:app", "List the agents and their instances."),
    "serve": ("server.serve:serve", "Serve the guard to programs in other processes."),
    "run": ("server.run:run", "Start a program as one agent of a running guard server."),
    "server": ("server.commands:app", "Look after a running guard server."),
    "mcp": (
        "mcp.commands:app",
        "Put a gateway in front of an MCP server, and pin the server's tools.",
    ),
    "approvals": (
        "approvals.commands:app",
        "List the calls that wait for a person, and answer them.",
    ),
    "trace": ("audit.trace:trace", "Show the calls of one run as a tree, from the log alone."),
    "audit": ("audit.commands:app", "Read the log, and verify it."),
    "evidence": ("audit.evidence:app", "Make the evidence of one call, and verify it."),
    "token": ("agents.token:app", "Get, inspect and verify access tokens and delegations."),
    "revoke": ("agents.revoke:revoke", "Revoke an agent, a delegation, a principal or a key."),
    "freeze": ("agents.freeze:freeze", "Deny every call of every agent."),
    "thaw": ("agents.freeze:thaw", "Allow calls again after a freeze."),
    "resolve": ("audit.resolve:resolve", "Record whether the tool of a call in doubt ran."),
    "erase": (
        "audit.resolve:erase",
        "Erase the arguments, the policy input and the result of a call.",
    ),
    "keys": ("setup.keys:app", "List the keys of the trust domain, and rotate them."),
    "trust": ("setup.trust:app", "Export the public keys of the trust domain, or pin them."),
    "adopt": ("setup.adopt:adopt", "Continue the log in a copied or restored state."),
}
"""The commands and groups in the order of the help page: first what a newcomer needs first."""


class _Root(Group):
    """The root of all commands: agentguard's own, and those of other distributions."""

    places: ClassVar[Mapping[str, tuple[str, str]]] = _PLACES

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  typer passes it
        """Return the names of all commands, those of other distributions at the end."""
        self._add_others()
        first, *rest = _PLACES
        others = sorted({*self.commands} - {*_PLACES, _DEMO})
        return [first, _DEMO, *rest, *others]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command; other distributions are searched for a name of theirs alone."""
        if args[0] not in self.commands:
            self._add_others()
        return super().resolve_command(ctx, args)

    def _add_others(self) -> None:
        """Add the commands of other distributions; none replaces a command of agentguard's own."""
        from importlib.metadata import entry_points  # noqa: PLC0415  the import is slow

        installed = {entry_point.name: entry_point for entry_point in entry_points(group=GROUP)}
        for name in sorted({_DEMO, *installed} - {*self.commands}):
            self.add_command(_other(name, installed.get(name)))


app = typer.Typer(name="agentguard", no_args_is_help=True, cls=_Root, **PLAIN)


def main() -> None:
    """Run the command line and exit."""
    try:
        app(prog_name="agentguard")
    except (AgentguardError, OSError) as error:
        _report(error)
        sys.exit(_FAILED)
    finally:
        _flush()


def _flush() -> None:
    """Write the rest of the output; a reader that went away, such as ``head``, is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # what Python still has in its buffer then goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: AgentguardError | OSError) -> None:
    from agentguard.cli.audit import phrases  # noqa: PLC0415  a help page needs neither
    from agentguard.cli.terminal import screen  # noqa: PLC0415

    if isinstance(error, AgentguardError):
        screen.error(error.code, phrases.with_query(str(error)))
    else:
        screen.error("system.failed", str(error))


def _version(is_requested: bool) -> None:  # noqa: FBT001  typer passes the option's value
    if is_requested:
        from importlib.metadata import version  # noqa: PLC0415  the import is slow

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


def _other(name: str, entry_point: EntryPoint | None) -> Deferred:
    summary = _SUMMARIES.get(name, f"A command of {entry_point.module if entry_point else ''}.")
    return Deferred(name, summary, lambda: _load(name, entry_point))


def _load(name: str, entry_point: EntryPoint | None) -> Callable[..., object]:
    missing: str | None = "agentguard-demo"
    if entry_point is not None:
        try:
            return entry_point.load()  # type: ignore[no-any-return]  # a function, by the contract
        except ModuleNotFoundError as error:
            missing = error.name
    message = f"agentguard {name} needs {missing}, which is not installed"
    if name == _DEMO:
        message += (
            ": from a clone of the project, run pip install . "
            "./integrations/agentguard-langchain ./integrations/agentguard-demo"
        )
    raise ConfigError(message, code="command.missing")
