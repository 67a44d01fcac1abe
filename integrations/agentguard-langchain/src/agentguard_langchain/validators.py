"""Detects validators of a schema's author that could change fields which pydantic counts as unset.

Pydantic notes which fields were supplied (``model_fields_set``). A validator that sees a whole
object can set a field without that note, by ``self.__dict__``, ``object.__setattr__`` or
``info.data``: the value then looks as if a default factory had made it. Nothing here runs the
author's code. What such a validator means for a call's bytes stands in ``factories.py``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel, PrivateAttr
from pydantic.v1 import BaseModel as BaseModelV1


class _Private(BaseModel):
    """Shows the function that pydantic runs after a model with private attributes is validated."""

    _attribute: int = PrivateAttr(default=0)


_PYDANTICS_OWN: Final = (BaseModel.model_post_init, _Private.model_post_init)

_NO_OBJECTS: Final = frozenset(
    {
        "none",
        "bool",
        "int",
        "float",
        "decimal",
        "str",
        "bytes",
        "date",
        "time",
        "datetime",
        "timedelta",
        "uuid",
        "url",
        "multi-host-url",
        "literal",
        "enum",
        "nullable",
        "default",
        "list",
        "tuple",
        "set",
        "frozenset",
        "dict",
        "union",
        "lax-or-strict",
        "json-or-python",
        "chain",
    }
)
"""Core schemas of values without fields, if their parts have no fields either."""

_NO_SCHEMA: Final = frozenset(
    {"metadata", "serialization", "default", "expected", "config", "function"}
)
"""Members of pydantic's core schemas that hold no schemas."""


def parts(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the members that may hold schemas, of a core schema or of a mapping of fields."""
    is_schema = isinstance(node.get("type"), str)  # a field may have any name, "default" as well
    yield from ((k, v) for k, v in node.items() if not (is_schema and k in _NO_SCHEMA))


@functools.lru_cache(maxsize=1024)
def may_fill_in(kind: type) -> bool:
    """Whether code of the author's sees an object of this class, or all of its fields.

    ``kind`` is a model or a dataclass. The classes of its fields are not looked at.
    """
    if issubclass(kind, BaseModelV1):
        # the validator of a field gets the values of the other fields
        validates = kind.__validators__ or kind.__post_root_validators__
        return bool(validates) or not _is_pydantics(kind, "__init__")
    if issubclass(kind, BaseModel):
        after: Any = kind.model_post_init
        if after not in _PYDANTICS_OWN or not _is_pydantics(kind, "__init__"):
            return True
    elif dataclasses.is_dataclass(kind) and hasattr(kind, "__post_init__"):
        return True
    return _sees_objects(kind, getattr(kind, "__pydantic_core_schema__", None))


def _is_pydantics(kind: type, name: str) -> bool:
    owner = next(base for base in kind.__mro__ if name in base.__dict__)
    return owner.__module__.partition(".")[0] == "pydantic"


def _sees_objects(kind: type, node: object) -> bool:
    """Whether a core schema has a function of the author's that gets an object or its fields."""
    if isinstance(node, list | tuple):
        return any(_sees_objects(kind, item) for item in node)
    if not isinstance(node, Mapping):
        return False
    is_other_class = node.get("type") in ("model", "dataclass") and node["cls"] is not kind
    if is_other_class and hasattr(node["cls"], "__pydantic_core_schema__"):
        return False  # another class is checked with its own objects
    if _is_authors(node) and _gets_objects(node):
        return True
    return any(_sees_objects(kind, item) for _name, item in parts(node))


def _is_authors(node: Mapping[str, Any]) -> bool:
    """Whether this is the schema of a function that the author of the model wrote."""
    if not str(node.get("type")).startswith("function-"):
        return False
    module = str(getattr(node["function"]["function"], "__module__", None))
    # pydantic's shims for validators in the style of version 1 run the author's code
    return module.partition(".")[0] != "pydantic" or module.endswith("._decorators_v1")


def _gets_objects(node: Mapping[str, Any]) -> bool:
    if node["function"]["type"] != "no-info":
        return True  # info.data has the fields of the object that is being made
    if node["type"] == "function-before":
        return False  # it gets the raw input: what it adds counts as supplied
    return node["type"] == "function-plain" or not _has_no_objects(node["schema"])


def _has_no_objects(node: object) -> bool:
    if isinstance(node, list | tuple):
        return all(map(_has_no_objects, node))
    if not isinstance(node, Mapping):
        return True
    kind = str(node.get("type"))
    has_no_fields = kind in _NO_OBJECTS or (
        kind.startswith("function-") and kind != "function-plain"
    )
    return has_no_fields and all(_has_no_objects(item) for _name, item in parts(node))
