"""``agentguard mcp pin`` and ``agentguard mcp diff``: the tools of a server, held against pins."""

from __future__ import annotations

from typing import Any, Unpack

from agentguard.cli.mcp import gateway
from agentguard.cli.mcp.gateway import SERVER, URL, Server, ServerOptions
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.options import AS_JSON, PROGRAM, Option, command
from agentguard.domain.config import Config
from agentguard.signing import canonical
from agentguard.storage import files


@command(
    URL,
    Option("--update", "Replace pins that differ from the server's tools."),
    *SERVER,
    context_settings=PROGRAM,
)
def pin(*, update: bool, **given: Unpack[ServerOptions]) -> None:
    """Starts the server, asks for its tools, shows them, and writes their definitions with a digest
    of each to a file beside agentguard.toml. From then on the gateway refuses a tool that the
    server describes in another way, and a tool that is not in the file. Exit code 1 if there are
    pins that differ, and no --update.
    """
    settings, _server, probe = _asked(**given)
    has_pins = files.exists(gateway.pins_path(settings, probe.server))
    before = gateway.read_pins(settings, probe.server) if has_pins else None
    found = gateway.tools_of(settings, probe)
    if before is not None:
        difference = gateway.package().compare(before, found)
        if difference and not update:
            _show(difference, before, found)
            screen.warn("nothing was pinned: to pin the tools as they are now, add --update")
            raise SystemExit(1)
    for tool, definition in sorted(found.definitions.items()):
        screen.item(f"{tool}: ", str(definition.get("description", "")))
    path = gateway.write_pins(settings, found)
    number = screen.count(len(found.definitions), "tool", "tools")
    screen.line(f"pinned {number} of {probe.server} in {location.from_home(path)}")


@command(URL, *SERVER, AS_JSON, context_settings=PROGRAM)
def diff(*, json: bool, **given: Unpack[ServerOptions]) -> None:
    """Starts the server and asks for its tools. With --json, one object: server, added, changed and
    removed, each a list of names. Exit code 1 if a tool differs, and 2 if nothing is pinned.
    """
    settings, server, probe = _asked(**given)
    pinned = gateway.read_pins(settings, probe.server)
    if pinned is None:
        how = gateway.pin_command(server)
        message = f"nothing is pinned of the MCP server {probe.server}: {how} pins its tools"
        screen.error("config.missing", message)
        raise SystemExit(2)
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
        raise SystemExit(1)


def _asked(**given: Unpack[ServerOptions]) -> tuple[Config, Server, Any]:
    """Return the configuration, the server, and the settings with which it is asked for tools."""
    config = location.load(given["config"])
    server = gateway.server_of(config, given["name"], given["command"], given["url"])
    return config, server, gateway.settings_of(config, server, gateway.Caller(), given["env"])


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
