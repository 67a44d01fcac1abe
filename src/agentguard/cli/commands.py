"""The command line ``agentguard``: the table of commands, its entry point and its exit codes.

A new command is a line of the table and a function below ``@command``. A command's module is
imported when the command is called, so that a help page imports no command; it imports no other
command's module. An error becomes one line on stderr and an exit code: 0 ok, 1 the check failed, 2
usage or configuration. Commands share options (``cli/terminal/options.py``), the search for a state
(``cli/terminal/location.py``), the reading of a log (``cli/audit/history.py``) and the printing
(``cli/terminal/screen.py``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from copy import copy
from functools import partial
from importlib import import_module
from typing import Any, Final

import click

from agentguard.errors import AgentguardError, ConfigError

GROUP: Final = "agentguard.commands"
"""The entry point group of the commands of other distributions, which are Click's commands."""

_DEMO: Final = "demo"
"""A command of another distribution that the help page lists even where it is not installed.

The README begins with it, and the message of its absence says how to install it.
"""

_FAILED: Final = 2
_INTERRUPTED: Final = 130

_COMMANDS: Final = {
    "init": ("setup.init", "Create a trust domain in a folder."),
    _DEMO: ("", "Watch a guarded agent at work, offline."),
    "doctor": ("setup.doctor", "Check the setup of a trust domain."),
    "policy": (None, "Check a policy, test it, and replay calls against it."),
    "policy check": ("policy.commands", "Load a policy as a guard does, and report its problems."),
    "policy test": ("policy.test:run_tests", "Run the tests of a policy."),
    "policy eval": ("policy.commands:evaluate", "Ask a policy about one call."),
    "policy replay": ("policy.replay", "Decide the calls of the log again by another policy."),
    "agents": (None, "List the agents and their instances."),
    "agents list": (
        "agents.agents:list_agents",
        "List the agents of the configuration and of the log.",
    ),
    "agents show": ("agents.agents", "Show one agent, its instances and their delegations."),
    "serve": ("server.serve", "Serve the guard to programs in other processes."),
    "run": ("server.run", "Start a program as one agent of a running guard server."),
    "server": (None, "Look after a running guard server."),
    "server status": (
        "server.commands",
        "Show how many clients a running guard server has, and how many calls.",
    ),
    "server reload": (
        "server.commands",
        "Have a running guard server load its configuration and its policy anew.",
    ),
    "server accept": (
        "server.commands",
        "Accept that a tool of an agent has changed: the next call pins the tool anew.",
    ),
    "mcp": (None, "Put a gateway in front of an MCP server, and pin the server's tools."),
    "mcp run": ("mcp.run", "Serve an MCP client, and guard each call on the server behind."),
    "mcp serve": (
        "mcp.serve",
        "Serve MCP clients over HTTP, and guard each call on the server behind.",
    ),
    "mcp pin": ("mcp.pins", "Pin the tools of an MCP server as they are now."),
    "mcp diff": ("mcp.pins", "Show how the tools of an MCP server differ from the pins."),
    "mcp install": (
        "mcp.install",
        "Put a gateway in front of a server that an MCP client has in its configuration.",
    ),
    "approvals": (None, "List the calls that wait for a person, and answer them."),
    "approvals list": (
        "approvals.commands:list_requests",
        "List the requests that wait for an answer, the oldest first.",
    ),
    "approvals show": ("approvals.commands", "Show a request whole, as it is signed."),
    "approvals approve": (
        "approvals.commands",
        "Approve a request: this exact call may run, once.",
    ),
    "approvals reject": ("approvals.commands", "Reject a request: the call is denied."),
    "approvals export": (
        "approvals.commands",
        "Write a request to a file, to be answered on another machine.",
    ),
    "approvals import": (
        "approvals.commands:import_answer",
        "Record a signed answer from another machine, if it counts.",
    ),
    "trace": ("audit.trace", "Show the calls of one run as a tree, from the log alone."),
    "audit": (None, "Read the log, and verify it."),
    "audit list": ("audit.listing:list_entries", "List the calls, the newest last."),
    "audit show": ("audit.show", "Show all that the log says of one call."),
    "audit tail": ("audit.tail", "Print the newest calls, and wait for new ones."),
    "audit export": ("audit.export", "Write the log's entries as JSON lines."),
    "audit verify": ("audit.verify", "Verify the whole log."),
    "audit match": (
        "audit.match",
        "Compare the requests in the logs of an agent and of a tool's server.",
    ),
    "evidence": (None, "Make the evidence of one call, and verify it."),
    "evidence make": ("audit.evidence", "Write the evidence of one call to a file."),
    "evidence export": (
        "audit.evidence_export",
        "Write the evidence of many calls to a folder, a file for each.",
    ),
    "evidence verify": ("audit.evidence", "Verify evidence files, and say what they prove."),
    "token": (None, "Get, inspect and verify access tokens and delegations."),
    "token exchange": (
        "agents.token_exchange",
        "Exchange a user's token for an access token of an agent.",
    ),
    "token inspect": ("agents.token", "Explain a token or a delegation, hop by hop."),
    "token verify": ("agents.token", "Verify a token or a delegation as its receiver would."),
    "revoke": ("agents.revoke", "Revoke an agent, a delegation, a principal or a key."),
    "freeze": ("agents.freeze", "Deny every call of every agent."),
    "thaw": ("agents.freeze", "Allow calls again after a freeze."),
    "revocations": ("agents.revocations", "Write who may act no more, for the servers of tools."),
    "resolve": ("audit.resolve", "Record whether the tool of a call in doubt ran."),
    "erase": ("audit.resolve", "Erase the arguments, the policy input and the result of a call."),
    "keys": (None, "List the keys of the trust domain, and rotate them."),
    "keys list": ("setup.keys:list_keys", "List the public keys of the trust document."),
    "keys rotate": ("setup.keys", "Replace a key of the trust domain with a new key."),
    "trust": (None, "Export the public keys of the trust domain, or pin them."),
    "trust export": ("setup.trust", "Write the public keys with which others verify the log."),
    "trust pin": ("setup.trust", "Pin the log and its keys in the anchor."),
    "adopt": ("setup.adopt", "Continue the log in a copied or restored state."),
}
"""Where a command is, and its summary, in the order of the help pages.

A place is a module below this package; its function has the last word of the command for a name, or
the one that is given. A group is nowhere (None). The place of another distribution's is empty.
"""


