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
from agentguard_langchain.factories import Model, hidden_factories, varies
from agentguard_langchain.validators import parts


class Unannounced:
    """The first base of a class made here: hides it from the ``__init_subclass__`` of the others.

    An application may keep subclasses in a registry, or require keywords when one is made.
    """

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        """Do nothing."""

    @classmethod
    def __pydantic_init_subclass__(cls) -> None:
        """Do nothing."""


@functools.lru_cache(maxsize=256)
def schema_ahead(schema: Model, injected: frozenset[str]) -> Model:
    """Return ``schema`` with its validators and aliases, in which injected fields are optional.

    LangChain's model-visible schema drops validators and aliases: arguments that are validated by
    it differ from those that the tool receives.
    """
    fields: dict[str, Any] = {name: (Any, None) for name in injected if name in get_fields(schema)}
    if not fields:
        return schema
    if issubclass(schema, BaseModelV1):
        return create_model_v1(schema.__name__, __base__=schema, **fields)
    return create_model(schema.__name__, __base__=schema, **fields)


def require_observable(schema: object, tool: str) -> None:
    """Raise ``ConfigError`` for a default factory whose values look like supplied ones.

    Models say which of their fields were supplied. Dataclasses, typed dictionaries, tuples and
    private attributes don't. Pydantic v1 has factories in models only.
    """
    if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
        return
    for place in _hidden_factories(
        schema, schema.__pydantic_core_schema__, schema.__qualname__, tells=False
    ):
        message = (
            f"tool {tool}: {place} has a default factory, and nothing tells whether its value was "
            "made or supplied, so that two calls alike can't be bound alike; "
            "make it a field of a pydantic model, or give it a default"
        )
        raise ConfigError(message, code="tool.unguardable")


def _hidden_factories(root: type, node: object, place: str, *, tells: bool) -> Iterator[str]:
    """Yield where factories stand in a core schema; ``tells`` for the field of a model."""
    if isinstance(node, list | tuple):
        for item in node:
            yield from _hidden_factories(root, item, place, tells=False)
    if not isinstance(node, Mapping):
        return
    kind, owner = node.get("type"), node.get("cls")
    if kind == "default" and not tells and varies(node.get("default_factory")):
        yield place
    if kind == "model" and isinstance(owner, type) and owner is not root:
        # the root's own private attributes never reach the tool
        yield from (f"{owner.__qualname__}.{name}" for name in hidden_factories(owner)[:1])
    is_model_part = kind == "model-field" or (kind == "model" and node["root_model"])
    for name, item in parts(node):
        where = _where(node, name, place)
        yield from _hidden_factories(root, item, where, tells=is_model_part and name == "schema")


def _where(node: Mapping[str, Any], name: str, place: str) -> str:
    """Name a member of a node: by the class that the node is of, or by the field."""
    if isinstance(owner := node.get("cls"), type):
        return owner.__qualname__
    if isinstance(node.get(name), Mapping) and str(node[name].get("type")).endswith("-field"):
        return f"{place}.{name}"
    return f"{place}.{node['name']}" if node.get("type") == "dataclass-field" else place
