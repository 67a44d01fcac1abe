"""A guarded LangChain tool: the class that it gets, and its copies.

A guarded tool is a copy of the tool whose class is a subclass made here, so that whatever looks
at the tool (models, graphs, tracers) sees what it saw before. Its functions stand in
``gated_functions.py``, how one call passes in ``gate.py``, what it binds in ``binding.py``.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Mapping
from typing import Any, Final, NoReturn, Self

from langchain_core.tools import BaseTool, StructuredTool, Tool
from pydantic import PrivateAttr

from agentguard import ConfigError, Denied
from agentguard_langchain.factories import factory_fields, is_model
from agentguard_langchain.gate import Gate, not_pickled
from agentguard_langchain.gated_functions import (
    METHODS,
    SLOTS,
    Guarded,
    close_slots,
    gate_of,
    gated_method,
    shape_of,
)
from agentguard_langchain.guarded_call import CURRENT, Call, current
from agentguard_langchain.injection import OBJECTS
from agentguard_langchain.schemas import Unannounced, stand_in

_STOCK: Final = {
    "_run": (StructuredTool._run, Tool._run),  # noqa: SLF001  LangChain's hooks for tool authors
    "_arun": (BaseTool._arun, StructuredTool._arun, Tool._arun),  # noqa: SLF001
}
"""Implementations that do nothing but call ``func``, ``coroutine`` or ``_run``."""

_ENTRIES: Final = (
    *("invoke", "ainvoke", "run", "arun", "stream", "astream", "batch", "abatch", "__call__"),
    *("batch_as_completed", "abatch_as_completed", "transform", "atransform"),
)
"""Public ways into a tool, all of which end in ``_run`` or ``_arun`` as LangChain wrote them."""


class _ArgsSchema:
    """``args_schema``: as ever, but a stand-in to LangChain while it validates a call's input.

    LangChain keeps of the validated model its values alone, not which of them were supplied; and
    to validate once more would run the validators of the tool's author twice.
    """

    def __get__(self, tool: BaseTool | None, owner: type) -> Any:
        if tool is None or "args_schema" not in tool.__dict__:
            raise AttributeError("args_schema")
        schema = tool.__dict__["args_schema"]
        call = CURRENT.get()
        if call is None or call.tool is not tool or not call.parsing:
            return schema
        modelled = isinstance(schema, type) and is_model(schema)
        return stand_in(schema) if modelled and factory_fields(schema) else schema

    def __set__(self, tool: BaseTool, value: object) -> None:
        tool.__dict__["args_schema"] = value


class GuardedTool(Guarded):
    """What the class of a guarded tool adds to that of the tool."""

    __slots__ = ()

    # pydantic goes on keeping the field in the object, where serializers and copies find it
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
            return gate_of(self).refuse(self.name, call.id, denied)

    async def arun(self, tool_input: str | dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Run the tool as LangChain does; the async twin of ``run``."""
        call = self._begin(kwargs)
        try:
            with current(call):
                return await super().arun(tool_input, *args, **kwargs)
        except Denied as denied:
            if denied is not call.refusal:
                raise
            return gate_of(self).refuse(self.name, call.id, denied)

    def _begin(self, options: Mapping[str, Any]) -> Call:
        close_slots(self)
        return Call(self, options.get("tool_call_id"), options.get("config"))

    def _parse_input(
        self, tool_input: str | dict[str, Any], tool_call_id: str | None
    ) -> str | dict[str, Any]:
        call = CURRENT.get()
        if call is None or call.tool is not self:
            return super()._parse_input(tool_input, tool_call_id)
        given = () if isinstance(tool_input, str) else tool_input.values()
        call.objects = [value for value in given if isinstance(value, OBJECTS)]
        call.parsing = True
        try:
            parsed = super()._parse_input(tool_input, tool_call_id)
        finally:
            call.parsing = False
        if isinstance(parsed, str):
            call.made = {}  # validated, and then passed on as it came
        return parsed

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in SLOTS:
            close_slots(self)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the tool; the copy is as guarded as this one."""
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

    Raises ``ConfigError`` where that can't be promised: a class, or an object, with a way in of its
    own, or annotations that can't be resolved.
    """
    refuse_ways_of_its_own(tool)
    copied: Any = tool.model_copy()
    if not isinstance(tool, GuardedTool):
        object.__setattr__(copied, "__class__", _guarded_class(type(tool)))
        copied._agentguard_name = tool.name  # noqa: SLF001
    copied._agentguard_gate = gate  # noqa: SLF001
    copied._agentguard_shape = None  # noqa: SLF001
    close_slots(copied)
    shape_of(copied)  # what can't be described is found now, not at the first call
    return copied  # type: ignore[no-any-return]


def refuse_ways_of_its_own(tool: BaseTool) -> None:
    """Raise ``ConfigError`` for a tool object with a method in the place of its class's.

    Whoever wraps a tool's ``invoke`` (to trace it, say) puts it there, past pydantic; a copy keeps
    it, and it is bound to the original.
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
    """Make the guarded subclass. It keeps the name: what LangChain writes down stays the same."""
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
    for name, pure in _STOCK.items():
        original = inspect.getattr_static(tool, name)
        if original not in pure:
            namespace[name] = gated_method(tool, name, original)
    bases = (Unannounced, GuardedTool, tool)
    return types.new_class(tool.__name__, bases, {}, lambda ns: ns.update(namespace))
