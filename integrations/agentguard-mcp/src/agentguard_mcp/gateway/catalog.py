"""``Catalog``: which tools a server offers now, held against the pins, and what the client may see.

A tool that is not pinned, or differs from its pin, is neither shown nor called. Where nothing is
pinned, each tool is held to its first description in this run. The catalog does no I/O:
``tool_list.py`` asks the server, and ``relay.py`` passes lists on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any, Final

from agentguard import Agent, AgentguardError, Decision
from agentguard.adapters import (
    ArgumentsError,
    EncodeError,
    ToolSpec,
    check_tool_names,
    configure_tool,
    shortened_text,
    visible_text,
)
from agentguard_mcp.arguments import require_checkable
from agentguard_mcp.gateway.messages import MAX_LINE, MAX_NAME, encoded
from agentguard_mcp.gateway.pins import Definition, digest_of
from agentguard_mcp.gateway.settings import Settings
from agentguard_mcp.listing import DESCRIPTION, LIST, SCHEMA
from agentguard_mcp.messages import METHOD_PREFIX

MAX_TOOLS: Final = 2_000
"""The most tools of a server; each takes memory for as long as the gateway runs."""

MAX_CHECKING: Final = 5.0
"""The CPU time in seconds for the schemas of one server; other clients wait meanwhile."""

_LONGEST: Final = 128
_LOGGER = logging.getLogger("agentguard.mcp")

START: Final = "start"
"""What starts a server with secrets; ``mcp:start`` for the policy."""

METHODS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "resources/read": (
        "Read a resource of an MCP server.",
        {"type": "object", "properties": {"uri": {"type": "string"}}, "required": ["uri"]},
    ),
    START: (
        "Start an MCP server with secrets, or connect to one with a token.",
        {
            "type": "object",
            "properties": {
                "server": {"type": "string"},
                "command": {"type": "array", "items": {"type": "string"}},
                "url": {"type": "string"},
            },
            "required": ["server"],
        },
    ),
    LIST: (DESCRIPTION, SCHEMA),
    "prompts/get": (
        "Get a prompt of an MCP server.",
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "arguments": {"type": "object"}},
            "required": ["name"],
        },
    ),
}
"""What the policy is asked beside ``tools/call``: description and schema, as of a tool.

