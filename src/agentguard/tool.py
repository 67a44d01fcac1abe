"""What agentguard knows of a tool: the specification that is signed, and the guarded function.

``ToolSpec`` is a value: the name, what the model can see, and what the application says of it
beside the code (the scope that it requires, its resource, the arguments that a policy reads at
the top level, the look-up of facts). ``Tool`` is a plain function behind a guard; framework tools
are wrapped by their adapters and share only ``ToolSpec``.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, Generic, NoReturn, ParamSpec, TypeVar

from agentguard import canonical
from agentguard.arguments import Binder, binder
from agentguard.canonical import JSON
from agentguard.errors import ArgumentsError, ConfigError, EncodeError, UnguardedCallError

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

FactsFunction = Callable[[Mapping[str, Any]], Any]

RESERVED: Final = frozenset(
    {"agent", "delegation", "action", "resource", "task_id", "args", "tool", "approval"}
)
"""Names at the top level of the policy's input that belong to agentguard (policy.md, Input)."""

MAX_RESOURCE: Final = 2048
"""Characters of a resource, once it is filled and escaped."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_PLAIN = re.compile(r"[A-Za-z0-9._~-]*")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


@dataclass(frozen=True)
class ToolSpec:
    """A tool as the application registered it.

    ``schema`` is the model-visible JSON schema; ``origin`` is ``module:qualname`` or
    ``mcp:<server>``; ``requires`` the scope that a caller needs; ``resource`` a template of whole
    arguments (``repo:{repo}``); ``attributes`` maps names at the top level of the policy's input
    to argument names; ``facts`` looks up what the policy must not take from the model.
    """

    name: str
    description: str
    schema: Mapping[str, JSON]
    origin: str
    requires: tuple[str, ...] = ()
    resource: str | None = None
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    facts: FactsFunction | None = None

    def __post_init__(self) -> None:
        try:
            _digests = self.digest, self.schema_sha256  # both cached: a bad schema is found now
        except EncodeError as error:
            raise ConfigError(f"tool {self.name!r} has no JSON description: {error}") from error
        for name in self.attributes:
            if not _NAME.match(name):
                raise ConfigError(f"tool {self.name}: attribute {name!r} is not a plain name")
            if name in RESERVED:
                message = f"tool {self.name}: attribute {name!r} is reserved for agentguard"
                raise ConfigError(message)
        try:
            f"{self.name}{self.resource}{self.requires}".encode()
        except UnicodeError as error:
            raise ConfigError(f"tool {self.name!r}: its name or resource is no text") from error
        if self.resource is not None:
            rest = _PLACEHOLDER.sub("", self.resource)
            if "{" in rest or "}" in rest or "{}" in self.resource:
                message = (
                    f"tool {self.name}: resource {self.resource!r} is not a template; "
                    "write whole arguments in braces, as in 'repo:{repo}'"
                )
                raise ConfigError(message)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of name, description, model-visible schema and origin."""
        return canonical.digest(
            {
                "name": self.name,
                "description": self.description,
                "schema": dict(self.schema),
                "origin": self.origin,
            }
        )

    @cached_property
    def schema_sha256(self) -> str:
        """SHA-256 (hex) of the model-visible schema."""
        return canonical.digest(dict(self.schema))

    def overridden(self, **changes: Any) -> ToolSpec:
        """Return the specification with what the configuration says in place of the code's."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})

    def resource_of(self, values: Mapping[str, JSON]) -> str | None:
        """Fill the resource template from bound arguments, each escaped (RFC 3986 unreserved).

        Raises ``ArgumentsError`` (``arguments.resource``) where an argument is missing or is
        neither a string, an integer nor a boolean, and for a resource that is too long.
        """
        if self.resource is None:
            return None
        literals, names = self._template
        filled = [self._placeholder(name, values) for name in names]
        resource = "".join(itertools.chain(*zip(literals, (*filled, ""), strict=True)))
        if len(resource) > MAX_RESOURCE:
            message = f"tool {self.name}: the resource takes more than {MAX_RESOURCE} characters"
            raise ArgumentsError(message, code="arguments.resource")
        return resource

    @cached_property
    def _template(self) -> tuple[list[str], list[str]]:
        """The literal parts of the resource, and the arguments between them."""
        parts = _PLACEHOLDER.split(self.resource or "")
        return parts[::2], parts[1::2]

    def _placeholder(self, name: str, values: Mapping[str, JSON]) -> str:
        value = values.get(name)
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int):
            return str(value)
        if not isinstance(value, str):
            message = (
                f"tool {self.name}: resource {self.resource!r} needs the argument {name!r} "
                "as a string or an integer"
            )
            raise ArgumentsError(message, code="arguments.resource")
        return escape(value)

    def attributes_of(self, values: Mapping[str, JSON]) -> dict[str, JSON]:
        """Lift the configured arguments; one that the call does not have is left out."""
        return {
            name: values[argument]
            for name, argument in self.attributes.items()
            if argument in values
        }


def escape(text: str) -> str:
    """Percent-encode every UTF-8 byte outside RFC 3986's unreserved set."""
    if _PLAIN.fullmatch(text):
        return text
    data = text.encode("utf-8", "surrogatepass")
    return "".join(chr(b) if b in _UNRESERVED else f"%{b:02X}" for b in data)


class Tool(Generic[P, R_co]):
    """A plain function behind a guard: run it with ``agent.call`` or ``agent.acall``.

    Calling it directly raises ``UnguardedCallError`` and does not run it.
    """

    def __init__(self, spec: ToolSpec, function: Callable[P, R_co]) -> None:
        self.spec: Final = spec
        self.bind: Final[Binder] = binder(function)
        self.is_async: Final = inspect.iscoroutinefunction(function)
        self.__function = function
        self.__name__ = spec.name
        self.__doc__ = spec.description

    def __call__(self, *_args: P.args, **_kwargs: P.kwargs) -> NoReturn:
        """Refuse: a guarded tool runs only for an agent."""
        message = f"{self.spec.name} is guarded: run it with agent.call({self.spec.name}, ...)"
        raise UnguardedCallError(message)

    def __repr__(self) -> str:
        """Name the tool."""
        return f"<guarded tool {self.spec.name}>"

    def _bound_to(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], R_co]:
        """Return the call itself, to be run once it is authorised."""
        function: Callable[..., R_co] = self.__function
        return lambda: function(*args, **kwargs)


def function_schema(function: Callable[..., object]) -> dict[str, JSON]:
    """Describe a plain function's parameters, in place of a model-visible JSON schema."""
    properties: dict[str, JSON] = {}
    required: list[JSON] = []
    for parameter in inspect.signature(function).parameters.values():
        annotation = parameter.annotation
        text = "" if annotation is parameter.empty else inspect.formatannotation(annotation)
        properties[parameter.name] = {"kind": parameter.kind.name.lower(), "annotation": text}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return {"type": "object", "properties": properties, "required": required}
