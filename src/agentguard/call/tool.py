"""A tool: its specification, which is signed, and the guarded function that an agent calls.

``ToolSpec`` is a value: the tool's name, the description and schema that the model sees, and the
application's declarations (the scope that a caller needs, the resource, attributes, facts).
``Tool`` and ``AsyncTool`` are plain Python functions behind a guard. The adapters wrap framework
tools, which share only ``ToolSpec``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property, partial
from types import MappingProxyType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    ForwardRef,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from agentguard.call.arguments import Arguments
from agentguard.call.binding import AS_FAR_AS_DEFINED, AS_TEXT, Binder, binder
from agentguard.call.vocabulary import RESERVED
from agentguard.errors import ArgumentsError, ConfigError, EncodeError, UnguardedCallError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class FactsInput(dict[str, Any]):
    """The input of a look-up of facts: the bound arguments as JSON values, and the caller.

    ``agent`` is the agent's name and ``agent_id`` the instance's URI, both from the credential.
    ``principal`` is ``agent:NAME`` for an agent on its own authority. ``task_id`` may be None. The
    input is a copy: a change to it does not change the call.
    """

    __slots__ = ("agent", "agent_id", "principal", "task_id")

    def __init__(
        self,
        arguments: Mapping[str, Any],
        *,
        agent: str,
        agent_id: str,
        principal: str,
        task_id: str | None,
    ) -> None:
        super().__init__(arguments)
        self.agent = agent
        self.agent_id = agent_id
        self.principal = principal
        self.task_id = task_id


FactsFunction = Callable[[FactsInput], Any]
"""A function that looks facts about a call up, in a place that the application trusts.

The function returns a mapping or a dataclass, whose members stand at the top level of the policy's
input. A coroutine function serves calls by ``acall`` and ``arun`` alone.
"""

MAX_NAME: Final = 2048
"""The most characters of a tool's name, and of its origin."""

MAX_RESOURCE: Final = 2048
"""The most characters of a resource, once its arguments are filled in and escaped."""

_TYPING: Final = ("typing", "typing_extensions")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]*")
_UNRESERVED: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
)


