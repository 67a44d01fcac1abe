"""What the commands of ``agentguard mcp`` share: the gateway's package, its settings, its pins.

The core imports no adapter, so the package is imported by its name at the first use.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple, TypedDict

from agentguard.cli.terminal import screen
from agentguard.cli.terminal.options import CONFIG, Argument, Option
from agentguard.domain import keystore
from agentguard.domain.config import Config, rights
from agentguard.domain.config.mcp import McpConfig, require_server_name, require_url
from agentguard.errors import ConfigError
from agentguard.identity.trust import TrustedKey
from agentguard.storage import files
from agentguard.store.state_log import open_log

_PACKAGE: Final = "agentguard_mcp.gateway"

FOLDER: Final = "mcp-pins"
"""The folder of the pins, beside agentguard.toml."""

AGENT: Final = Option("--agent NAME", "The agent that makes the calls; or in [mcp.SERVER].")
PRINCIPAL: Final = Option(
    "--principal PRINCIPAL",
    "The user for whom the agent acts, as in user:alice; or in [mcp.SERVER].",
)
TASK: Final = Option("--task TASK", "The task for which PRINCIPAL delegates.")
SERVER: Final = (
    Argument(
        "command",
        "COMMAND...",
        "The server and its arguments, after --; by default [mcp.SERVER].",
        nargs=-1,
    ),
    Option("--name SERVER", "The server's name, as in [mcp.SERVER]; by default the program's."),
    Option("--env VARIABLE", "A variable that the server gets; may be repeated.", multiple=True),
    CONFIG,
)
"""How a command names the MCP server, but for its URL."""

_URL_HELP: Final = "A server over HTTP, in the place of COMMAND; or in [mcp.SERVER]."
URL: Final = Option("--url URL", _URL_HELP)
UPSTREAM: Final = Option("--upstream URL", _URL_HELP, name="url")


class ServerOptions(TypedDict):
    """The values of ``SERVER`` and of the server's URL."""

    command: tuple[str, ...]
    name: str | None
    url: str | None
    env: tuple[str, ...]
    config: Path | None


def package() -> Any:
    """Import ``agentguard_mcp.gateway``; raises ``ConfigError`` (``command.missing``)."""
    try:
        return import_module(_PACKAGE)
    except ModuleNotFoundError as error:
        message = (
            f"agentguard mcp needs {error.name}, which is not installed: from a clone of the "
            "project, run pip install . ./integrations/agentguard-mcp"
        )
        raise ConfigError(message, code="command.missing") from error


class Server(NamedTuple):
    """An MCP server: its name, its table, and its command or its URL."""

    name: str
    table: McpConfig
    command: tuple[str, ...]
    url: str | None


def server_of(
    config: Config, name: str | None, command: Sequence[str], url: str | None = None
) -> Server:
    """Return the server that the command line and the configuration name.

    Raises ``ConfigError`` for a server without a name, or without a command and a URL.
    """
    if command and url is not None:
        raise ConfigError("name either a command or a --url")
    if name is None and command:
        name = Path(command[0]).stem
    if name is None:
        raise ConfigError("name the MCP server with --name, or its command after --")
    table = config.mcp.get(require_server_name(name), McpConfig())
    _require_own(config, name, table, tuple(command), url)
    if url is not None or (not command and table.url is not None):
        return Server(name, table, (), require_url(url) if url is not None else table.url)
    chosen = tuple(command) or table.command or ()
    if not chosen:
        message = (
            f"the MCP server {name} has no command: name the command after --, or a command or a "
            f"url in [mcp.{name}] of {config.source}"
        )
        raise ConfigError(message)
    return Server(name, table, chosen, None)


def _require_own(
    config: Config, name: str, table: McpConfig, command: tuple[str, ...], url: str | None
) -> None:
    """Refuse another server than the table's, which would get the secrets of the table.

    The command line may come from a file that an agent can write: the client's configuration.
    """
    has_secrets = bool(table.secrets) or table.bearer is not None
    is_named = bool(table.command) or table.url is not None
    is_other = (command and command != table.command) or (url is not None and url != table.url)
    if has_secrets and is_named and is_other:
        message = (
            f"[mcp.{name}] of {config.source} has secrets for its own server, and the command line "
            "names another one: leave the command and --url out, or give the server another --name"
        )
        raise ConfigError(message)


class Caller(NamedTuple):
    """For whom a gateway calls, as the command line has it; None for what it does not name."""

    agent: str | None = None
    principal: str | None = None
    task: str | None = None

    def over(self, table: McpConfig) -> Caller:
        """Return the caller, by ``[mcp.NAME]`` where the command line names nobody."""
        return Caller(
            table.agent if self.agent is None else self.agent,
            table.principal if self.principal is None else self.principal,
            self.task,
        )


def require_caller(server: Server, caller: Caller) -> None:
    """Raise ``ConfigError`` for a gateway without an agent, or with a task of nobody."""
    whole = caller.over(server.table)
    if whole.agent is None:
        message = f"name the agent with --agent, or as agent in [mcp.{server.name}]"
        raise ConfigError(message)
    if whole.task is not None and whole.principal is None:
        raise ConfigError("--task needs a principal, who delegates for the task")


