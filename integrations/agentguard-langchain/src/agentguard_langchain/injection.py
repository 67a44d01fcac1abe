"""The arguments of a tool that the framework injects, and that no model can give.

A mark (``InjectedToolArg``, ``InjectedState``, ``ToolRuntime`` and the like) keeps a model from an
argument only where LangGraph's ToolNode reads the mark: in the input schema, and in the annotations
of ``func``, or of ``coroutine`` where there is no ``func``. An argument that is marked elsewhere
(in ``_run``, in the second of two functions) goes from the model to the tool, and is bound like any
other. How these names are left out of a call stands in ``binding.py``.
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
"""The classes of objects that only the framework supplies: no JSON contains such an object."""


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


def annotated_function(tool: BaseTool) -> Callable[..., Any] | None:
    """Return the function of ``tool`` whose annotations ToolNode reads; None for none."""
    function: Callable[..., Any] | None
    function = getattr(tool, "func", None) or getattr(tool, "coroutine", None)
    return function


def runtime_name(tool: BaseTool) -> str | None:
    """Return the name of the argument in whose place ToolNode puts the runtime; None for none.

    ToolNode does so by the name ``runtime``, and by a ``ToolRuntime`` anywhere in the annotation.
    """
    in_schema = get_all_basemodel_annotations(tool.get_input_schema())
    annotations = {**_annotations(annotated_function(tool)), **in_schema}
    names = [n for n, type_ in annotations.items() if n == RUNTIME or _holds_runtime(type_)]
    return names[-1] if names else None


def _holds_runtime(annotation: object) -> bool:
    origin = typing.get_origin(annotation) or annotation
    if isinstance(origin, type) and issubclass(origin, ToolRuntime):
        return True
    return any(_holds_runtime(part) for part in typing.get_args(annotation))


def removed_names(tool: BaseTool) -> frozenset[str]:
    """Return the names that ToolNode removes from a model's arguments for ``tool``.

    Raises ``ConfigError`` for a field with an alias, by which a model could give the argument.
    """
    in_schema = get_all_basemodel_annotations(tool.get_input_schema())
    annotations = {**_annotations(annotated_function(tool)), **in_schema}
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
    """Whether a field, of pydantic v2 or v1, is validated from another key than its name."""
    alias = getattr(field, "validation_alias", None) or field.alias
    return alias is not None and alias != name
