"""What a call of a LangChain tool binds: which names count, their values, the specification.

``Shape`` is what a tool's schema says, ``Entrance`` how one of its callables takes arguments. The
same ``Entrance.bind`` serves ahead of execution and at execution, and gives the same bytes
(records.md, "One call's bytes"). Nothing here decides, signs or runs.

Bound is what the model can see or somebody supplied, less the names that the framework injects
(``injection.py``); with a mark in the place of a value that a default factory made.
"""

from __future__ import annotations

import copy
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, Tool
from langchain_core.utils.pydantic import get_fields
from pydantic.v1 import BaseModel as BaseModelV1

from agentguard import ConfigError
from agentguard.adapters import (
    JSON,
    Arguments,
    ArgumentsError,
    Binder,
    FactoryMade,
    ToolSpec,
    binder,
    function_schema,
    require_supported,
)
from agentguard_langchain.factories import is_model, with_marks
from agentguard_langchain.injection import (
    CALL_ID,
    OBJECTS,
    RUNTIME,
    is_injected,
    read_function,
    runtime_name,
    stripped,
)
from agentguard_langchain.schemas import require_told
from agentguard_langchain.validators import may_fill_in

_MCP_ADAPTERS: Final = "langchain_mcp_adapters.tools"
_NOBODY: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Shape:
    """What the schema of a tool says, as long as name, description and schema stay the same.

    ``visible`` are the names that the model is shown; ``injected`` those that ToolNode takes out of
    what it gives; ``read`` the function of which ToolNode reads that. ``runtime`` is the argument
    in whose place ToolNode puts the runtime, None for none.
    """

    spec: ToolSpec
    visible: frozenset[str]
    injected: frozenset[str]
    name: str
    description: str
    args_schema: object
    read: object
    runtime: str | None

    @classmethod
    def of(
        cls,
        tool: BaseTool,
        function: Callable[..., object],
        origin: str,
        configured: Callable[[ToolSpec], ToolSpec],
    ) -> Shape:
        """Read the schema of ``tool``; ``function`` describes one that has no JSON schema.

        ``configured`` puts in what the configuration says. Raises ``ConfigError`` for a schema
        without a canonical form, or whose calls could not be bound to the same bytes twice.
        """
        require_told(tool.args_schema, tool.name)
        injected, seen = _schemas(tool)
        schema = tool.args_schema
        return cls(
            spec=configured(ToolSpec(tool.name, tool.description, _json(tool, function), origin)),
            visible=seen,
            injected=injected,
            name=tool.name,
            description=tool.description,
            # a dictionary could be changed in place, and the digest must then change as well
            args_schema=copy.deepcopy(schema) if isinstance(schema, dict) else schema,
            read=read_function(tool),
            runtime=runtime_name(tool),
        )

    def describes(self, tool: BaseTool, origin: str) -> bool:
        """Whether ``tool`` still is what it was when this shape was read."""
        schema = tool.args_schema
        if schema is not self.args_schema and not (
            isinstance(schema, dict) and schema == self.args_schema
        ):
            return False
        known = (self.name, self.description, self.spec.origin, self.read)
        return (tool.name, tool.description, origin, read_function(tool)) == known

    def __deepcopy__(self, memo: object) -> Self:
        return self  # a value