@dataclass(frozen=True)
class ToolSpec:
    """A tool as the application has registered it.

    ``schema`` is the JSON schema that the model sees. ``origin`` is ``module:qualname`` or
    ``mcp:<server>``. ``requires`` is the scope that a caller needs. ``resource`` is a template of
    whole arguments (``repo:{repo}``). ``attributes`` maps names at the top level of the policy's
    input to argument names. ``facts`` looks up values that a policy must not take from the model,
    and ``gives`` are their names: None takes the names from the type that the function returns.
    ``pinned_origin`` and ``pinned_schema`` (SHA-256, hex) are the configuration's pins; None pins
    nothing. ``facts_by_client`` says that the client of a guard server looks the facts up, so that
    they are the client's word. ``caller`` is the member ``caller`` of the policy's input: who calls
    a guarded server, by the proof of the call that the server has verified; None without a proof.
    ``unlisted`` says in words that the configuration has to list the tool and does not, so that
    each call is denied; else None.
    """

    name: str
    description: str
    schema: Mapping[str, JSON]
    origin: str
    requires: tuple[str, ...] = ()
    resource: str | None = None
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    facts: FactsFunction | None = None
    gives: tuple[str, ...] | None = None
    pinned_origin: str | None = None
    pinned_schema: str | None = None
    facts_by_client: bool = False
    caller: Mapping[str, JSON] | None = None
    unlisted: str | None = None

    def __post_init__(self) -> None:
        if self.facts is not None and self.gives is None:
            object.__setattr__(self, "gives", _given_by(self.name, self.facts))
        try:
            _digests = self.digest, self.schema_sha256  # both are cached; a bad schema raises now
        except EncodeError as error:
            raise ConfigError(f"tool {self.name!r} has no JSON description: {error}") from error
        self._require_names("attribute", self.attributes)
        self._require_names("fact", self.gives or ())
        twice = sorted(self.attributes.keys() & set(self.gives or ()))
        if twice:
            message = f"tool {self.name}: {twice[0]!r} is an attribute and a fact: rename one"
            raise ConfigError(message)
        try:
            f"{self.name}{self.resource}{self.requires}".encode()
        except UnicodeError as error:
            raise ConfigError(f"tool {self.name!r}: its name or resource is no text") from error
        for what, text in (("name", self.name), ("origin", self.origin)):
            if len(text) > MAX_NAME:
                message = (
                    f"tool {self.name[:64]!r}: its {what} takes more than {MAX_NAME} characters"
                )
                raise ConfigError(message)
        if "" in (self.name, self.origin, self.resource):
            message = f"tool {self.name!r}: an empty name, origin or resource names nothing"
            raise ConfigError(message)
        if self.resource is not None:
            rest = _PLACEHOLDER.sub("", self.resource)
            if "{" in rest or "}" in rest or "{}" in self.resource:
                message = (
                    f"tool {self.name}: resource {self.resource!r} is not a template; "
                    "write whole arguments in braces, as in 'repo:{repo}'"
                )
                raise ConfigError(message)

    def _require_names(self, what: str, names: Iterable[str]) -> None:
        for name in names:
            if not _NAME.match(name):
                raise ConfigError(f"tool {self.name}: {what} {name!r} is not a plain name")
            if name in RESERVED:
                message = (
                    f"tool {self.name}: {what} {name!r} is reserved for agentguard: choose another "
                    "name"
                )
                raise ConfigError(message)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 (hex) over name, description, schema and origin."""
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
        """The SHA-256 (hex) over the schema that the model sees."""
        return canonical.digest(dict(self.schema))

    @cached_property
    def pin_mismatch(self) -> str | None:
        """How the tool differs from the configuration's pins, in words; None where it does not."""
        if self.pinned_origin not in (None, self.origin):
            origin = f"comes from {self.origin}, and [tools.{self.name}] origin names"
            return f"{origin} {self.pinned_origin}"
        if self.pinned_schema not in (None, self.schema_sha256):
            schema = f"has a schema of the SHA-256 {self.schema_sha256}, and [tools.{self.name}]"
            return f"{schema} schema names {self.pinned_schema}"
        return None

    def overridden(self, **changes: Any) -> ToolSpec:
        """Return the specification with the configuration's values; None keeps the code's value."""
        return replace(self, **{k: v for k, v in changes.items() if v is not None})

    def resource_of(self, values: Mapping[str, JSON]) -> str | None:
        """Fill bound arguments into the resource template, each escaped (RFC 3986, unreserved).

        Raises ``ArgumentsError`` (``arguments.resource``) where an argument is missing or is
        neither a string, an integer nor a boolean, and for a resource that is too long.
        """
        if self.resource is None:
            return None
        resource, arguments = self._template
        for name, text in arguments:
            resource += self._placeholder(name, values) + text
        if len(resource) > MAX_RESOURCE:
            message = f"tool {self.name}: the resource takes more than {MAX_RESOURCE} characters"
            raise ArgumentsError(message, code="arguments.resource")
        return resource

    @property
    def resource_arguments(self) -> list[str]:
        """The names of the arguments in the resource template."""
        return [name for name, _text in self._template[1]]

    @cached_property
    def _template(self) -> tuple[str, list[tuple[str, str]]]:
        """The text before the first argument; then each argument with the text after it."""
        first, *parts = _PLACEHOLDER.split("" if self.resource is None else self.resource)
        return first, list(zip(parts[::2], parts[1::2], strict=True))

    def _placeholder(self, name: str, values: Mapping[str, JSON]) -> str:
        value = values.get(name)
        if isinstance(value, str):
            return escape(value)
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int):
            return str(value)
        message = (
            f"tool {self.name}: resource {self.resource!r} needs the argument {name!r} "
            "as a string or an integer"
        )
        raise ArgumentsError(message, code="arguments.resource")

    def attributes_of(self, values: Mapping[str, JSON]) -> dict[str, JSON]:
        """Return the values of the attributes, without those whose argument the call lacks."""
        return {
            name: values[argument]
            for name, argument in self.attributes.items()
            if argument in values
        }


