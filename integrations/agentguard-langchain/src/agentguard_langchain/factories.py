"""Values that default factories made: which they are, and arguments with a mark in their place.

A default factory may answer differently each time (an id, the time), so a value that it made
would differ between the step that asks for approval and the step that executes. In its place
stands ``FactoryMade.MADE``: the bytes are the same, and the policy sees that a factory fills in
what was left out. What is always the same (an empty list) is bound as it is.

Pydantic's models tell what somebody supplied (``model_fields_set``); private attributes and
dataclasses don't. There a factory whose value varies is refused: a mark could hide a value that
was supplied. Where the author's own code may have put one in unseen (``validators.py``), values
are bound as they are, so that such calls may have other bytes each time. What a schema says before
there are values stands in ``schemas.py``.
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
"""Called without arguments, each gives the same value every time."""


def is_model(kind: type) -> bool:
    """Tell a pydantic model's class, v2 or v1."""
    return issubclass(kind, BaseModel | BaseModelV1)


def _makes_empty(factory: object) -> bool:
    return any(factory is kind for kind in _EMPTY)


def varies(factory: object) -> bool:
    """Whether what a default factory makes may differ from call to call.

    An empty value of a built-in type does not, nor does an instance of a dataclass or a model, as
    far as its own factories don't: those are looked at where it is met.
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
    made = {name: field.default_factory for name, field in fields.items()}
    return {name: factory for name, factory in made.items() if factory is not None}


def made_by_factories(model: BaseModel | BaseModelV1) -> dict[str, Any]:
    """Return the values of a model's fields that a factory made, by name.

    The validator says so, not the raw keys: an alias or a validator may supply a field. Those that
    are always the same are left out, and all of them where it can't be told.
    """
    if may_fill_in(type(model)):
        return {}
    v1 = isinstance(model, BaseModelV1)
    supplied: set[str] = getattr(model, "__fields_set__" if v1 else "model_fields_set")
    held = model.__dict__
    return {
        name: held[name]
        for name, factory in factory_fields(type(model)).items()
        if name in held and name not in supplied and varies(factory)
    }


@functools.lru_cache(maxsize=1024)
def untold(kind: type) -> tuple[str, ...]:
    """Return the members of a class that a factory varies and that can't tell whether it did.

    Those are fields of a dataclass, or private attributes of a model.
    """
    factories: dict[str, object] = {}
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            # pydantic has a way of its own to write the factory of a dataclass's field
            holder = field.default if isinstance(field.default, FieldInfo) else field
            factories[field.name] = holder.default_factory
    else:
        private: Mapping[str, Any] = getattr(kind, "__private_attributes__", {})
        factories = {name: attribute.default_factory for name, attribute in private.items()}
    return tuple(name for name, factory in factories.items() if varies(factory))


def with_marks(value: Any, *, seen: bool = False) -> Any:
    """Return ``value`` with a mark for what factories made in its models; itself without any.

    ``seen`` says that code of the author's saw it whole: then there are no marks in it. Raises
    ``ArgumentsError`` where it can't be told, and for more parts than could be encoded
    (``arguments.too_large``). What has no encoding anyway is unchanged.
    """
    return bounded(lambda: _marked(value, 1, seen=seen))


def _marked(value: Any, depth: int, *, seen: bool) -> Any:
    kind = type(value)
    spend(1)  # its encoding takes a byte or more
    if depth > MAX_DEPTH:
        return value  # too deep to be encoded
    if kind in (list, tuple, deque) or is_namedtuple(kind):
        held = [*tuple.__iter__(value)] if isinstance(value, tuple) else value
        items = [_marked(item, depth + 1, seen=seen) for item in held]
        return value if _same(items, held) else _remade(value, items)
    if kind is dict:
        _require_unmarked(value, depth, seen=seen)
        by_key = {key: _marked(item, depth + 1, seen=seen) for key, item in value.items()}
        return value if _same(by_key.values(), value.values()) else by_key
    if kind is set or kind is frozenset:
        _require_unmarked(value, depth, seen=seen)
    elif dataclasses.is_dataclass(kind) or is_model(kind):
        return _structure(value, depth, seen=seen)
    return value


def _remade(value: Any, items: list[Any]) -> Any:
    if isinstance(value, tuple):
        return tuple.__new__(type(value), items)  # past a named tuple's own code
    return deque(items, value.maxlen) if isinstance(value, deque) else items


def _same(some: Iterable[object], others: Iterable[object]) -> bool:
    return all(one is other for one, other in zip(some, others, strict=True))


def _require_unmarked(hashed: Iterable[object], depth: int, *, seen: bool) -> None:
    """Refuse members of sets and keys: with marks in them, two may be equal."""
    for item in hashed:
        if _marked(item, depth + 1, seen=seen) is not item:
            message = (
                f"a {type(item).__qualname__} in a set, or as a key, has a value that a default "
                "factory made; pass a list, or give the value"
            )
            raise ArgumentsError(message)


def _structure(value: Any, depth: int, *, seen: bool) -> Any:
    kind: Any = type(value)
    if told_by_nothing := untold(kind):
        message = (
            f"{kind.__qualname__}.{told_by_nothing[0]} has a default factory, and nothing tells "
            "whether its value was made or supplied; make it a field of a pydantic model, or give "
            "it a default"
        )
        raise ArgumentsError(message)
    slots = _slots(kind)
    filled = {name: slot.__get__(value) for name, slot in slots.items() if _is_set(slot, value)}
    state = {**getattr(value, "__dict__", {}), **filled}
    seen = seen or may_fill_in(kind)
    made = made_by_factories(value) if is_model(kind) and not seen else {}
    marked = {
        name: FactoryMade.MADE if name in made else _marked(item, depth + 1, seen=seen)
        for name, item in state.items()
    }
    if _same(marked.values(), state.values()):
        return value
    try:
        # past the class's own code: its __init__ or __copy__ would validate, or have effects
        changed = object.__new__(kind)
    except TypeError as error:
        raise ArgumentsError(f"a {kind.__qualname__} holds more than can be read") from error
    for name, item in marked.items():
        if name in slots:
            slots[name].__set__(changed, item)
        else:
            changed.__dict__[name] = item
    return changed


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
