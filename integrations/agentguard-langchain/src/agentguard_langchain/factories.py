"""Pydantic models as a call's arguments: what somebody supplied, and what a factory made.

A default factory may answer differently each time (an id, the time), so a value that it made is
no part of what was asked for, and would differ between the step that asks for approval and the
step that executes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from langchain_core.utils.pydantic import get_fields
from pydantic import BaseModel, create_model
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import create_model as create_model_v1

Model = type[BaseModel] | type[BaseModelV1]


@functools.lru_cache(maxsize=1024)
def factory_fields(schema: Model) -> frozenset[str]:
    """Return the fields of a model whose default is made by a factory."""
    fields = get_fields(schema)
    return frozenset(name for name, field in fields.items() if field.default_factory is not None)


def unsupplied_fields(schema: Model, values: Mapping[str, Any]) -> frozenset[str]:
    """Return the factory-made fields that ``values`` leave to the factory.

    The validator says so, not the raw keys: an alias or a validator may supply a field.
    """
    made = factory_fields(schema)
    if not made:
        return frozenset()
    if issubclass(schema, BaseModelV1):
        return made - schema.parse_obj(values).__fields_set__
    return made - schema.model_validate(values).model_fields_set


def without_factory_defaults(value: Any) -> Any:
    """Return ``value`` with such fields of nested models left out; what has none is unchanged."""
    kind = type(value)
    if kind is dict:
        return {key: without_factory_defaults(item) for key, item in value.items()}
    if kind is list:
        return [without_factory_defaults(item) for item in value]
    if kind is tuple:
        return tuple(without_factory_defaults(item) for item in value)
    if not issubclass(kind, BaseModel | BaseModelV1):
        return value
    given = value.__fields_set__ if issubclass(kind, BaseModelV1) else value.model_fields_set
    left_out = factory_fields(kind) - given
    kept = {
        name: without_factory_defaults(item)
        for name, item in value.__dict__.items()
        if name not in left_out
    }
    if issubclass(kind, BaseModelV1):
        return value.copy(exclude=left_out, update=kept)
    trimmed = value.model_copy(update=kept)
    for name in left_out:
        trimmed.__dict__.pop(name, None)
    return trimmed


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
