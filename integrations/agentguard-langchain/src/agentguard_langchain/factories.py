"""Arguments whose values a default factory made, and the mark that stands for such a value.

A default factory may return another value each time (an id, the time). The value would differ
between the step that asks for approval and the step that executes the call. The mark
``FactoryMade.MADE`` takes its place: the bytes are the same, and the policy sees that a factory
fills in what was left out. A value that is always the same (an empty list) is bound as it is.

Pydantic's models say which fields were supplied (``model_fields_set``); private attributes and
dataclasses don't. A factory in those, whose value varies, is refused: a mark could hide a supplied
value. Where the author's code may have put a value in unseen (``validators.py``), values are bound
as they are, and such calls may have other bytes each time. The checks of a schema, ahead of any
value, stand in ``schemas.py``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Iterable, Mapping
from types import MemberDescriptorType
from typing import Any, Final

from langchain_core.utils.pydantic import get_fields
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.v1 import BaseModel as BaseModelV1

from agentguard.adapters import (
    MAX_DEPTH,
    ArgumentsError,
    FactoryMade,
    bounded,
    is_namedtuple,
    spend,
)
from agentguard_langchain.validators import may_fill_in

Model = type[BaseModel] | type[BaseModelV1]

_EMPTY: Final = (list, dict, set, frozenset, tuple, str, bytes, int, float, bool)
"""Types that return the same value each time they are called without arguments."""


def is_model(kind: type) -> bool:
    """Whether this is the class of a pydantic model, v2 or v1."""
    return issubclass(kind, BaseModel | BaseModelV1)


def _makes_empty(factory: object) -> bool:
    return any(factory is kind for kind in _EMPTY)


def varies(factory: object) -> bool:
    """Whether the values of a default factory may differ from call to call.

    An empty value of a built-in type does not differ. An instance of a dataclass or a model differs
    only by its own factories, which are checked with that class.
    """
    if factory is None or factory is dataclasses.MISSING or _makes_empty(factory):
        return False
    return not (
        isinstance(factory, type) and (dataclasses.is_dataclass(factory) or is_model(factory))
    )


@functools.lru_cache(maxsize=1024)
def factory_fields(kind: Model) -> Mapping[str, object]:
    """Return the factories that make defaults of a model's fields, by the field's name."""
    fields = get_fields(kind)
    factories = {name: field.default_factory for name, field in fields.items()}
    return {name: factory for name, factory in factories.items() if factory is not None}


def made_by_factories(model: BaseModel | BaseModelV1) -> dict[str, Any]:
    """Return the values of a model's fields that a factory made, by name.

    Pydantic's own note counts, not the raw keys: an alias or a validator may supply a field. Left
    out are values that are always the same, and all values of a model that code of the author's
    may have filled in.
    """
    if may_fill_in(type(model)):
        return {}
    v1 = isinstance(model, BaseModelV1)
    supplied: set[str] = getattr(model, "__fields_set__" if v1 else "model_fields_set")
    values = model.__dict__
    return {
        name: values[name]
        for name, factory in factory_fields(type(model)).items()
        if name in values and name not in supplied and varies(factory)
    }


@functools.lru_cache(maxsize=1024)
def hidden_factories(kind: type) -> tuple[str, ...]:
    """Return the fields of a dataclass, or private attributes of a model, with a varying factory.

    Nothing says whether the value of such a member was supplied.
    """
    factories: dict[str, object] = {}
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            # pydantic also accepts a FieldInfo as the default of a dataclass's field
            holder = field.default if isinstance(field.default, FieldInfo) else field
            factories[field.name] = holder.default_factory
    else:
        private: Mapping[str, Any] = getattr(kind, "__private_attributes__", {})
        factories = {name: attribute.default_factory for name, attribute in private.items()}
    return tuple(name for name, factory in factories.items() if varies(factory))


def with_marks(value: Any, *, is_seen: bool) -> Any:
    """Return ``value`` with a mark for each value that a factory made in its models.

    ``is_seen`` says that code of the author's saw the value as a whole: then no mark is set.
    Without marks, the same object is returned, and so is an object without an encoding. Raises
    ``ArgumentsError`` for a member that does not say whether its value was supplied, and for more
    parts than could be encoded (``arguments.too_large``).
    """
    return bounded(lambda: _marked(value, 1, is_seen=is_seen))


def _marked(value: Any, depth: int, *, is_seen: bool) -> Any:
    kind = type(value)
    spend(1)  # its encoding takes a byte or more
    if depth > MAX_DEPTH:
        return value  # too deep to be encoded
    if kind in (list, tuple, deque) or is_namedtuple(kind):
        parts = [*tuple.__iter__(value)] if isinstance(value, tuple) else value
        items = [_marked(item, depth + 1, is_seen=is_seen) for item in parts]
        return value if _are_same(items, parts) else _rebuilt(value, items)
    if kind is dict:
        _require_unmarked(value, depth, is_seen=is_seen)
        items = [_marked(item, depth + 1, is_seen=is_seen) for item in value.values()]
        return value if _are_same(items, value.values()) else dict(zip(value, items, strict=True))
    if kind is set or kind is frozenset:
        _require_unmarked(value, depth, is_seen=is_seen)
    elif dataclasses.is_dataclass(kind) or is_model(kind):
        return _structure(value, depth, is_seen=is_seen)
    return value


def _rebuilt(value: Any, items: list[Any]) -> Any:
    if isinstance(value, tuple):
        return tuple.__new__(type(value), items)  # past a named tuple's own code
    return deque(items, value.maxlen) if isinstance(value, deque) else items


def _are_same(some: Iterable[object], others: Iterable[object]) -> bool:
    return all(one is other for one, other in zip(some, others, strict=True))


def _require_unmarked(hashed: Iterable[object], depth: int, *, is_seen: bool) -> None:
    """Raise ``ArgumentsError`` for a mark in a member of a set, or in a key: two could be equal."""
    for item in hashed:
        if _marked(item, depth + 1, is_seen=is_seen) is not item:
            message = (
                f"a {type(item).__qualname__} in a set, or as a key, has a value that a default "
                "factory made; pass a list, or give the value"
            )
            raise ArgumentsError(message)


def _structure(value: Any, depth: int, *, is_seen: bool) -> Any:
    kind: Any = type(value)
    if hidden := hidden_factories(kind):
        message = (
            f"{kind.__qualname__}.{hidden[0]} has a default factory, and nothing tells "
            "whether its value was made or supplied; make it a field of a pydantic model, or give "
            "it a default"
        )
        raise ArgumentsError(message)
    slots = _slots(kind)
    slot_values = {
        name: slot.__get__(value) for name, slot in slots.items() if _is_set(slot, value)
    }
    state = {**getattr(value, "__dict__", {}), **slot_values}
    is_seen = is_seen or may_fill_in(kind)
    factory_made = made_by_factories(value) if is_model(kind) and not is_seen else {}
    state_with_marks = {
        name: FactoryMade.MADE
        if name in factory_made
        else _marked(item, depth + 1, is_seen=is_seen)
        for name, item in state.items()
    }
    if _are_same(state_with_marks.values(), state.values()):
        return value
    try:
        # past the class's own code: its __init__ or __copy__ would validate, or have effects
        copied = object.__new__(kind)
    except TypeError as error:
        raise ArgumentsError(f"a {kind.__qualname__} holds more than can be read") from error
    for name, item in state_with_marks.items():
        if name in slots:
            slots[name].__set__(copied, item)
        else:
            copied.__dict__[name] = item
    return copied


@functools.lru_cache(maxsize=1024)
def _slots(kind: type) -> Mapping[str, MemberDescriptorType]:
    return {
        name: member
        for base in reversed(kind.__mro__)
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType)
    }


def _is_set(slot: MemberDescriptorType, value: object) -> bool:
    try:
        slot.__get__(value)
    except AttributeError:
        return False
    return True
