"""The tools of a session: as the program describes them, and as the configuration has them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from agentguard.call.tool import ToolSpec
from agentguard.flow.ports import Ports
from agentguard.guard.embedded import Embedded
from agentguard.server.pins import pin_of


class RegisteredTool(NamedTuple):
    """A tool of a session: ``declared`` by the program, and configured (``spec``).

    ``pin`` is that of the declared tool. ``ports`` are those of the configuration of ``spec``.
    """

    declared: ToolSpec
    pin: bytes
    spec: ToolSpec
    ports: Ports


def register(declared: ToolSpec, parts: Embedded) -> RegisteredTool:
    """Apply the configuration to a tool; raises ``ConfigError``."""
    ports = parts.runtime.current_ports()  # before the tables: whoever has the new ports has both
    spec = parts.tools.configure(declared)
    by_client = declared.facts is not None and not parts.tools.looks_up_facts(spec.name)
    return RegisteredTool(
        declared, pin_of(declared), replace(spec, facts_by_client=by_client), ports
    )
