"""What an object holds whose class the application wrote: a dataclass or a pydantic model.

It is read from the object itself, and an object that may hold more than can be seen is told. How
what is found is written down stands in ``arguments.py``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Final


def members(value: Any) -> dict[str, dict[str, object]] | None:
    """Return what a dataclass or a pydantic model (v2, v1) holds, by kind of member.

    Read from the object itself: a model's serializers may hide a field. The kinds are kept apart,
    since an extra value may have the name of a field.
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
    given: set[str] = value.__pydantic_fields_set__ if v2 else value.__fields_set__
    unset = set(groups["fields"]) - given
    if unset:
        groups["unset"] = dict.fromkeys(unset)  # to a tool, null is not the same as not given
    return groups


@functools.lru_cache(maxsize=1024)
def declared(kind: Any) -> frozenset[str]:
    """Return the names of members that stand in the code; that of an extra value is data."""
    if dataclasses.is_dataclass(kind):
        return frozenset(field.name for field in dataclasses.fields(kind))
    v2 = hasattr(kind, "__pydantic_fields__")
    fields: Mapping[str, object] = kind.__pydantic_fields__ if v2 else kind.__fields__
    return frozenset((*fields, *getattr(kind, "__private_attributes__", ())))


def _is_model(kind: type) -> bool:
    """Tell a pydantic model, v2 or v1 (of which ``__fields__`` is asked only where it is real)."""
    v1 = any("__fields__" in base.__dict__ for base in kind.__mro__)
    return v1 or hasattr(kind, "__pydantic_fields__")


_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made at run time


def hides_state(value: object, groups: Mapping[str, Mapping[str, object]]) -> bool:
    """Tell whether an object holds more than its members show: then equal bytes prove nothing."""
    if any(kind is not object and not kind.__flags__ & _HEAP_TYPE for kind in type(value).__mro__):
        return True  # a type written in C keeps its state where nobody sees it
    fields = groups["fields"]
    pydantic = _is_model(type(value))
    slots = {
        slot
        for kind in type(value).__mro__
        for slot in _slots(kind)
        if not (pydantic and slot.startswith("__"))
    }
    loose = {"__dict__", "__weakref__"}
    return bool((set(getattr(value, "__dict__", {})) | slots) - set(fields) - loose)


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
