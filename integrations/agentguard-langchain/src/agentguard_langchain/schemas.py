"""The schema for a call ahead of execution, and schemas that are refused.

Ahead of execution nobody injects arguments: ``schema_ahead`` asks for none. What happens with
values that default factories made stands in ``factories.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.utils.pydantic import get_fields
from pydantic import BaseModel, create_model
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import create_model as create_model_v1

from agentguard import ConfigError
from agentguard_langchain.factories import Model, untold, varies
from agentguard_langchain.validators import parts


class Unannounced:
    """Comes first among the bases of a class made here: no class hears of it as of a subclass.

    An application may keep its classes in a registry, or ask for keywords when one is made.
    """

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        """Tell nobody."""

    @classmethod
    def __pydantic_init_subclass__(cls) -> None:
        """Tell nobody."""


@functools.lru_cache(maxsize=256)
def schema_ahead(schema: Model, injected: frozenset[str]) -> Model:
    """Return ``schema``, validators and aliases and all, without asking for injected fields.

    The model-visible schema would not do: it drops validators and aliases, so that what is shown
    ahead of execution is not what the tool receives.
    """
    fields: dict[str, Any] = {name: (Any, None) for name in injected if name in get_fields(schema)}
    if not fields:
        return schema
    if issubclass(schema, BaseModelV1):
        return create_model_v1(schema.__name__, __base__=schema, **fields)
    return create_model(schema.__name__, __base__=schema, **fields)


def require_told(schema: object, tool: str) -> None:
    """Raise ``ConfigError`` for a schema with a factory whose values nothing tells from others.

    Fields of models tell; those of dataclasses and typed dictionaries, the items of tuples and
    private attributes don't. Pydantic v1 knows factories in models only.
    """
    if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
        return
    for place in _untold(schema, schema.__pydantic_core_schema__, schema.__qualname__, told=False):
        message = (
            f"tool {tool}: {place} has a default factory, and nothing tells whether its value was "
            "made or supplied, so that two calls alike can't be bound alike; "
            "make it a field of a pydantic model, or give it a default"
        )
        raise ConfigError(message, code="tool.unguardable")


def _untold(root: type, node: object, place: str, *, told: bool) -> Iterator[str]:
    """Find the factories in a core schema; ``told`` says that the node is a model's field."""
    if isinstance(node, list | tuple):
        for item in node:
            yield from _untold(root, item, place, told=False)
    if not isinstance(node, Mapping):
        return
    kind, owner = node.get("type"), node.get("cls")
    if kind == "default" and not told and varies(node.get("default_factory")):
        yield place
    if kind == "model" and isinstance(owner, type) and owner is not root:
        # the root's own private attributes never reach the tool
        yield from (f"{owner.__qualname__}.{name}" for name in untold(owner)[:1])
    tells = kind == "model-field" or (kind == "model" and node["root_model"])
    for name, item in parts(node):
        where = _where(node, name, place)
        yield from _untold(root, item, where, told=tells and name == "schema")


def _where(node: Mapping[str, Any], name: str, place: str) -> str:
    """Return what to call a node's member: the class that it is of, or the field."""
    if isinstance(owner := node.get("cls"), type):
        return owner.__qualname__
    if isinstance(node.get(name), Mapping) and str(node[name].get("type")).endswith("-field"):
        return f"{place}.{name}"
    return f"{place}.{node['name']}" if node.get("type") == "dataclass-field" else place
