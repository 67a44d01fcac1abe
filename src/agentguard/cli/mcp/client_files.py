"""The configuration files of MCP clients: where they are, and the entry of one server in a file.

The functions change the bytes of that entry alone, so the order and the white space of all else
stay as they are. This module reads and writes no file (``install.py``).

Places, read on 2026-11-29: for VS Code its page "MCP configuration reference", for Cursor and
Claude the guides of these clients for users.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from agentguard.errors import ConfigError

OURS: Final = ("-E", "-P", "-m", "agentguard.cli", "mcp", "run")
"""How the arguments of an entry begin that starts a gateway.

A client starts the gateway in the folder of a project, where the agent writes files. With ``-P``
and ``-E``, Python imports no module from this folder, and from no other that ``env`` names.
"""

_GATEWAY: Final = re.compile(
    r"""(?:^|[\s/\\"'])agentguard(?:\.exe|\.cli)?["']?\s+mcp\s+run(?![^\s"'])"""
)
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_DECODER: Final = json.JSONDecoder()


class Client(NamedTuple):
    """A client's file, and the member of the file that has the servers.

    ``path`` is relative to the home folder, or to the working folder for the file of a project.
    """

    path: str
    member: str = "mcpServers"
    in_home: bool = True

    def file(self) -> Path:
        """Return the path of the file."""
        return (Path.home() if self.in_home else Path.cwd()) / self.path


_SUPPORT: Final = "Library/Application Support" if sys.platform == "darwin" else ".config"

CLIENTS: Final[Mapping[str, Client]] = {
    "claude-desktop": Client(f"{_SUPPORT}/Claude/claude_desktop_config.json"),
    "claude-code": Client(".mcp.json", in_home=False),
    "cursor": Client(".cursor/mcp.json"),
    "vscode": Client(".vscode/mcp.json", member="servers", in_home=False),
}


def entry_of(text: str, member: str, server: str, source: str) -> dict[str, Any]:
    """Return the entry of a server on stdio; ``source`` names the file in errors.

    Raises ``ConfigError`` for a text that is no JSON object or names a key twice, and for a server
    that is missing there or has no command.
    """
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        message = (
            f"{source} is not plain JSON ({error}): agentguard changes no such file, as it may "
            "have comments; change the entry by hand"
        )
        raise ConfigError(message) from error
    servers = document.get(member) if isinstance(document, dict) else None
    entry = servers.get(server) if isinstance(servers, dict) else None
    if not isinstance(entry, dict):
        known = ", ".join(servers) if isinstance(servers, dict) and servers else "none"
        message = (
            f"{source} has no server {server} in {member}; the servers there are: {known}. Correct "
            "--name, or add the server as for a client without a gateway, and install then"
        )
        raise ConfigError(message)
    arguments = entry.get("args", [])
    is_list = isinstance(arguments, list) and all(isinstance(one, str) for one in arguments)
    if not isinstance(entry.get("command"), str) or not is_list:
        message = (
            f"{source}: {server} has no command, and install changes servers on stdio alone. For a "
            f"server at a URL, name the url in [mcp.{server}] of agentguard.toml, and let the "
            f"client start agentguard mcp run --name {server}"
        )
        raise ConfigError(message)
    return entry


def is_wrapped(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry starts a gateway that ``wrapped`` has put there."""
    arguments = entry.get("args", [])
    return (
        isinstance(arguments, list)
        and tuple(arguments[: len(OURS)]) == OURS
        and "--" in arguments[:-1]
    )


def has_gateway(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry starts a gateway, by ``wrapped`` or as somebody has written it.

    Another program may start the gateway: ``uv run``, or a shell with ``-c``.
    """
    return _GATEWAY.search(" ".join([entry["command"], *entry.get("args", [])])) is not None


def has_wrapped(text: str, member: str) -> bool:
    """Return whether any entry in a valid file starts a gateway that ``wrapped`` has put there."""
    servers = json.loads(text)[member].values()
    return any(isinstance(one, dict) and is_wrapped(one) for one in servers)


def original(text: str, member: str, server: str, plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry that a copy of the file has of a server, if this is the server ``plain``.

    ``unwrapped`` does not know whether the entry had an empty list of arguments or none. Returns
    ``plain`` where the copy has another entry, or can't be read.
    """
    try:
        entry = entry_of(text, member, server, "the copy")
    except ConfigError:
        return plain
    return (
        entry if _same({**entry, "args": entry.get("args", [])}, {"args": [], **plain}) else plain
    )


def is_same_document(one: str, other: str) -> bool:
    """Return whether two JSON texts say the same, whatever their white space and order."""
    try:
        return _same(json.loads(one), json.loads(other))
    except (ValueError, RecursionError):
        return False


def wrapped(entry: Mapping[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """Return the entry with a gateway in front of its server.

    ``options`` are those of ``agentguard mcp run``. The variables of the entry's ``env`` go to the
    gateway, which hands them on.
    """
    command = [entry["command"], *entry.get("args", [])]
    words = [*OURS, *options, *handed(entry), "--", *command]
    return {**entry, "command": sys.executable, "args": words}


def handed(entry: Mapping[str, Any]) -> list[str]:
    """Return the options that hand the variables of an entry's ``env`` on to the server."""
    variables = entry.get("env")
    names = sorted(variables) if isinstance(variables, dict) else []
    return [word for name in names for word in ("--env", name)]


def unwrapped(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry as it was before ``wrapped``."""
    arguments = entry["args"]
    command, *rest = arguments[arguments.index("--") + 1 :]
    plain = {**entry, "command": command, "args": rest}
    if not rest:
        del plain["args"]
    return plain


def replaced(text: str, path: Sequence[str], value: Mapping[str, Any]) -> str:
    """Return a JSON text with another value at ``path``, and not another change."""
    start, end = _span(text, path)
    line = text[text.rfind("\n", 0, start) + 1 : start]
    margin = line[: len(line) - len(line.lstrip())]
    written = json.dumps(value, indent=2, ensure_ascii=False)
    if _SURROGATE.search(written):
        written = json.dumps(value, indent=2)  # UTF-8 has no form for half a pair of surrogates
    written = written.replace("\n", f"\n{margin}")
    return text[:start] + written + text[end:]


def _span(text: str, path: Sequence[str]) -> tuple[int, int]:
    """Return where the value at ``path`` begins and ends in a valid JSON text."""
    place = _skip(text, 0)
    for name in path:
        place = _skip(text, place + 1)  # behind the brace
        while True:
            key, place = _DECODER.raw_decode(text, place)
            place = _skip(text, _skip(text, place) + 1)  # behind the colon
            if key == name:
                break
            _value, place = _DECODER.raw_decode(text, place)
            place = _skip(text, _skip(text, place) + 1)  # behind the comma
    _value, end = _DECODER.raw_decode(text, place)
    return place, end


def _same(one: object, other: object) -> bool:
    """Return whether two values are the same JSON; for Python, 1 and true are equal."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _skip(text: str, place: int) -> int:
    space = _SPACE.match(text, place)
    return space.end() if space is not None else place


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object names a key twice")
    return value
