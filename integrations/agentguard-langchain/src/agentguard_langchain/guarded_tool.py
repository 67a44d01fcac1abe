"""A guarded LangChain tool: its class, and its copies.

A guarded tool is a copy of the tool with a subclass of the tool's class, which is made here. To
models, graphs and tracers, the copy looks as the tool did. The tool's functions stand in
``gated_functions.py``, its state in ``tool_state.py``, the way of one call in ``guarded_call.py``.
"""

from __future__ import annotations

import functools
import inspect
import types
from abc import ABCMeta
from collections.abc import Mapping
from typing import Any, Final, NoReturn, Self

from langchain_core.tools import BaseTool, StructuredTool, Tool
from pydantic import PrivateAttr
from pydantic.v1 import BaseModel as BaseModelV1

from agentguard import ConfigError, Denied
from agentguard_langchain.factories import Model, factory_fields, is_model, made_by_factories
from agentguard_langchain.gated_functions import close_slots, gated_method
from agentguard_langchain.guarded_call import CURRENT, GuardedCall, current
from agentguard_langchain.injection import OBJECTS
from agentguard_langchain.schemas import Unannounced
from agentguard_langchain.tool_state import METHODS, SLOTS, Gate, Guarded, not_pickled, shape_of

_STOCK: Final = {
    "_run": (StructuredTool._run, Tool._run),  # noqa: SLF001  LangChain's hooks for tool authors
    "_arun": (BaseTool._arun, StructuredTool._arun, Tool._arun),  # noqa: SLF001
}
"""LangChain's own methods, which only call ``func``, ``coroutine`` or ``_run``."""

_ENTRIES: Final = (
    "invoke",
    "ainvoke",
    "run",
    "arun",
    "stream",
    "astream",
    "batch",
    "abatch",
    "__call__",
    "batch_as_completed",
    "abatch_as_completed",
    "transform",
    "atransform",
)
"""A tool's public entries, which all end in ``_run`` or ``_arun`` as LangChain wrote them."""


@functools.lru_cache(maxsize=256)
def _stand_in(schema: Model) -> Model:
    """Return a class that passes for ``schema``, and validates as ``schema`` does.

    The validated object is a ``schema`` itself. The current call receives the values that default
    factories made. The class is made without pydantic: a subclass that pydantic makes would
    validate into instances of its own.
    """
    name = "parse_obj" if issubclass(schema, BaseModelV1) else "model_validate"
    validate = getattr(schema, name)

    def validate_and_note(_cls: type, *args: Any, **options: Any) -> Any:
        model = validate(*args, **options)
        call = CURRENT.get()
        if call is not None and call.is_parsing and is_model(type(model)):
            call.factory_made = made_by_factories(model)
        return model

    members: dict[str, Any] = {
        "__module__": schema.__module__,
        "__qualname__": schema.__qualname__,
        "__doc__": schema.__doc__,
        name: classmethod(validate_and_note),
    }
    stand_in: Model = ABCMeta.__new__(type(schema), schema.__name__, (Unannounced, schema), members)
    return stand_in


class _ArgsSchema:
    """``args_schema``, with a stand-in for it while LangChain validates a call's input.

    LangChain keeps the values of the validated model, and drops which of them were supplied. A
    second validation would run the validators of the tool's author twice.
    """

    def __get__(self, tool: BaseTool | None, owner: type) -> Any:
        if tool is None or "args_schema" not in tool.__dict__:
            raise AttributeError("args_schema")
        schema = tool.__dict__["args_schema"]
        call = CURRENT.get()
        if call is None or call.tool is not tool or not call.is_parsing:
            return schema
        has_model = isinstance(schema, type) and is_model(schema)
        return _stand_in(schema) if has_model and factory_fields(schema) else schema

    def __set__(self, tool: BaseTool, value: object) -> None:
        tool.__dict__["args_schema"] = value


