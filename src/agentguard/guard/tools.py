"""``Tools``: applies a guard's configuration to tools; ``spec_of`` describes a plain function.

``call/tool.py`` defines what a tool is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from agentguard.call.tool import FactsFunction, ToolSpec, function_schema
from agentguard.delegation.grant import parse_scopes
from agentguard.domain.config import Config
from agentguard.errors import ConfigError, DelegationError
from agentguard.policy.names import Names
from agentguard.spelling import ScopeSpelling, Spelling, key


class Tools:
    """Applies ``[tools]`` and ``[aliases]`` to tools, and finds misspelt names.

    ``given`` gets to know the names that the tools give to the policy's input.
    """

    def __init__(self, settings: Config, scopes: ScopeSpelling, given: Names) -> None:
        self._settings = settings
        self._scopes = scopes
        self._given = given
        self._spelling = Spelling(settings.tool_names, settings.tools.tables)

    def configure(self, spec: ToolSpec, *, listed: bool = False) -> ToolSpec:
        """Return ``spec`` with the settings of ``[tools.NAME]`` in place of its own.

        A tool with an alias (``[aliases]``) has the alias as its name in the policy, the log and
        the configuration. A tool without a table is denied where the configuration says so
        (``[tools] unlisted``), unless an adapter's own list has it (``listed``). Raises
        ``ConfigError`` for a tool whose own name is the alias of another tool, and for a resource
        that names an argument which ``[redact]`` redacts.
        """
        self._spelling.add(spec.name)
        if spec.name in self._settings.aliases.values():
            message = (
                f"{self._settings.source}: aliases: a tool comes with the name {spec.name}, which "
                "is another one's alias: choose another alias"
            )
            raise ConfigError(message)
        spec = spec.overridden(name=self._settings.aliases.get(spec.name))
        override = self._settings.tools.tables.get(spec.name)
        if override is not None:
            spec = override.over(spec)
        elif self._settings.tools.unlisted == "deny" and not listed:
            spec = replace(spec, unlisted=self._unlisted(spec.name))
        if spec.gives and spec.facts is None:
            message = (
                f"{self._settings.source}: tools.{spec.name}.facts: gives names facts, and the "
                "tool has no look-up of facts: add look_up, or facts in the code"
            )
            raise ConfigError(message)
        self._settings.require_redactable(spec)
        self._spelling.add(spec.name)
        self._scopes.require(spec.name, spec.requires)
        self._given.add(spec)
        return spec

    def described(self, name: str) -> ToolSpec | None:
        """Return a tool as ``[tools.NAME]`` describes it; None for a name without such a table.

        The tool's code is in another process: its description, its schema and the scopes in its
        code are not known here, and no pin is compared. Raises ``ConfigError``.
        """
        table = self._settings.tools.tables.get(name)
        if table is None:
            return None
        bare = ToolSpec(name, "", {}, f"tools.{name}" if table.origin is None else table.origin)
        spec = replace(table.over(bare), pinned_origin=None, pinned_schema=None)
        self._settings.require_redactable(spec)
        return spec

    def looks_up_facts(self, name: str) -> bool:
        """Return whether the configuration names a look-up of facts for a configured tool."""
        override = self._settings.tools.tables.get(name)
        return override is not None and override.look_up is not None

    def require_names(self) -> None:
        """Refuse a configuration whose names don't fit the tools; before the first agent is made.

        Other programs have tools, too, where the configuration is a server's, or has gateways.
        Raises ``ConfigError``.
        """
        if self._settings.server is None and not self._settings.mcp:
            self._spelling.require()

    def check_names(self) -> None:
        """Log each name in ``[tools]`` that no tool has so far and that looks misspelt."""
        self._spelling.warn()

    def _unlisted(self, name: str) -> str:
        meant = self._spelling.table_for(name)
        rename = f"did you mean [tools.{key(meant)}]? Rename that table; or " if meant else ""
        file = Path(self._settings.source).name  # clients of a guard server and models read this
        return (
            f"the tool {name} has no table in {file}, where [tools] unlisted is "
            f'"deny": {rename}write [tools.{key(name)}], with the scopes that the tool requires'
        )


def spec_of(
    function: Callable[..., Any],
    *,
    name: str | None,
    resource: str | None,
    requires: object,
    attributes: Mapping[str, str] | None,
    facts: FactsFunction | None,
    gives: Iterable[str] | None,
) -> ToolSpec:
    """Describe a plain function as a tool; raises ``ConfigError`` for what can't be one."""
    _require_function(function)
    return ToolSpec(
        name=function.__name__ if name is None else name,
        description=(function.__doc__ or "").strip(),
        schema=function_schema(function),
        origin=f"{function.__module__}:{function.__qualname__}",
        requires=() if requires is None else _scopes(requires),
        resource=resource,
        attributes={} if attributes is None else dict(attributes),
        facts=facts,
        gives=None if gives is None else _texts("gives", gives, "['payee']"),
    )


def _scopes(value: object) -> tuple[str, ...]:
    scopes = _texts("requires", value, "['pr:write']")
    if len(scopes) == 0 or "" in scopes:
        raise ConfigError("requires names no scope: name one, or leave requires out")
    try:
        parse_scopes(scopes)
    except DelegationError as error:
        raise ConfigError(f"requires: {error}") from error
    return scopes


def _texts(what: str, value: object, example: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(s, str) for s in value):
        raise ConfigError(f"{what} is a list of names, as in {example}, not {value!r}")
    return tuple(value)


def _require_function(function: Callable[..., Any]) -> None:
    # Since Python 3.14 a partial is a descriptor, and so a routine.
    if isinstance(function, partial) or not inspect.isroutine(function):
        message = f"{function!r} is no function: write one that calls it, and guard that"
        raise ConfigError(message, code="tool.invalid")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        message = (
            f"{function.__name__} is a generator: its effects would come after the call is over; "
            "return a list instead"
        )
        raise ConfigError(message, code="tool.generator")
