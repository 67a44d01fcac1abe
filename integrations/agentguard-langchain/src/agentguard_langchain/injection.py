"""Which arguments of a tool are the framework's: what ToolNode takes out of what a model gave.

A mark (``InjectedToolArg``, ``InjectedState``, ``ToolRuntime`` and the like) keeps a model from an
argument only where LangGraph's ToolNode reads it: in the input schema, and in the annotations of
``func``, or of ``coroutine`` where there is no ``func``. Marked elsewhere (in ``_run``, in the
second of two functions), an argument goes from the model to the tool like any other, so that it
is bound like any other. What is done with these names stands in ``binding.py``.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

from langchain_core.tools import BaseTool, InjectedToolArg
from langchain_core.tools.base import get_all_basemodel_annotations
from langchain_core.utils.pydantic import get_fields
from langgraph.prebuilt import ToolRuntime
from langgraph.store.base import BaseStore

from agentguard import ConfigError

RUNTIME: Final = "runtime"
"""ToolNode injects a parameter of this name whatever its annotation says."""

CALL_ID: Final = "tool_call_id"
"""LangChain itself fills in a marked parameter of this name, unless the model gave one."""

OBJECTS: Final = (ToolRuntime, BaseStore)
"""What only the framework supplies, whatever a parameter's annotation: no JSON contains one."""


def is_injected(annotation: object) -> bool:
    """Whether a type says that the framework, not the model, supplies an argument."""
    origin = typing.get_origin(annotation) or annotation
    if isinstance(origin, type) and issubclass(origin, ToolRuntime):
        return True
    return any(
        isinstance(mark, InjectedToolArg)
        or (isinstance(mark, type) and issubclass(mark, InjectedToolArg))
        for mark in typing.get_args(annotation)[1:]
    )


def read_function(tool: BaseTool) -> Callable[..., Any] | None:
    """Return the one function of ``tool`` whose annotations ToolNode reads."""
    function: Callable[..., Any] | None
    function = getattr(tool, "func", None) or getattr(tool, "coroutine", None)
    return function


def runtime_name(tool: BaseTool) -> str | None:
    """Return the name of the argument in whose place ToolNode puts the runtime; None for none.

    ToolNode does so by the name ``runtime``, and by a ``ToolRuntime`` anywhere in the annotation.
    """
    in_schema = get_all_basemodel_annotations(tool.get_input_schema())
    annotations = {**_annotations(read_function(tool)), **in_schema}
    names = [n for n, type_ in annotations.items() if n == RUNTIME or _holds_runtime(type_)]
    return names[-1] if names else None


def _holds_runtime(annotation: object) -> bool:
    origin = typing.get_origin(annotation) or annotation
    if isinstance(origin, type) and issubclass(origin, ToolRuntime):
        return True
    return any(_holds_runtime(part) for part in typing.get_args(annotation))


def stripped(tool: BaseTool) -> frozenset[str]:
    """Return the names that ToolNode takes out of what a model gave for ``tool``.

    Raises ``ConfigError`` where a model could give such an argument past that, by an alias.
    """
    in_schema = get_all_basemodel_annotations(tool.get_input_schema())
    annotations = {**_annotations(read_function(tool)), **in_schema}
    names = {name for name, annotation in annotations.items() if is_injected(annotation)}
    schema = tool.args_schema
    if not isinstance(schema, type):
        return frozenset(names)
    aliased = {name for name, field in get_fields(schema).items() if _has_alias(name, field)}
    for name in sorted(names & aliased & in_schema.keys()):
        message = (
            f"tool {tool.name}: {schema.__qualname__}.{name} is injected and has an alias, by "
            "which a model can give it all the same: remove the alias"
        )
        raise ConfigError(message, code="tool.unguardable")
    return frozenset(names - aliased)


def _annotations(function: Callable[..., Any] | None) -> Mapping[str, Any]:
    if function is None:
        return {}
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # noqa: BLE001  ToolNode can't read it either: nothing is the framework's
        return {}


def _has_alias(name: str, field: Any) -> bool:
    """Tell a field, of pydantic v2 or v1, that is validated from another key than its name."""
    alias = getattr(field, "validation_alias", None) or field.alias
    return alias is not None and alias != name