def _schemas(tool: BaseTool) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that ToolNode injects or takes away, and those that a model sees.

    That a model is not shown a field does not make it injected: LangChain leaves fields with a
    validation alias out of what it shows, and takes them from the model all the same.
    """
    if tool.args_schema is None and isinstance(tool, Tool):
        return _NOBODY, _NOBODY  # one string, whatever its name
    visible = tool.tool_call_schema
    if isinstance(visible, dict):
        names = frozenset(visible.get("properties", {}))
    else:
        names = frozenset(get_fields(visible))
    return stripped(tool) - names, names


def _json(tool: BaseTool, function: Callable[..., object]) -> Mapping[str, JSON]:
    if tool.args_schema is None and isinstance(tool, Tool):
        return {"type": "object", "properties": tool.args}
    schema = tool.tool_call_schema
    if isinstance(schema, dict):
        return schema
    try:
        return schema.schema() if issubclass(schema, BaseModelV1) else schema.model_json_schema()
    except Exception:  # noqa: BLE001  no JSON schema can be had: no model can be shown one either
        return function_schema(function)


@dataclass(frozen=True, slots=True)
class Entrance:
    """How one callable of a tool takes its arguments.

    ``framework`` are the parameters that LangChain itself fills in, whatever a model gives;
    ``annotated`` those that are marked as injected, which binds nobody but ToolNode where it reads
    the mark; ``named`` those with a name of their own.
    """

    binder: Binder
    signature: inspect.Signature
    annotations: Mapping[str, Any]
    framework: frozenset[str]
    annotated: frozenset[str]
    named: frozenset[str]
    positional: tuple[str, ...]
    defaults: frozenset[str]
    variadic: str | None

    @classmethod
    def of(cls, function: Callable[..., Any], tool: str, *, framework: str) -> Entrance:
        """Read ``function``; ``framework`` names the parameter that LangChain fills by name.

        Raises ``ConfigError`` where an annotation can't be resolved: the config, the state or the
        runtime would silently not be injected.
        """
        try:
            signature = inspect.signature(function, eval_str=True)
            annotations = _annotations(function)
        except (NameError, TypeError, ValueError, AttributeError) as error:
            message = (
                f"tool {tool}: the annotations of {_name(function)} can't be resolved ({error}); "
                "import their types at run time, not under TYPE_CHECKING"
            )
            raise ConfigError(message) from error
        # LangChain takes the first whose type this is, annotated or not
        configs = [n for n, type_ in annotations.items() if _plain(type_) is RunnableConfig][:1]
        bound_by = binder(function)
        parameters = bound_by.parameters
        variadic = [p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL]
        named = frozenset(p.name for p in parameters.values() if p.kind not in _VARIADIC)
        marked = {n for n, p in signature.parameters.items() if is_injected(p.annotation)}
        return cls(
            binder=bound_by,
            signature=signature,
            annotations=annotations,
            framework=frozenset({framework, *configs}) & named,
            annotated=named & marked,
            named=named,
            positional=tuple(p.name for p in parameters.values() if p.kind in _POSITIONAL),
            defaults=frozenset(p.name for p in parameters.values() if p.default is not p.empty),
            variadic=variadic[0] if variadic else None,
        )

    @property
    def takes_position(self) -> bool:
        """Whether an argument that is passed by position has a name."""
        return bool(self.positional or self.variadic)

    def injected(self, shape: Shape) -> frozenset[str]:
        """Return the names that are not the model's to give."""
        return shape.injected | self.framework

    def bind(
        self,
        shape: Shape,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        made: Mapping[str, Any],
        call_id: str | None,
        objects: Sequence[object] | None = None,
    ) -> Arguments:
        """Bind what the callable receives, with a mark in the place of a value in ``made``.

        ``call_id`` is the one that LangChain fills in. ``objects`` are the framework's objects in
        the raw input: a schema could make others out of what a model gave. None where no schema
        was applied. Raises ``ArgumentsError``.
        """
        by_position = frozenset(self.positional[: len(args)])
        supplied = by_position | kwargs.keys()
        # nobody injects by position: what stands there was the tool's only input
        injected = self.injected(shape) - by_position
        absent = dict.fromkeys((injected & self.named) - kwargs.keys())
        values = self.binder(args, {**absent, **kwargs})
        # a default that no model can see and nobody gave is the function's own affair
        left_out = injected | (self.defaults - shape.visible - supplied)
        # the very object that a factory made: another one in its place was supplied
        marked = {n for n, value in made.items() if n in values and values[n] is value}
        if any(value is given for value in made.values() for given in args):
            message = "the only argument is one that a default factory made: give it a value"
            raise ArgumentsError(message)
        schema = shape.args_schema
        seen = isinstance(schema, type) and is_model(schema) and may_fill_in(schema)
        told = {n for n in values if self._tells(n, values[n], call_id)} - shape.visible
        told |= {n for n, value in values.items() if _is_the_frameworks(value, objects)}
        bound = {
            name: FactoryMade.MADE if name in marked else with_marks(value, seen=seen)
            for name, value in values.items()
            if name not in left_out
            and name not in told
            and not (name == self.variadic and value == ())
        }
        unbound = (injected | told | (self.named & {RUNTIME} - shape.visible)) - bound.keys()
        declared = self.binder.declared | shape.visible
        return Arguments.of(bound, unbound=sorted(unbound), declared=declared)

    def _tells(self, name: str, value: object, call_id: str | None) -> bool:
        """Whether an argument's very value is the call's id, which LangChain fills in."""
        marked = name == CALL_ID and name in self.annotated
        return marked and call_id is not None and value is call_id


def _is_the_frameworks(value: object, objects: Sequence[object] | None) -> bool:
    """Whether an argument is an object that no model can give: the run's runtime, or its store."""
    if not isinstance(value, OBJECTS):
        return False
    return objects is None or any(value is one for one in objects)


_POSITIONAL: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Resolve the annotations where the function was written, as LangChain would look for them."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        return {}  # a callable object: LangChain injects no config into it either
    return typing.get_type_hints(function, include_extras=True)


def _plain(annotation: object) -> object:
    annotated = typing.get_origin(annotation) is typing.Annotated
    return typing.get_args(annotation)[0] if annotated else annotation


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


@functools.cache
def _require_mcp() -> None:
    """Raise ``ConfigError`` where another version of the adapters may keep the name elsewhere."""
    require_supported("agentguard-langchain", "langchain-mcp-adapters", "mcp")


def origin_of(function: Callable[..., Any]) -> str:
    """Return where a tool comes from: ``module:qualname``, or ``mcp:<server>`` where known."""
    while isinstance(function, functools.partial):
        function = function.func
    owner = function if hasattr(function, "__qualname__") else type(function)
    if owner.__module__ == _MCP_ADAPTERS and inspect.isfunction(function):
        _require_mcp()
        # the adapters keep the server's name in the closure of each tool's function, only
        server = inspect.getclosurevars(function).nonlocals.get("server_name")
        if isinstance(server, str) and server:
            return f"mcp:{server}"
    return f"{owner.__module__}:{owner.__qualname__}"
