"""Code of a schema's author that runs while arguments are validated, and what it can reach.

Pydantic notes which fields were supplied (``model_fields_set``). A validator that sees a whole
object can put a value into a field past that, by ``self.__dict__``, ``object.__setattr__`` or the
``info.data`` of its neighbours: then a value looks as if a default factory had made it. Nothing
here runs any of that code. What follows for a call's bytes stands in ``factories.py``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel, PrivateAttr
from pydantic.v1 import BaseModel as BaseModelV1


class _Private(BaseModel):
    """Shows what pydantic itself runs after the validation of a model with private attributes."""

    _attribute: int = PrivateAttr(default=0)


_PYDANTICS_OWN: Final = (BaseModel.model_post_init, _Private.model_post_init)

_NO_OBJECTS: Final = frozenset(
    {
        *("none", "bool", "int", "float", "decimal", "str", "bytes", "date", "time", "datetime"),
        *("timedelta", "uuid", "url", "multi-host-url", "literal", "enum"),
        *("nullable", "default", "list", "tuple", "set", "frozenset", "dict", "union"),
        *("lax-or-strict", "json-or-python", "chain"),
    }
)
"""Core schemas of values that have no fields, as long as what they are made of has none."""

_NO_SCHEMA: Final = frozenset(
    {"metadata", "serialization", "default", "expected", "config", "function"}
)
"""Members of pydantic's core schemas that hold anything but schemas."""


def parts(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what may hold schemas in a core schema, or in a mapping of fields to such."""
    is_schema = isinstance(node.get("type"), str)  # a field may have any name, "default" as well
    yield from ((k, v) for k, v in node.items() if not (is_schema and k in _NO_SCHEMA))


@functools.lru_cache(maxsize=1024)
def may_fill_in(kind: type) -> bool:
    """Whether code of the author's sees objects of this class, or the fields of one, as a whole.

    ``kind`` is a model or a dataclass. Code of the classes that it holds is theirs.
    """
    if issubclass(kind, BaseModelV1):
        # those of a field get the values of the others
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
    """Find, in a class's core schema, a function that gets an object or its neighbours."""
    if isinstance(node, list | tuple):
        return any(_sees_objects(kind, item) for item in node)
    if not isinstance(node, Mapping):
        return False
    other = node.get("type") in ("model", "dataclass") and node["cls"] is not kind
    if other and hasattr(node["cls"], "__pydantic_core_schema__"):
        return False  # it is looked at where one is met
    if _is_authors(node) and _gets_objects(node):
        return True
    return any(_sees_objects(kind, item) for _name, item in parts(node))


def _is_authors(node: Mapping[str, Any]) -> bool:
    """Whether this is the schema of a function that is not pydantic's own."""
    if not str(node.get("type")).startswith("function-"):
        return False
    module = str(getattr(node["function"]["function"], "__module__", None))
    # its shims for validators in the style of its first version run the author's
    return module.partition(".")[0] != "pydantic" or module.endswith("._decorators_v1")


def _gets_objects(node: Mapping[str, Any]) -> bool:
    if node["function"]["type"] != "no-info":
        return True  # info.data are the fields of the object that is being made
    if node["type"] == "function-before":
        return False  # it gets the raw input, and what it puts in there is supplied
    return node["type"] == "function-plain" or not _has_no_objects(node["schema"])


def _has_no_objects(node: object) -> bool:
    if isinstance(node, list | tuple):
        return all(map(_has_no_objects, node))
    if not isinstance(node, Mapping):
        return True
    kind = str(node.get("type"))
    plain = kind in _NO_OBJECTS or (kind.startswith("function-") and kind != "function-plain")
    return plain and all(_has_no_objects(item) for _name, item in parts(node))
