"""``agentguard mcp install``: puts a gateway into the configuration file of an MCP client."""

from __future__ import annotations

import json
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from agentguard.cli.mcp import client_files, gateway
from agentguard.cli.mcp.gateway import AGENT, PRINCIPAL
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.options import CONFIG, PATH, Argument, Option, command
from agentguard.domain.config.mcp import McpConfig, require_server_name
from agentguard.errors import ConfigError
from agentguard.storage import files

BACKUP: Final = ".before-agentguard"
"""What is added to the name of the file for the copy of the file as it was, a private one."""


@command(
    Argument(
        "client",
        "CLIENT",
        f"{', '.join(client_files.CLIENTS)}.",
        type=click.Choice([*client_files.CLIENTS]),
    ),
    Option("--name SERVER", "The server's name in the client's file.", required=True),
    AGENT,
    PRINCIPAL,
    Option("--file FILE", "The client's file, if it is in another place.", type=PATH),
    Option("--dry-run", "Show the change, and write nothing."),
    Option("--undo", "Take the gateway away, and start the server again."),
    CONFIG,
)
def install(
    *,
    client: str,
    name: str,
    agent: str | None,
    principal: str | None,
    file: Path | None,
    dry_run: bool,
    undo: bool,
    config: Path | None,
) -> None:
    """Changes the entry of this one server, and leaves the rest of the file as it is. A copy beside
    the file (.before-agentguard) is the file as it was before the first gateway. The client has to
    be started anew. A server with a URL, and a file with comments, can't be changed.
    """
    known_client = client_files.CLIENTS[client]
    path = (known_client.file() if file is None else file).resolve()
    data = _read(path)
    text = data.decode()
    entry = client_files.entry_of(text, known_client.member, name, str(path))
    if undo:
        changed = _without_gateway(path, known_client.member, name, entry)
    else:
        if client_files.has_gateway(entry):
            raise ConfigError(f"{path}: {name} has a gateway already; --undo takes it away")
        changed = client_files.wrapped(entry, _options(config, name, agent, principal, entry))
    _show("before", entry)
    _show("after", changed)
    if dry_run:
        screen.line("nothing was written")
        return
    written = client_files.replaced(text, (known_client.member, name), changed)
    copy = _copy_of(path)
    if undo:
        restored = copy is not None and client_files.is_same_document(written, copy)
        _write(path, (copy if copy is not None and restored else written).encode())
    else:
        # the copy is of the file as it was before the first gateway
        if copy is None or not client_files.has_wrapped(text, known_client.member):
            files.replace(_copy_path(path), data)
        _write(path, written.encode())
    screen.line(f"changed {name} in {location.from_home(path)}: start {client} anew")


def _options(
    config: Path | None,
    name: str,
    agent: str | None,
    principal: str | None,
    entry: Mapping[str, Any],
) -> list[str]:
    """Return the options of ``agentguard mcp run``; raises ``ConfigError`` for an unknown agent."""
    settings = location.load(config)
    table = settings.mcp.get(require_server_name(name))
    caller = table.agent if agent is None and table is not None else agent
    if caller is None:
        raise ConfigError(f"name the agent with --agent, or as agent in [mcp.{name}]")
    if settings.server is None and caller not in settings.agents:
        message = f"{settings.source}: there is no table [agents.{caller}]"
        raise ConfigError(message, code="agent.unknown")
    if not gateway.pins_path(settings, name).exists():
        screen.warn(f"nothing is pinned of {name} yet: {_pin_command(name, table, entry)} pins it")
    source = Path(settings.source)
    source = source.parent.resolve() / source.name  # without the "..", which lead elsewhere one day
    options = ["--config", str(source), "--name", name]
    options += ["--agent", agent] if agent is not None else []
    return options + (["--principal", principal] if principal is not None else [])


def _pin_command(name: str, table: McpConfig | None, entry: Mapping[str, Any]) -> str:
    """Return the command that pins the server; its program is in the client's file alone."""
    words = ["agentguard", "mcp", "pin", "--name", name]
    if table is None or not (table.command or table.url):
        handed = client_files.handed(entry)
        words += [*handed, "--", entry["command"], *entry.get("args", [])]
    return shlex.join(words)


def _read(path: Path) -> bytes:
    try:
        data = files.read(path)
        data.decode()
    except FileNotFoundError as error:
        message = (
            f"there is no file {path}: name the client's file with --file, or add the server to "
            "the client first, as without a gateway"
        )
        raise ConfigError(message, code="config.missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read as UTF-8: {error}") from error
    return data


def _without_gateway(path: Path, member: str, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the entry as it was before the gateway; raises ``ConfigError``."""
    if not client_files.is_wrapped(entry):
        if client_files.has_gateway(entry):
            message = f"{path}: somebody has put the gateway of {name} there; take it away by hand"
            raise ConfigError(message)
        raise ConfigError(f"{path}: {name} has no gateway of agentguard's in front of it")
    plain = client_files.unwrapped(entry)
    copy = _copy_of(path)
    return plain if copy is None else dict(client_files.original(copy, member, name, plain))


def _copy_path(path: Path) -> Path:
    return path.with_name(f"{path.name}{BACKUP}")


def _copy_of(path: Path) -> str | None:
    """Return the copy of the file, None for no copy or one that can't be read."""
    try:
        return files.read(_copy_path(path)).decode()
    except (OSError, UnicodeDecodeError):
        return None


def _write(path: Path, data: bytes) -> None:
    """Write the file whole or not at all, with the mode that it had."""
    mode = stat.S_IMODE(path.stat().st_mode)
    files.replace(path, data)
    path.chmod(mode)


def _show(when: str, entry: dict[str, Any]) -> None:
    """Print the command of an entry; the values of ``env`` may be secrets."""
    screen.item(f"{when}: ", json.dumps([entry["command"], *entry.get("args", [])]))
