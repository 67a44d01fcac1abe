"""``ClientTools``: the tools of a guard whose configuration is in a server."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, Final

from agentguard.call.tool import ToolSpec
from agentguard.client.link import Link
from agentguard.client.names import Name
from agentguard.signing.canonical import sha256_hex
from agentguard.wire import values

_DECLARED: Final = "_agentguard_declared"
"""Where a configured tool keeps the program's own specification, for another guard's server."""


class ClientTools:
    """Has the server apply its configuration to tools, and names the tools in the session."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lock = threading.RLock()  # no call that interrupts this thread waits for it
        self._names: dict[str, Name[tuple[ToolSpec, str]]] = {}

    def configure(self, spec: ToolSpec, *, listed: bool = False) -> ToolSpec:  # noqa: ARG002
        """Return ``spec`` with the settings of the server in place of its own.

        What this process lists (``listed``) lets no tool run at the server. Raises ``ConfigError``
        as an embedded guard does, and ``ServerError``.
        """
        made = Name(self._link, lambda: self._register(spec))
        configured = made()[0]
        with self._lock:
            # an adapter may also make calls of a tool that it has not configured
            self._names[_key(configured)] = self._names[_key(spec)] = made
        return configured

    def _register(self, spec: ToolSpec) -> tuple[ToolSpec, str]:
        declared: ToolSpec = spec.__dict__.get(_DECLARED, spec)
        answer = self._link.request({"op": "tool", "tool": values.tool(declared)}).header
        configured = values.read_tool(answer.get("tool"), _unused)
        configured = replace(configured, facts=spec.facts)
        configured.__dict__[_DECLARED] = declared  # what the server compares with its pin
        return configured, values.text(answer.get("name"))

    def name(self, spec: ToolSpec) -> str:
        """Return the name of a configured tool in the session; registers the tool if need be."""
        made = self._names.get(_key(spec))
        if made is None:
            self.configure(spec)
            made = self._names[_key(spec)]
        return made()[1]

    def drop(self, spec: ToolSpec) -> None:
        """Have the name of a tool made anew the next time."""
        made = self._names.get(_key(spec))
        if made is not None:
            made.drop()

    def forked(self) -> None:
        """Renew the locks, in a forked process; the link begins a session without the names."""
        self._lock = threading.RLock()
        for name in self._names.values():
            name.forked()

    def require_names(self) -> None:
        """Do nothing: the server's configuration is for the tools of several programs."""

    def check_names(self) -> None:
        """Have the server log each name in its configuration that looks misspelt."""
        self._link.request({"op": "check_names"})


def _key(spec: ToolSpec) -> str:
    """Return what tells a configured tool from others, with all that the server goes by."""
    kept: Any = spec.__dict__.get("_agentguard_key")
    if kept is None:
        kept = sha256_hex(values.encoded(values.tool(spec)))
        spec.__dict__["_agentguard_key"] = kept  # as cached_property keeps a value
    return str(kept)


def _unused(_facts_input: object) -> Any:
    raise AssertionError("the facts of a tool are its own")
