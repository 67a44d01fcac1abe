"""``agentguard mcp pin`` and ``agentguard mcp diff``: the tools of a server, held against pins."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agentguard.cli.mcp import gateway
from agentguard.cli.mcp.gateway import (
    Command,
    CommandArgument,
    EnvOption,
    NameOption,
    UrlOption,
)
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.options import ConfigOption, JsonOption
from agentguard.signing import canonical
from agentguard.storage import files


def pin(
    command: CommandArgument = None,
    *,
    name: NameOption = None,
    url: UrlOption = None,
    env: EnvOption = None,
    update: Annotated[
        bool, typer.Option("--update", help="Replace pins that differ from the server's tools.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Pin the tools of an MCP server as they are now.

    Starts the server, asks for its tools, shows them, and writes their definitions with a digest of
    each to a file beside agentguard.toml. From then on the gateway refuses a tool that the server
    describes in another way, and a tool that is not in the file. Exit code 1 if there are pins that
    differ, and no --update.
    """
    settings = location.load(config)
    server = gateway.server_of(settings, name, command or (), url)
    probe = gateway.settings_of(settings, server, gateway.Caller(), env or ())
    has_pins = files.exists(gateway.pins_path(settings, probe.server))
    before = gateway.read_pins(settings, probe.server) if has_pins else None
    found = gateway.tools_of(settings, probe)
    if before is not None:
        difference = gateway.package().compare(before, found)
        if difference and not update:
            _show(difference, before, found)
            screen.warn("nothing was pinned: to pin the tools as they are now, add --update")
            raise typer.Exit(1)
    for tool, definition in sorted(found.definitions.items()):
        screen.item(f"{tool}: ", str(definition.get("description", "")))
    path = gateway.write_pins(settings, found)
    number = screen.count(len(found.definitions), "tool", "tools")
    screen.line(f"pinned {number} of {probe.server} in {location.from_home(path)}")


def diff(
    command: CommandArgument = None,
    *,
    name: NameOption = None,
    url: UrlOption = None,
    env: EnvOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show how the tools of an MCP server differ from the pins.

    Starts the server and asks for its tools. With --json, one object: server, added, changed and
    removed, each a list of names. Exit code 1 if a tool differs, and 2 if nothing is pinned.
    """
    settings = location.load(config)
    server = gateway.server_of(settings, name, command or (), url)
    probe = gateway.settings_of(settings, server, gateway.Caller(), env or ())
    pinned = gateway.read_pins(settings, probe.server)
    if pinned is None:
        how = gateway.pin_command(server)
        message = f"nothing is pinned of the MCP server {probe.server}: {how} pins its tools"
        screen.error("config.missing", message)
        raise typer.Exit(2)
    found = gateway.tools_of(settings, probe)
    difference = gateway.package().compare(pinned, found)
    if json:
        screen.json_line(
            {
                "server": probe.server,
                "added": list(difference.added),
                "changed": list(difference.changed),
                "removed": list(difference.removed),
            }
        )
    elif difference:
        _show(difference, pinned, found)
    else:
        screen.line(f"the tools of {probe.server} are as pinned")
    if difference:
        raise typer.Exit(1)


pin.command_class = Command  # type: ignore[attr-defined]  # read by cli/lazy.py
diff.command_class = Command  # type: ignore[attr-defined]


def _show(difference: Any, pinned: Any, found: Any) -> None:
    """Print each tool that differs; of a changed tool, print each member before and after."""
    for name in difference.added:
        screen.item(f"added {name}: ", str(found.definitions[name].get("description", "")))
    for name in difference.removed:
        screen.item(f"removed {name}: ", str(pinned.definitions[name].get("description", "")))
    for name in difference.changed:
        before, after = pinned.definitions[name], found.definitions[name]
        for member in sorted({*before, *after}):
            if before.get(member) != after.get(member):
                screen.item(f"changed {name}: {member} was ", _text(before.get(member)))
                screen.item(f"changed {name}: {member} is ", _text(after.get(member)))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical.dumps_record(value).decode()