class GuardedTool(Guarded):
    """The members that the class of a guarded tool adds to the tool's own."""

    __slots__ = ()

    # pydantic still keeps the field in the object, where serializers and copies find it
    args_schema = _ArgsSchema()

    def run(self, tool_input: str | dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the tool as LangChain does; ``handle_tool_error`` never sees a refusal."""
        call = self._begin(kwargs)
        try:
            with current(call):
                return super().run(tool_input, *args, **kwargs)
        except Denied as denied:
            if denied is not call.refusal:
                raise  # the tool ran; what it called was refused
            return call.answer(denied)

    async def arun(self, tool_input: str | dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the tool as LangChain does; the async twin of ``run``."""
        call = self._begin(kwargs)
        try:
            with current(call):
                return await super().arun(tool_input, *args, **kwargs)
        except Denied as denied:
            if denied is not call.refusal:
                raise
            return call.answer(denied)

    def _begin(self, options: Mapping[str, Any]) -> GuardedCall:
        close_slots(self)
        return GuardedCall(self, options.get("tool_call_id"), options.get("config"))

    def _parse_input(
        self, tool_input: str | dict[str, Any], tool_call_id: str | None
    ) -> str | dict[str, Any]:
        call = CURRENT.get()
        if call is None or call.tool is not self:
            return super()._parse_input(tool_input, tool_call_id)
        values = () if isinstance(tool_input, str) else tool_input.values()
        call.framework_objects = [value for value in values if isinstance(value, OBJECTS)]
        call.is_parsing = True
        try:
            parsed = super()._parse_input(tool_input, tool_call_id)
        finally:
            call.is_parsing = False
        if isinstance(parsed, str):
            call.factory_made = {}  # LangChain validates a string, and passes on the original
        return parsed

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in SLOTS:
            close_slots(self)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the tool; the copy is guarded as well."""
        copied = super().model_copy(update=update, deep=deep)
        close_slots(copied)
        return copied

    def __copy__(self) -> Self:
        copied = super().__copy__()
        close_slots(copied)
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        copied = super().__deepcopy__(memo)
        close_slots(copied)
        return copied

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise not_pickled()

    def __getstate__(self) -> NoReturn:
        raise not_pickled()


def put_behind(tool: BaseTool, gate: Gate) -> BaseTool:
    """Return a copy of ``tool`` of which every call passes ``gate``.

    Raises ``ConfigError`` where calls could go past the gate: for a class, or an object, with an
    entry of its own, and for annotations that can't be resolved.
    """
    refuse_replaced_methods(tool)
    copied: Any = tool.model_copy()
    if not isinstance(tool, GuardedTool):
        object.__setattr__(copied, "__class__", _guarded_class(type(tool)))
        copied._agentguard_name = tool.name  # noqa: SLF001
    copied._agentguard_gate = gate  # noqa: SLF001
    copied._agentguard_shape = None  # noqa: SLF001
    close_slots(copied)
    shape_of(copied)  # a schema that can't be described raises now, not at the first call
    return copied  # type: ignore[no-any-return]


def refuse_replaced_methods(tool: BaseTool) -> None:
    """Raise ``ConfigError`` for a tool object with a method in the place of its class's.

    Code that wraps a tool's ``invoke``, such as a tracer, puts the wrapper into the object, past
    pydantic. A copy of the tool would keep the wrapper, which is bound to the original.
    """
    for name in (*_ENTRIES, *METHODS):
        if name in tool.__dict__:
            message = (
                f"tool {tool.name} can't be guarded: its {name} was replaced on the object, and "
                "may run the original past the guard; guard the tool, and wrap what comes back"
            )
            raise ConfigError(message, code="tool.unguardable")


@functools.lru_cache(maxsize=256)
def _guarded_class(tool: type[BaseTool]) -> type[BaseTool]:
    """Make the guarded subclass, of the same name: LangChain writes the name into records."""
    for name in _ENTRIES:
        owner = next((base for base in tool.__mro__ if name in base.__dict__), None)
        if owner is not None and not owner.__module__.startswith("langchain_core."):
            message = (
                f"{tool.__qualname__} can't be guarded: {owner.__qualname__}.{name} may do the "
                "tool's work past _run; let _run and _arun do it, and remove the override"
            )
            raise ConfigError(message, code="tool.unguardable")
    namespace: dict[str, Any] = {
        "__module__": tool.__module__,
        "__qualname__": tool.__qualname__,
        "__doc__": tool.__doc__,
        "__annotations__": {
            "_agentguard_gate": Gate,
            "_agentguard_name": str,
            "_agentguard_shape": Any,
        },
        "_agentguard_gate": PrivateAttr(),
        "_agentguard_name": PrivateAttr(),
        "_agentguard_shape": PrivateAttr(default=None),
    }
    for name, stock in _STOCK.items():
        original = inspect.getattr_static(tool, name)
        if original not in stock:
            namespace[name] = gated_method(tool, name, original)
    bases = (Unannounced, GuardedTool, tool)
    return types.new_class(tool.__name__, bases, {}, lambda ns: ns.update(namespace))
