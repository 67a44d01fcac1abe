"""The arguments that a call of a LangChain tool binds: their names and values.

``Shape`` describes a tool's schema, ``Entrance`` how one of the tool's callables takes arguments.
``Entrance.bind`` gives the same bytes ahead of execution and at execution (records.md, "One call's
bytes"). Nothing here decides, signs or runs.

An argument is bound if the model can see the name, or if somebody supplied the value. Names that
the framework injects are not bound (``injection.py``). A mark stands for a value that a default
factory made.
"""

from __future__ import annotations

import copy
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

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
)
from agentguard_langchain.factories import is_model, with_marks
from agentguard_langchain.injection import (
    CALL_ID,
    OBJECTS,
    RUNTIME,
    annotated_function,
    is_injected,
    removed_names,
    runtime_name,
)
from agentguard_langchain.mcp_origin import mcp_origin
from agentguard_langchain.schemas import require_observable
from agentguard_langchain.validators import may_fill_in


@dataclass(frozen=True, slots=True)
class Shape:
    """The description of a tool, valid while its name, description and schema stay the same.

    ``visible`` are the names that the model is shown. ``injected`` are the names that ToolNode
    removes from the model's arguments, as it reads them in ``annotated_function``. ``runtime`` is
    the argument in whose place ToolNode puts the runtime, None for none.
    """

    spec: ToolSpec
    visible: frozenset[str]
    injected: frozenset[str]
    name: str
    description: str
    args_schema: object
    annotated_function: object
    runtime: str | None

    @classmethod
    def of(
        cls,
        tool: BaseTool,
        function: Callable[..., object],
        origin: str,
        configured: Callable[[ToolSpec], ToolSpec],
    ) -> Shape:
        """Describe ``tool``; ``function`` describes a tool whose schema has no JSON schema.

        ``configured`` adds what the configuration says of the tool. Raises ``ConfigError`` for a
        schema without a canonical form, or whose calls could not be bound to the same bytes twice.
        """
        require_observable(tool.args_schema, tool.name)
        injected, visible = _injected_and_visible(tool)
        schema = tool.args_schema
        return cls(
            spec=configured(ToolSpec(tool.name, tool.description, _json(tool, function), origin)),
            visible=visible,
            injected=injected,
            name=tool.name,
            description=tool.description,
            # a dictionary could be changed in place, and the digest must then change as well
            args_schema=copy.deepcopy(schema) if isinstance(schema, dict) else schema,
            annotated_function=annotated_function(tool),
            runtime=runtime_name(tool),
        )

    def describes(self, tool: BaseTool, origin: str) -> bool:
        """Whether ``tool`` is still the same as when this shape was made."""
        schema = tool.args_schema
        if schema is not self.args_schema and not (
            isinstance(schema, dict) and schema == self.args_schema
        ):
            return False
        described = (self.name, self.description, self.spec.origin, self.annotated_function)
        return (tool.name, tool.description, origin, annotated_function(tool)) == described

    def __deepcopy__(self, memo: object) -> Self:
        return self  # a value


def _injected_and_visible(tool: BaseTool) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that ToolNode injects or removes, and the names that a model sees.

    A field that a model does not see need not be injected: LangChain hides fields with a validation
    alias, and still accepts them from the model.
    """
    if tool.args_schema is None and isinstance(tool, Tool):
        return frozenset(), frozenset()  # one string, whatever its name
    visible = tool.tool_call_schema
    if isinstance(visible, dict):
        names = frozenset(visible.get("properties", {}))
    else:
        names = frozenset(get_fields(visible))
    return removed_names(tool) - names, names


def _json(tool: BaseTool, function: Callable[..., object]) -> Mapping[str, JSON]:
    if tool.args_schema is None and isinstance(tool, Tool):
        return {"type": "object", "properties": tool.args}
    schema = tool.tool_call_schema
    if isinstance(schema, dict):
        return schema
    try:
        return schema.schema() if issubclass(schema, BaseModelV1) else schema.model_json_schema()
    except Exception:  # noqa: BLE001  a schema without a JSON schema is shown to no model
        return function_schema(function)


class ReceivedArguments(NamedTuple):
    """The arguments that a callable of a tool receives, and how they came about.

    ``factory_made`` are the values that default factories made, by name. ``call_id`` is the id that
    LangChain fills in, None for none. ``framework_objects`` are the framework's objects in the raw
    input; a schema could make others out of what a model gave. None says that no schema was
    applied.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    factory_made: Mapping[str, Any] = {}
    call_id: str | None = None
    framework_objects: Sequence[object] | None = None

    def is_marked(self, name: str, value: object) -> bool:
        """Whether a default factory made this very object; any other object was supplied."""
        return name in self.factory_made and self.factory_made[name] is value

    def is_framework_object(self, value: object) -> bool:
        """Whether no model can give this argument: the run's runtime, or its store."""
        if not isinstance(value, OBJECTS):
            return False
        objects = self.framework_objects
        return objects is None or any(value is one for one in objects)


