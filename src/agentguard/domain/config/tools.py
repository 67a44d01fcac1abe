"""The tables about tools: ``[tools]``, ``[aliases]``, ``[paths]`` and ``[redact]``.

A ``ToolConfig`` replaces parts of the specification that the code gives a tool.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from agentguard.call import redaction
from agentguard.call.redaction import Redaction
from agentguard.call.tool import ToolSpec
from agentguard.call.vocabulary import RESERVED
from agentguard.delegation.grant import parse_scopes
from agentguard.errors import ConfigError
from agentguard.paths import Folder
from agentguard.signing.canonical import is_sha256
from agentguard.spelling import did_you_mean
from agentguard.tables import Table, kinds, others, read, setting
from agentguard.tables.kinds import Kind

_SCOPES: Final = kinds.some("a scope").where(
    lambda names: bool(parse_scopes(names)), "a list of scopes"
)


def _unreserved(names: Iterable[str]) -> bool:
    for name in names:
        if name in RESERVED:
            raise ConfigError(f"{name!r} is reserved for agentguard: choose another name")
    return True


@dataclass(frozen=True, slots=True)
class FactsConfig:
    """Values that the policy must not take from the model.

    See docs/reference/policy-document.md#input. One line under ``[tools.NAME]`` does as well:
    ``facts = { look_up = "acme.files:lookup", gives = ["owner"] }``.

    ::

        [tools.read_file.facts]
        look_up = "acme.files:lookup"
        gives = ["owner"]
    """

    gives: tuple[str, ...] = setting(kinds.texts.where(_unreserved, "a list of strings"))
    """The names that the function gives to the policy's input. They stand at its top, beside the
    attributes (``input.owner``); it may return no others."""

    look_up: str | None = setting(kinds.text, default=None)
    """The function that looks the values up, ``package.module:callable``; by default the code's."""


def _facts(table: Table, key: str) -> FactsConfig:
    if not isinstance(table.get(key), Mapping):
        expected = (
            'a table with the names that the function gives, as in { look_up = "package.module:'
            'callable", gives = ["payee"] }'
        )
        raise table.mistake(key, expected)
    inner = table.table(key)
    if not inner.has("gives"):
        raise inner.mistake("gives", "the names of the facts, as in ['payee']")
    return read(FactsConfig, inner)


@dataclass(frozen=True, slots=True)
class ToolConfig:
    """A value in this table stands above the value in the code; without a key, the code's counts.

    ::

        [tools.read_file]
        requires = ["files:read"]
        resource = "file:{path}"
        attributes = { path = "path" }
        origin = "mcp:https://files.acme.example"
        schema = "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f"
        show = ["path"]
    """

    requires: tuple[str, ...] | None = setting(_SCOPES, default=None)
    """The scopes that a caller needs."""

    resource: str | None = setting(kinds.text, default=None)
    """What a call is about; arguments are inserted whole, and escaped."""

    attributes: Mapping[str, str] | None = setting(
        kinds.mapping.where(_unreserved, kinds.mapping.expected), default=None
    )
    """Members at the top of the policy's input, each with the argument that it takes."""

    facts: FactsConfig | None = setting(
        Kind("table", "a table", _facts, (lambda: FactsConfig,)), default=None
    )

    origin: str | None = setting(kinds.text, default=None)
    """Where the tool must come from; another origin is denied (``tool.changed``)."""

    schema: str | None = setting(
        kinds.text.where(
            is_sha256,
            "the SHA-256 of a schema, 64 hex digits in lower case, as in a denial (tool.changed) "
            "or in the output of agentguard doctor --graph MODULE:GRAPH",
        ),
        default=None,
    )
    """The SHA-256 of the tool's schema; another schema is denied (``tool.changed``)."""

    show: tuple[str, ...] = setting(kinds.texts, default=())
    """The arguments that ``audit list``, ``audit tail`` and ``approvals list`` show, to whoever may
    run them (docs/reference/configuration.md#what-show-shows)."""

    place: str = ""
    """Where the table is, for messages."""

    @property
    def look_up(self) -> str | None:
        """The function that looks the facts up, None for the code's."""
        return None if self.facts is None else self.facts.look_up

    @property
    def gives(self) -> tuple[str, ...] | None:
        """The names of the facts, None for the code's."""
        return None if self.facts is None else self.facts.gives

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
            facts=self.look_up and load_callable(self.look_up, f"{self.place}.facts"),
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


@dataclass(frozen=True, slots=True)
class ToolsConfig:
    """A tool is listed if it has a table ``[tools.NAME]``; an empty one will do.

    An empty table is ``read_file = {}``. See a name that no tool has
    (docs/reference/configuration.md#a-name-that-no-tool-has).

    ::

        [tools]
        unlisted = "deny"
    """

    unlisted: Literal["allow", "deny"] = setting(kinds.choice("allow", "deny"), default="allow")
    """``deny`` denies each call of a tool without a table (``tool.unconfigured``); with ``allow``,
    the policy and the code alone decide. ``agentguard init`` writes ``deny``. A tool that a
    gateway's pins have, and a method of MCP (``mcp:start``), are listed by that, but not at a guard
    server."""

    tables: Mapping[str, ToolConfig] = others(lambda: ToolConfig)


def require_aliases(outer: Table, given: Mapping[str, str]) -> None:
    """Refuse an alias of two tools, or of another tool's name; ``outer`` is ``[aliases]``."""
    for name, alias in given.items():
        if alias in given or list(given.values()).count(alias) > 1:
            raise outer.mistake(name, "a name of no other tool and no other alias")


def _folder(table: Table, key: str) -> Folder:
    folder = kinds.file.read(table, key)
    try:
        return Folder(folder)
    except OSError as error:
        raise table.mistake(key, "a folder below the root of the file system") from error


folder: Final = Kind("string", "the path of a folder", _folder)


def _pointers(given: tuple[str, ...]) -> tuple[Redaction, ...]:
    return tuple(map(redaction.parse, given))


pointers: Final = kinds.some("a JSON Pointer").to(_pointers)