def pins_or_warning(config: Config, server: Server) -> Any:
    """Return the pins of a server as ``read_pins`` does, with a warning where there are none."""
    pins = read_pins(config, server.name)
    if pins is None:
        held = "each tool is held to its first description of this run"
        if config.tools.unlisted == "deny":  # a pin lists a tool, as a table does
            held = (
                'with [tools] unlisted = "deny", each tool without a table [tools.NAME] is denied'
            )
        screen.warn(
            f"the tools of the MCP server {server.name} are not pinned: {held}. "
            f"{pin_command(server)} pins them"
        )
    return pins


def pin_command(server: Server) -> str:
    """Return the command that pins the tools of a server, whether or not a table names it."""
    words = f"agentguard mcp pin --name {server.name}"
    if server.table.command or server.table.url is not None:
        return words
    return f"{words} -- COMMAND" if server.url is None else f"{words} --url {server.url}"


def settings_of(
    config: Config, server: Server, caller: Caller, env: Sequence[str] = (), pins: Any = None
) -> Any:
    """Return the settings of a gateway; raises ``ConfigError``."""
    name, table, command, url = server
    named, principal, task = caller.over(table)
    agent = "" if named is None else named  # the pins of a server are of no agent
    has_roles = config.principals is not None or config.server is not None  # the guard server's
    lent = delegated_scope(config, agent, table.scope, has_roles=has_roles)
    return package().Settings(
        server=name,
        command=command,
        url=url,
        bearer=table.bearer,
        agent=agent,
        principal=principal,
        delegated=None if principal is None else lent,
        task_id=task,
        prefix=table.prefix,
        pins=pins,
        tools=table.tools,
        filter_list=table.filter_list,
        rounds=table.rounds,
        environment=package().environment(os.environ, (*table.env, *env)),
        secrets=table.secrets,
        calls_per_minute=table.calls_per_minute,
        calls_at_once=table.calls_at_once,
        timeout=table.timeout,
        recheck=table.recheck,
        proofs=_proofs(config, table),
        wait=table.wait,
        elicit=table.elicit,
    )


def _proofs(config: Config, table: McpConfig) -> Any:
    """Return what verifies callers, None for callers without proofs; raises ``ConfigError``."""
    if table.audience is None:
        return None
    if table.trust is not None:
        documents = tuple(map(rights.read, table.trust))
        return package().Proofs(table.audience, table.proofs, documents, None)
    revocations = None
    if config.server is None and config.state.is_dir():  # `mcp pin` needs no state
        state = config.state

        def keys() -> Iterable[TrustedKey]:  # read anew: somebody may rotate the log's key
            return keystore.load_trust(state).keys_for("log")

        revocations = open_log(state, config.anchor, keystore.load_trust(state).log, keys)
    return package().Proofs(table.audience, table.proofs, None, revocations)


def tools_of(config: Config, settings: Any) -> Any:
    """Ask a server for its tools, and return their pins; raises as ``list_tools`` does."""
    if (settings.secrets or settings.bearer) and not settings.agent:
        message = f"the server gets secrets by a call: name the agent in [mcp.{settings.server}]"
        raise ConfigError(message)
    return package().list_tools(settings, Path(config.source))


def pins_path(config: Config, server: str) -> Path:
    """Return the file of a server's pins."""
    table = config.mcp.get(server)
    named = table.pins if table is not None else None
    return named if named is not None else config.base / FOLDER / f"{server}.json"


def read_pins(config: Config, server: str) -> Any:
    """Return the pins of a server, None where the default file does not exist.

    Raises ``ConfigError`` for a file that the configuration names and that does not exist
    (``config.missing``), or that others can write (``config.exposed``); ``DecodeError``
    (``pins.malformed``) and ``OSError``.
    """
    path = pins_path(config, server)
    try:
        data = rights.read(path)
    except FileNotFoundError as error:
        table = config.mcp.get(server)
        if table is None or table.pins is None:
            return None
        message = f"there is no file {path}: write it with agentguard mcp pin --name {server}"
        raise ConfigError(message, code="config.missing") from error
    return package().Pins.loads(data, server)


def write_pins(config: Config, pins: Any) -> Path:
    """Write the pins of a server, and return the file; raises ``StorageError``."""
    path = pins_path(config, pins.server)
    files.replace(path, pins.dumps())
    return path


def delegated_scope(
    config: Config, agent: str, named: frozenset[str] | None, *, has_roles: bool
) -> tuple[str, ...] | None:
    """Return the scope that a principal delegates, None for all that the principal's roles allow.

    ``named`` is the scope that ``[mcp.NAME]`` names, None for none. A principal without roles
    (``has_roles`` is false) delegates what the agent may have.
    """
    if named is None and not has_roles and agent in config.agents:
        named = config.agents[agent].scope
    return None if named is None else tuple(sorted(named))
