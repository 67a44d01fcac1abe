"""The specification and the arguments that a call of a CrewAI tool binds.

The decision on the call stands in ``gate.py``.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast, get_args

from crewai.tools import BaseTool
from crewai.tools.base_tool import Tool
from crewai.tools.mcp_native_tool import MCPNativeTool
from crewai.tools.mcp_tool_wrapper import MCPToolWrapper
from crewai.utilities.string_utils import sanitize_tool_name
from pydantic import BaseModel

from agentguard import ConfigError
from agentguard.adapters import JSON, Arguments, ToolSpec, binder, digest
from agentguard_crewai.sealing import original_class, unsealed_attribute


def model_names(tools: Sequence[BaseTool]) -> list[str]:
    """Return the names by which a model calls these tools, as CrewAI makes the names.

    Tools of the same name get a number. Raises ``ConfigError`` (``tool.invalid``) for a tool whose
    name has no letter or digit.
    """
    names: list[str] = []
    for tool in tools:
        known = name = sanitize_tool_name(tool.name)
        if not known:
            message = f"tool {tool.name!r}: a model calls a tool by a name of a-z, 0-9 and _"
            raise ConfigError(message, code="tool.invalid")
        for number in itertools.count(2):
            if name not in names:
                break
            name = sanitize_tool_name(f"{known}_{number}")
        names.append(name)
    return names


def decision_names(tools: Sequence[BaseTool], names: Sequence[str]) -> list[str]:
    """Return the names that policies see; copies of one tool share a name.

    CrewAI adds the tools of an MCP server again at each kickoff of an agent without a crew.
    """
    firsts: defaultdict[str, list[tuple[BaseTool, str]]] = defaultdict(list)
    known: list[str] = []
    for tool, name in zip(tools, names, strict=True):
        candidates = firsts[sanitize_tool_name(tool.name)]
        same = next((first for one, first in candidates if is_same(one, tool)), None)
        if same is None:
            candidates.append((tool, name))
        known.append(same or name)
    return known


def is_same(one: BaseTool, other: BaseTool) -> bool:
    """Return whether two tools have the same class and state, and so use the same accounts."""
    if one is other:
        return True
    if original_class(one) is not original_class(other):
        return False
    try:
        return _state(one) == _state(other)
    except Exception:  # noqa: BLE001  a value of a user's class may raise anything
        return False


def _state(tool: BaseTool) -> dict[str, object]:
    """Return a tool's state without the counters and the objects that CrewAI makes anew."""
    state = {**vars(tool), **(tool.__pydantic_extra__ or {}), **(tool.__pydantic_private__ or {})}
    for counted in ("current_usage_count", "_usage_lock"):
        state.pop(counted, None)
    state["args_schema"] = digest(_schema(tool.args_schema))
    if isinstance(tool, MCPNativeTool):
        factory = state["_client_factory"]  # another one at each kickoff, of the same server
        state["_client_factory"] = tool.server_reference or _cells(factory).get(
            "mcp_config", factory
        )
    return state


def _cells(function: Any) -> Mapping[str, object]:
    if not inspect.isfunction(function):
        return {}
    return inspect.getclosurevars(function).nonlocals


def spec_of(tool: BaseTool, name: str) -> ToolSpec:
    """Return the specification of a tool, under the ``name`` by which a model calls it."""
    return _spec(name, tool.description, tool.args_schema, _origin(tool))


@functools.lru_cache(maxsize=512)
def _spec(name: str, description: str, schema: type[BaseModel], origin: str) -> ToolSpec:
    return ToolSpec(name, description, _schema(schema), origin)


def _schema(schema: type[BaseModel]) -> Mapping[str, JSON]:
    try:
        return cast("Mapping[str, JSON]", schema.model_json_schema())
    except Exception:  # noqa: BLE001  a field without a JSON schema: CrewAI shows a model nothing then
        return {"type": "object", "properties": {name: {} for name in schema.model_fields}}


def _origin(tool: BaseTool) -> str:
    """Return where a tool comes from: ``module:qualname``, or ``mcp:<server>``."""
    if isinstance(tool, MCPNativeTool | MCPToolWrapper):
        return f"mcp:{tool.server_name}"
    owner: Any = unsealed_attribute(tool, "func") if isinstance(tool, Tool) else _code_origin(tool)
    while isinstance(owner, functools.partial):
        owner = owner.func
    owner = owner if hasattr(owner, "__qualname__") else type(owner)
    return f"{owner.__module__}:{owner.__qualname__}"


def _code_origin(tool: BaseTool) -> object:
    """Return the tool's class, or the function that replaced the class's own code."""
    kind = original_class(tool)
    for name in ("_run", "run"):
        if name in vars(tool):
            return vars(tool)[name]
        owner = next(one for one in kind.__mro__ if name in vars(one))
        code = vars(owner)[name]
        if getattr(code, "__qualname__", None) != f"{owner.__qualname__}.{name}":
            return code
    return kind


def arguments_of(
    function: Callable[..., object],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    declared: Mapping[str, object],
) -> Arguments:
    """Bind the arguments of a tool's function; raises ``ArgumentsError``.

    CrewAI passes all arguments by name, validated by the tool's schema, with defaults filled in.
    ``declared`` has the names of the schema.
    """
    return Arguments.of(by_name(function, args, kwargs), declared=declared.keys())


def by_name(
    function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Mapping[str, object]:
    """Return the arguments of a tool's function by name; raises ``ArgumentsError``."""
    return binder(function)(args, kwargs) if args else kwargs


_CONSTANT_FACTORIES: Final = (bool, bytes, dict, float, frozenset, int, list, set, str, tuple)


def require_repeatable(tool: BaseTool) -> None:
    """Raise ``ConfigError`` for a tool whose schema may fill in other values with each call.

    A factory counts as repeatable if it is a plain type or a model.
    """
    name = _unrepeatable_field(tool.args_schema)
    if name is not None:
        message = (
            f"the argument {name} of the tool {tool.name} has a default_factory, and may be made "
            "anew with each call, which is then not known again once the crew goes on: give the "
            "field a default, or let the tool's own code make the value"
        )
        raise ConfigError(message, code="arguments.unrepeatable")


@functools.lru_cache(maxsize=512)
def _unrepeatable_field(schema: type[BaseModel]) -> str | None:
    """Return the name of a field, at any depth, whose factory may make another value each time."""
    models = [schema]
    for model in models:  # it grows
        for name, field in model.model_fields.items():
            factory: Any = field.default_factory
            if factory is not None and factory not in _CONSTANT_FACTORIES and factory not in models:
                if not (isinstance(factory, type) and issubclass(factory, BaseModel)):
                    return name
                models.append(factory)
            models += [inner for inner in _models_in(field.annotation) if inner not in models]
    return None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