def _given_by(tool: str, look_up: FactsFunction) -> tuple[str, ...]:
    """Return the names of facts by the type that a look-up returns; raises ``ConfigError``."""
    function: Any = look_up
    while isinstance(function, partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    try:
        returned = get_type_hints(function).get("return")
    except Exception:  # noqa: BLE001  an annotation may name anything, and evaluates to anything
        returned = None
    if is_dataclass(returned):
        return tuple(member.name for member in fields(returned))
    if isinstance(returned, type) and hasattr(returned, "__total__"):  # a TypedDict
        return tuple(get_type_hints(returned))
    name = getattr(function, "__qualname__", type(look_up).__qualname__)
    message = (
        f"tool {tool}: the look-up of facts {name} does not say which names it gives: let it "
        "return a TypedDict or a dataclass that is defined in its module, or write the names, as "
        'in gives=["payee"]'
    )
    raise ConfigError(message)


def facts_in(found: object) -> object:
    """Return what a look-up has returned, a dataclass as the mapping of its members."""
    if is_dataclass(found) and not isinstance(found, type):
        return {member.name: getattr(found, member.name) for member in fields(found)}
    return found


def escape(text: str) -> str:
    """Percent-encode every UTF-8 byte outside RFC 3986's unreserved set."""
    if _PLAIN.fullmatch(text):
        return text
    data = text.encode("utf-8", "surrogatepass")
    return "".join(chr(b) if b in _UNRESERVED else f"%{b:02X}" for b in data)


class GuardedFunction(Generic[P, R_co]):
    """A plain function behind a guard, which runs only for an agent.

    ``P`` are the parameters, and ``R_co`` is the result; for a coroutine function, the awaited
    result. A direct call raises ``UnguardedCallError`` and does not run the function.
    """

    is_async: ClassVar[bool]

    def __init__(self, spec: ToolSpec, function: Callable[P, object]) -> None:
        self.spec: Final = spec
        self.bind: Final[Binder] = binder(function)
        self.__function = function
        self.__name__ = spec.name
        self.__doc__ = spec.description

    if not TYPE_CHECKING:  # a type checker then reports each direct call

        def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
            """Raise ``UnguardedCallError``: a guarded tool runs only for an agent."""
            call = "acall" if self.is_async else "call"
            name = self.spec.name
            message = f"{name} is guarded: run it with agent.{call}({name}, ...)"
            raise UnguardedCallError(message)

    def __repr__(self) -> str:
        """Return the tool's name in angle brackets."""
        return f"<guarded tool {self.spec.name}>"

    def _bound_to(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Any]:
        """Return the call without arguments, to run once it is authorised."""
        return partial(self.__function, *args, **kwargs)


class Tool(GuardedFunction[P, R_co]):
    """A guarded function: run it with ``agent.call``, or ``agent.acall`` in a worker thread."""

    is_async = False


class AsyncTool(GuardedFunction[P, R_co]):
    """A guarded coroutine function: run it with ``agent.acall``.

    The class is not a ``Tool``, so that a type checker reports an ``agent.call`` of one
    (docs/adr/0004-async-tools-are-a-type.md).
    """

    is_async = True


class ToolDecorator(Protocol):
    """The decorator that ``guard.tool(...)`` returns."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is never a Tool
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTool[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Tool[P, R]: ...


def guarded(spec: ToolSpec, function: Callable[P, R]) -> Tool[P, R] | AsyncTool[P, Any]:
    """Return ``function`` as a guarded tool with the specification ``spec``.

    Raises ``ConfigError`` where ``spec`` names an argument that the function does not take.
    """
    _require_parameters(spec, function)
    if inspect.iscoroutinefunction(function):
        return AsyncTool(spec, function)
    return Tool(spec, function)


def _require_parameters(spec: ToolSpec, function: Callable[..., object]) -> None:
    parameters = inspect.signature(function, **AS_TEXT).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return  # **kwargs take any argument
    sources = {"resource": spec.resource_arguments, "attributes": [*spec.attributes.values()]}
    for where, names in sources.items():
        for name in names:
            if name not in parameters:
                takes = ", ".join(parameters) or "none"
                message = (
                    f"tool {spec.name}: {where} names the argument {name!r}, which the function "
                    f"does not take; it takes {takes}"
                )
                raise ConfigError(message)


def function_schema(function: Callable[..., object]) -> dict[str, JSON]:
    """Describe a plain function's parameters, for a tool that no model sees.

    The description is the same in every process and on every Python: no ``repr`` of an object,
    which may have addresses or sets in any order, is part of it. A name that an annotation uses
    before its definition stands there as ``ForwardRef('NAME')``.
    """
    properties: dict[str, JSON] = {}
    required: list[JSON] = []
    for parameter in inspect.signature(function, **AS_FAR_AS_DEFINED).parameters.values():
        annotation = parameter.annotation
        text = "" if annotation is parameter.empty else _annotation(annotation)
        properties[parameter.name] = {"kind": parameter.kind.name.lower(), "annotation": text}
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return {"type": "object", "properties": properties, "required": required}


def _annotation(annotation: object) -> str:
    """Return a parameter's annotation, evaluated or postponed, as text."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is not None:
        types = {Annotated: 1, Literal: 0}.get(origin, len(arguments))  # values follow the types
        texts = [*map(_annotation, arguments[:types]), *map(_constant, arguments[types:])]
        return f"{_annotation(origin)}[{', '.join(texts)}]"
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, list):  # the parameters of Callable[[int], str]
        return f"[{', '.join(map(_annotation, annotation))}]"
    if isinstance(annotation, type):
        return _qualified(annotation)
    if isinstance(annotation, ForwardRef):  # since Python 3.14 its repr may have an address
        return f"ForwardRef({annotation.__forward_arg__!r})"
    is_name = type(annotation).__module__ in _TYPING  # typing.Any, ~T
    return repr(annotation) if is_name else _constant(annotation)


def _constant(value: object) -> str:
    """Return a value in an annotation as text: its encoding, or else the name of its type."""
    try:
        return Arguments.of({"value": value}).encoded.decode()
    except ArgumentsError:
        return _qualified(type(value))


def _qualified(kind: type) -> str:
    """Return the name of a type, which is the same on every Python."""
    if kind is UnionType:  # of int | str, which is typing.Union itself since Python 3.14
        return "typing.Union"
    module = "pathlib" if kind.__module__ == "pathlib._local" else kind.__module__  # in 3.13 alone
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