For the policy, the name begins with ``mcp:``. The prefix of the settings stands before the name,
but for ``_WITH_SERVER``.
"""

_WITH_SERVER: Final = frozenset({START, LIST})
"""The methods whose arguments name the server, so that no prefix has to tell servers apart."""


class Catalog:
    """The tools of one server, as the server described them last.

    ``agent`` is the agent whose calls the gateway makes; ``[tools.NAME]`` of its configuration
    applies to the server's tools. ``first`` has the digest of the first description of each tool,
    where nothing is pinned; the sessions of one gateway share it.
    """

    def __init__(
        self, settings: Settings, agent: Agent, first: dict[str, str] | None = None
    ) -> None:
        self._settings = settings
        self._agent = agent
        pins = settings.pins
        self._pinned: dict[str, str] = {} if first is None else first
        if pins is not None:
            self._pinned = pins.digests
        self._is_pinned = pins is not None
        self._offered: dict[str, str | None] = {}
        self._specs: dict[str, ToolSpec | Decision] = {}
        self._methods: dict[str, ToolSpec | Decision] = {}
        self._digests: dict[bytes, str | None] = {}
        self._size = 0
        self._checking = 0.0

    def replace(self, definitions: Iterable[object]) -> None:
        """Take the complete list of the server's tools in the place of all earlier ones."""
        self._offered, known = {}, len(self._specs)
        self.learn(definitions)
        if len(self._specs) > known:
            with suppress(AgentguardError):  # a server that is away refuses the calls
                check_tool_names(self._agent)

    def learn(self, definitions: Iterable[object]) -> list[Definition]:
        """Take a list of tools, or one page of the list; return those that the client may see.

        Two tools of one name in one list are both refused.
        """
        known: dict[str, Definition] = {}
        twice: set[str] = set()
        for one in definitions:
            name = one.get("name") if isinstance(one, dict) else None
            if isinstance(name, str) and isinstance(one, dict) and len(name) <= MAX_NAME:
                if name in known:
                    twice.add(name)
                known[name] = one
        for name, definition in known.items():
            self._note(name, None if name in twice else self._digest(definition), definition)
        return [one for name, one in known.items() if self._shows(name)]

    def refusal(self, name: str) -> Decision | None:
        """Return why a call of the tool is refused before the policy is asked; None for no reason.

        The codes are ``tool.unknown``, ``tool.unpinned``, ``tool.changed`` and
        ``tool.uncheckable``, or the code of a mistake in the configuration of the tool.
        """
        server = self._settings.server
        if name not in self._offered or not self._matches(name):
            reason = f"the MCP server {server} has no tool {name} for this client"
            return Decision.refusal(reason, code="tool.unknown")
        if name not in self._pinned and self._offered[name] is None:
            reason = (
                f"the MCP server {server} describes the tool {name} twice, or with a number that "
                "JSON has in several forms"
            )
            return Decision.refusal(reason, code="tool.uncheckable")
        if name not in self._pinned:
            reason = (
                f"the tool {name} of the MCP server {server} is not pinned: see agentguard mcp "
                f"diff --name {server}; if the tool is meant, agentguard mcp pin --name {server}"
            )
            return Decision.refusal(reason, code="tool.unpinned")
        if self._offered[name] != self._pinned[name]:
            reason = (
                f"the tool {name} of the MCP server {server} is not as it was pinned: the "
                "server describes the tool in another way, or twice. See agentguard mcp diff "
                f"--name {server}"
            )
            return Decision.refusal(reason, code="tool.changed")
        spec = self._specs[name]
        return spec if isinstance(spec, Decision) else None

    def spec(self, name: str) -> ToolSpec:
        """Return the specification for a call of a tool; a bare one for a tool that is refused."""
        spec = self._specs.get(name)
        return spec if isinstance(spec, ToolSpec) else self._bare(self._action(name))

    def method(self, name: str) -> tuple[ToolSpec, Decision | None]:
        """Return the specification of one of ``METHODS``, and why each call of it is refused."""
        action = f"{METHOD_PREFIX}{name}"
        if name not in _WITH_SERVER:
            action = self._action(action)
        if name not in self._methods:
            self._methods[name] = self._configured(action, *METHODS[name], listed=True)
        spec = self._methods[name]
        return (spec, None) if isinstance(spec, ToolSpec) else (self._bare(action), spec)

    def _note(self, name: str, found: str | None, definition: Definition) -> None:
        if name not in self._offered and len(self._offered) >= MAX_TOOLS:
            return
        self._offered[name] = found
        if not self._is_pinned and found is not None and len(self._pinned) < MAX_TOOLS:
            self._pinned.setdefault(name, found)
        spec = self._specs.get(name)
        # a check that took too long may be in time now
        is_open = spec is None or (isinstance(spec, Decision) and spec.code == "tool.uncheckable")
        if found is not None and found == self._pinned.get(name) and is_open:
            self._size += len(encoded(definition)) if spec is None else 0
            self._specs[name] = self._specified(name, definition)

    def _specified(self, name: str, definition: Definition) -> ToolSpec | Decision:
        """Return the specification of a tool whose definition is the pinned one."""
        if self._size > MAX_LINE:
            reason = "the tools of the MCP server take more memory than the gateway gives them"
            return Decision.refusal(reason, code="tool.unlisted")
        if self._action(name).startswith(METHOD_PREFIX):
            reason = f"a tool of the MCP server has a name that begins with {METHOD_PREFIX}"
            return Decision.refusal(reason, code="tool.changed")
        description, schema = definition.get("description", ""), definition.get("inputSchema")
        if not isinstance(description, str) or not isinstance(schema, dict):
            reason = f"the tool {name} of the MCP server has no description and schema"
            return Decision.refusal(reason, code="tool.changed")
        why = self._uncheckable(schema)
        if why is not None:
            shown = shortened_text(visible_text(name), _LONGEST)
            server = self._settings.server
            reason = f"the tool {shown} of the MCP server {server} is left out: {why}"
            refusal = Decision.refusal(reason, code="tool.uncheckable")
            if refusal != self._specs.get(name):
                _LOGGER.warning("%s [tool.uncheckable]", reason)
            return refusal
        action = self._action(name)
        return self._configured(action, description, schema, listed=self._is_pinned)

    def _uncheckable(self, schema: Mapping[str, Any]) -> str | None:
        """Return why no arguments can be checked against a schema, None for a good one."""
        if self._checking > MAX_CHECKING:
            return "the schemas of the server take too long to check"
        begun = time.thread_time()
        try:
            require_checkable(schema)
        except ArgumentsError as error:
            return str(error)
        finally:
            self._checking += time.thread_time() - begun
        return None

    def _action(self, name: str) -> str:
        """Return the name of a tool, or of what is asked of this server, for the policy."""
        return f"{self._settings.prefix}{name}"

    def _configured(
        self, action: str, description: str, schema: Mapping[str, Any], *, listed: bool
    ) -> ToolSpec | Decision:
        """Return the specification after ``[tools.NAME]``, or the refusal for a mistake there."""
        try:
            spec = ToolSpec(action, description, schema, self._settings.origin)
            return configure_tool(self._agent, spec, listed=listed)
        except AgentguardError as error:
            return Decision.of_error(error)

    def _bare(self, action: str) -> ToolSpec:
        return ToolSpec(action, "", {}, self._settings.origin)

    def _matches(self, name: str) -> bool:
        patterns = self._settings.tools
        return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)

    def _shows(self, name: str) -> bool:
        spec = self._specs.get(name)
        if not isinstance(spec, ToolSpec) or self.refusal(name) is not None:
            return False
        # else each call is refused: [tools.NAME] names another origin, or there is no such table
        return spec.pin_mismatch is None and spec.unlisted is None

    def _digest(self, definition: Definition) -> str | None:
        """Return the digest of a definition, None for one without a canonical form.

        A server is asked for its tools again and again, and says the same in the same bytes.
        """
        key = sha256(encoded(definition)).digest()
        if key not in self._digests:
            if len(self._digests) >= MAX_TOOLS:
                self._digests.clear()
            try:
                self._digests[key] = digest_of(definition)
            except EncodeError:
                self._digests[key] = None
        return self._digests[key]