@dataclass(frozen=True, slots=True)
class Entrance:
    """How one callable of a tool takes its arguments.

    ``framework`` are the parameters that LangChain itself fills in, whatever a model gives.
    ``annotated`` are those that are marked as injected; only ToolNode follows the mark, and only
    where it reads the annotation. ``named`` are the parameters with a name of their own.
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

        Raises ``ConfigError`` for an annotation that can't be resolved: LangChain would silently
        not inject the config, the state or the runtime.
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
        function_binder = binder(function)
        parameters = function_binder.parameters
        variadic = [p.name for p in parameters.values() if p.kind is p.VAR_POSITIONAL]
        named = frozenset(p.name for p in parameters.values() if p.kind not in _VARIADIC)
        injected = {n for n, p in signature.parameters.items() if is_injected(p.annotation)}
        return cls(
            binder=function_binder,
            signature=signature,
            annotations=annotations,
            framework=frozenset({framework, *configs}) & named,
            annotated=named & injected,
            named=named,
            positional=tuple(p.name for p in parameters.values() if p.kind in _POSITIONAL),
            defaults=frozenset(p.name for p in parameters.values() if p.default is not p.empty),
            variadic=variadic[0] if variadic else None,
        )

    @property
    def takes_position(self) -> bool:
        """Whether the callable has a name for an argument that is passed by position."""
        return bool(self.positional or self.variadic)

    def injected(self, shape: Shape) -> frozenset[str]:
        """Return the names that a model can't give."""
        return shape.injected | self.framework

    def bind(self, shape: Shape, received: ReceivedArguments) -> Arguments:
        """Bind what the callable receives, with a mark for each value that a factory made.

        Raises ``ArgumentsError``.
        """
        args, kwargs = received.args, received.kwargs
        by_position = frozenset(self.positional[: len(args)])
        supplied = by_position | kwargs.keys()
        # the framework injects by name only: an argument by position is the tool's single input
        injected = self.injected(shape) - by_position
        absent = dict.fromkeys((injected & self.named) - kwargs.keys())
        values = self.binder(args, {**absent, **kwargs})
        # a default that no model sees and nobody supplied concerns the function alone
        defaults = self.defaults - shape.visible - supplied
        if any(value is one for value in received.factory_made.values() for one in args):
            message = "the only argument is one that a default factory made: give it a value"
            raise ArgumentsError(message)
        schema = shape.args_schema
        is_seen = isinstance(schema, type) and is_model(schema) and may_fill_in(schema)
        hidden = {n for n in values if self._is_call_id(n, values[n], received)} - shape.visible
        hidden |= {n for n, value in values.items() if received.is_framework_object(value)}
        left_out = injected | defaults | hidden
        bound_values = {
            name: FactoryMade.MADE
            if received.is_marked(name, value)
            else with_marks(value, is_seen=is_seen)
            for name, value in values.items()
            if name not in left_out and not (name == self.variadic and value == ())
        }
        runtime = self.named & {RUNTIME} - shape.visible
        unbound = (injected | hidden | runtime) - bound_values.keys()
        declared = self.binder.declared | shape.visible
        return Arguments.of(bound_values, unbound=sorted(unbound), declared=declared)

    def _is_call_id(self, name: str, value: object, received: ReceivedArguments) -> bool:
        """Whether the argument is the very id of the call, which LangChain fills in."""
        is_marked = name == CALL_ID and name in self.annotated
        return is_marked and received.call_id is not None and value is received.call_id


_POSITIONAL: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Resolve a function's annotations in the function's own module, as LangChain does."""
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


def origin_of(function: Callable[..., Any]) -> str:
    """Return where a tool comes from: ``module:qualname``, or ``mcp:<server>`` where known.

    Raises ``ConfigError`` as ``mcp_origin``.
    """
    while isinstance(function, functools.partial):
        function = function.func
    owner = function if hasattr(function, "__qualname__") else type(function)
    return mcp_origin(function) or f"{owner.__module__}:{owner.__qualname__}"