class Deferred(click.Command):
    """A command that is not imported yet: a name and a summary for the help page of its group."""

    def __init__(self, name: str, summary: str, resolve: Callable[[], click.Command]) -> None:
        super().__init__(name, help=summary)
        self.resolve = resolve
        """Imports and returns the command."""

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        """Import the command, and parse the command line as the command's."""
        return self.resolve().make_context(*args, **settings)


class Group(click.Group):
    """The commands of the table whose words begin with a name, imported when they are called."""

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(name, **settings)
        for words, (place, summary) in _COMMANDS.items():
            group, _, own = words.rpartition(" ")
            if group == name and place is None:
                self.add_command(Group(own, help=summary))
            elif group == name:
                load = partial(_own, place, own, summary) if place else partial(_of_another, own)
                self.add_command(Deferred(own, summary, load))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click passes it
        """Return the names of the commands, in the order of the table."""
        return [*self.commands]


class _Root(Group):
    """The root of all commands: agentguard's own, and those of other distributions."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, those of other distributions at the end."""
        self._add_others()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command; other distributions are searched for a name of theirs alone."""
        if cmd_name not in self.commands:
            self._add_others()
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C is no failed check, as it would be by Click's own exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(_INTERRUPTED) from None

    def _add_others(self) -> None:
        """Add the commands of other distributions; none replaces a command of agentguard's own."""
        from importlib.metadata import entry_points  # noqa: PLC0415  the import is slow

        for name, module in sorted((one.name, one.module) for one in entry_points(group=GROUP)):
            if name not in self.commands:
                load = partial(_of_another, name)
                self.add_command(Deferred(name, f"A command of {module}.", load))


def _own(place: str, word: str, summary: str) -> click.Command:
    module, _, name = place.partition(":")
    command: click.Command = copy(getattr(import_module(f"{__package__}.{module}"), name or word))
    command.help = f"{summary}\n\n{command.help or ''}"
    return command


def _of_another(name: str) -> click.Command:
    from importlib.metadata import entry_points  # noqa: PLC0415  the import is slow

    missing: str | None = "agentguard-demo"
    for entry_point in entry_points(group=GROUP, name=name):
        try:
            command = entry_point.load()
        except ModuleNotFoundError as error:
            missing = error.name
            break
        if isinstance(command, click.Command):
            return command
        message = f"agentguard {name}: expected a command of Click, found {command!r}"
        raise ConfigError(message, code="command.missing")
    message = f"agentguard {name} needs {missing}, which is not installed"
    if name == _DEMO:
        message += (
            ": from a clone of the project, run pip install . "
            "./integrations/agentguard-langchain ./integrations/agentguard-demo"
        )
    raise ConfigError(message, code="command.missing")


@click.group("", cls=_Root)
@click.version_option(
    package_name="agentguard", message="%(prog)s %(version)s", help="Print the version and exit."
)
def app() -> None:
    """Identity, authority and a record for every tool call of an AI agent."""


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
