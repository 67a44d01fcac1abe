"""Reads the members of an object of the application's classes: a dataclass or a pydantic model.

The members are read from the object itself. ``hides_state`` detects an object that may have more
state than its members. ``arguments.py`` encodes the members.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Final


def members(value: Any) -> dict[str, dict[str, object]] | None:
    """Return the members of a dataclass or a pydantic model (v2, v1) by kind; None for others.

    The object itself is read, because a model's serializers may hide a field. The kinds are kept
    apart, because an extra value may have the name of a field.
    """
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        return {"fields": {f.name: getattr(value, f.name) for f in dataclasses.fields(kind)}}
    if not _is_model(kind):
        return None
    groups: dict[str, dict[str, object]] = {"fields": dict(value.__dict__)}
    if hasattr(value, "__pydantic_private__"):
        extra, private = value.__pydantic_extra__, value.__pydantic_private__
    else:
        extra = None
        names = getattr(kind, "__private_attributes__", {})
        private = {name: getattr(value, name) for name in names if hasattr(value, name)}
    if extra:
        groups["extra"] = dict(extra)
    if private:
        groups["private"] = dict(private)
    v2 = hasattr(value, "__pydantic_fields_set__")
    fields_set: set[str] = value.__pydantic_fields_set__ if v2 else value.__fields_set__
    unset = set(groups["fields"]) - fields_set
    if unset:
        groups["unset"] = dict.fromkeys(
            unset
        )  # a tool may treat null and a missing value differently
    return groups


@functools.lru_cache(maxsize=1024)
def declared_names(kind: Any) -> frozenset[str]:
    """Return the names of the declared members; the name of an extra value is data."""
    if dataclasses.is_dataclass(kind):
        return frozenset(field.name for field in dataclasses.fields(kind))
    v2 = hasattr(kind, "__pydantic_fields__")
    fields: Mapping[str, object] = kind.__pydantic_fields__ if v2 else kind.__fields__
    return frozenset((*fields, *getattr(kind, "__private_attributes__", ())))


def _is_model(kind: type) -> bool:
    """Whether a class is a pydantic model, v2 or v1; v2 warns at access to ``__fields__``."""
    v1 = any("__fields__" in base.__dict__ for base in kind.__mro__)
    return v1 or hasattr(kind, "__pydantic_fields__")


_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made at run time


def hides_state(value: object, groups: Mapping[str, Mapping[str, object]]) -> bool:
    """Whether an object may have more state than its members, so that equal bytes prove nothing."""
    if any(kind is not object and not kind.__flags__ & _HEAP_TYPE for kind in type(value).__mro__):
        return True  # the state of a type written in C can't be read
    fields = groups["fields"]
    pydantic = _is_model(type(value))
    slots = {
        slot
        for kind in type(value).__mro__
        for slot in _slots(kind)
        if not (pydantic and slot.startswith("__"))
    }
    standard = {"__dict__", "__weakref__"}
    return bool((set(getattr(value, "__dict__", {})) | slots) - set(fields) - standard)


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
