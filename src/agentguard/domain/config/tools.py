"""Reads the tables about tools: ``[tools]``, ``[aliases]``, ``[paths]`` and ``[redact]``.

A ``ToolConfig`` replaces parts of the specification that the code gives a tool.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from agentguard.call import redaction
from agentguard.call.redaction import Redaction
from agentguard.call.tool import ToolSpec
from agentguard.call.vocabulary import RESERVED
from agentguard.domain.config.spelling import did_you_mean
from agentguard.domain.config.table import Table
from agentguard.errors import ConfigError, DecodeError
from agentguard.paths import Folder
from agentguard.signing.canonical import is_sha256


@dataclass(frozen=True, slots=True)
class ToolConfig:
    """``[tools.NAME]``: values that replace those in the code; None keeps the code's value.

    ``origin`` and ``schema`` replace nothing: a tool with another origin or schema is refused.
    ``show`` names the arguments that the lists of calls and of requests show.
    """

    requires: tuple[str, ...] | None = None
    resource: str | None = None
    attributes: Mapping[str, str] | None = None
    facts: str | None = None
    gives: tuple[str, ...] | None = None
    place: str = ""
    """Where the table stands, for messages."""

    origin: str | None = None
    schema: str | None = None
    show: tuple[str, ...] = ()

    def over(self, spec: ToolSpec) -> ToolSpec:
        """Return ``spec`` with the values of this table; raises ``ConfigError``.

        ``facts`` is imported only now: reading a configuration runs no application code. ``gives``
        without ``facts`` names what the code's own look-up gives.
        """
        self._require_shown(spec)
        return spec.overridden(
            requires=self.requires,
            resource=self.resource,
            attributes=self.attributes,
            facts=None if self.facts is None else load_callable(self.facts, f"{self.place}.facts"),
            gives=self.gives,
            pinned_origin=self.origin,
            pinned_schema=self.schema,
        )

    def _require_shown(self, spec: ToolSpec) -> None:
        """Refuse a name in ``show`` that no argument of the tool can have."""
        properties = spec.schema.get("properties")
        if not isinstance(properties, Mapping) or spec.schema.get("additionalProperties"):
            return
        takes_any = any(
            isinstance(one, Mapping) and one.get("kind") == "var_keyword"
            for one in properties.values()
        )
        for name in () if takes_any else self.show:
            if name not in properties:
                message = (
                    f"{self.place}: show names the argument {name!r}, which it does not take: "
                    f"{did_you_mean(name, properties)}it takes {', '.join(properties) or 'none'}"
                )
                raise ConfigError(message)


def load_callable(reference: str, where: str) -> Callable[..., Any]:
    """Import ``package.module:callable``; raises ``ConfigError``."""
    module_name, _, name = reference.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        message = (
            f"{where}: {reference!r} can't be imported ({type(error).__name__}: {error}); "
            "expected 'package.module:callable' on Python's path; set PYTHONPATH if need be"
        )
        raise ConfigError(message) from error
    if not callable(function):
        raise ConfigError(f"{where}: {reference!r} is not callable; name a function")
    return function  # type: ignore[no-any-return]


def read_tool(table: Table) -> ToolConfig:
    """Read ``[tools.NAME]``."""
    look_up, gives = _facts(table)
    _refuse_reserved(table, "attributes", table.mapping("attributes") or {})
    _refuse_reserved(table, "facts", gives or ())
    requires = table.asked("requires", "a scope")
    table.scope("requires", None)  # a name with a blank would read as two
    config = ToolConfig(
        requires=requires,
        resource=table.optional("resource"),
        attributes=table.mapping("attributes"),
        facts=look_up,
        gives=gives,
        place=table.name(""),
        origin=table.optional("origin"),
        schema=table.optional("schema"),
        show=table.texts("show", ()),
    )
    if config.schema is not None and not is_sha256(config.schema):
        message = (
            "the SHA-256 of a schema, 64 hex digits in lower case, as in a denial (tool.changed) "
            "or in the output of agentguard doctor --graph MODULE:GRAPH"
        )
        raise table.mistake("schema", message)
    table.reject_unknown()
    return config


def _refuse_reserved(table: Table, key: str, names: Iterable[str]) -> None:
    for name in names:
        if name in RESERVED:
            message = f"{table.name(key)}: {name!r} is reserved for agentguard: choose another name"
            raise ConfigError(message)


def _facts(table: Table) -> tuple[str | None, tuple[str, ...] | None]:
    """Read ``facts``: the function that looks facts up, None for the code's, and their names."""
    if "facts" not in table.names():
        return None, None
    if table.is_text("facts"):
        raise table.mistake(
            "facts",
            'a table with the names that the function gives, as in { look_up = "package.module:'
            'callable", gives = ["payee"] }',
        )
    inner = table.table("facts")
    look_up, gives = inner.optional("look_up"), inner.texts("gives", None)
    if gives is None:
        raise inner.mistake("gives", "the names of the facts, as in ['payee']")
    inner.reject_unknown()
    return look_up, gives


_UNLISTED: Final = "unlisted"


def read_tools(root: Table) -> Mapping[str, ToolConfig]:
    """Read the tables ``[tools.NAME]``, by the name of the tool."""
    tools = root.table("tools")
    names = [name for name in tools.names() if name != _UNLISTED or not tools.is_text(name)]
    return {name: read_tool(tools.table(name, _UNLISTED)) for name in names}


def read_unlisted(root: Table) -> Literal["allow", "deny"]:
    """Read ``[tools] unlisted``: whether the policy alone decides on a tool without a table.

    A table of this name is that of a tool.
    """
    tools = root.table("tools")
    if not tools.is_text(_UNLISTED):
        return "allow"
    return tools.choice(_UNLISTED, ("allow", "deny"), "allow")


def read_aliases(table: Table) -> Mapping[str, str]:
    """Read ``[aliases]``; two tools can't have the same alias."""
    aliases = {name: table.text(name) for name in table.names()}
    for name, alias in aliases.items():
        if not alias or alias in aliases or list(aliases.values()).count(alias) > 1:
            raise table.mistake(name, "a name of no other tool and no other alias")
    return aliases


def read_folders(table: Table, resolve: Callable[[str], Path]) -> Mapping[str, Folder]:
    """Read ``[paths]``: by an argument's name, the folder that the argument's path must stay in."""
    folders = {}
    for argument in table.names():
        try:
            folders[argument] = Folder(resolve(table.text(argument)))
        except OSError as error:
            raise table.mistake(argument, "a folder below the root of the file system") from error
    return folders


def read_redactions(table: Table) -> Mapping[str, tuple[Redaction, ...]]:
    """Read ``[redact]``: JSON Pointers by the name of the tool; ``*`` means every tool."""
    redactions: dict[str, tuple[Redaction, ...]] = {}
    for tool in table.names():
        try:
            pointers = table.asked(tool, "a JSON Pointer") or ()
            redactions[tool] = tuple(map(redaction.parse, pointers))
        except DecodeError as error:
            raise ConfigError(f"{table.name(tool)}: {error}") from error
    return redactions
