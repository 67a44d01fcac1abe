"""``ToolResults``: writes a tool's result as the bytes that the journal keeps, and reads them.

A result that is read equals the one that the tool returned, and has the same types at each depth (a
tuple is no list). A result that could not be read so is not written. The types that can be read are
those of the tables here, and those that the tool's return annotation names. The bytes choose among
these types, and can't name code to run. Objects are built from their fields, without ``__init__``
and validators, as a copy is.
"""

from __future__ import annotations

import dataclasses
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, time
from enum import Enum
from typing import Any, Final

import langchain_core.messages as lc
import orjson
from langchain_core.documents import Document
from langgraph.types import Command, Overwrite, Send, TimeoutPolicy
from pydantic import BaseModel

from agentguard.adapters import DecodeError, EncodeError, ResultBudget, dumps_checked
from agentguard_langchain.scalars import SCALARS, TAGGED, is_plain

_KNOWN: Final[tuple[type, ...]] = (
    lc.AIMessage,
    lc.AIMessageChunk,
    lc.ChatMessage,
    lc.ChatMessageChunk,
    lc.FunctionMessage,
    lc.HumanMessage,
    lc.HumanMessageChunk,
    lc.RemoveMessage,
    lc.SystemMessage,
    lc.SystemMessageChunk,
    lc.ToolMessage,
    lc.ToolMessageChunk,
    Document,
    Command,
    Overwrite,
    TimeoutPolicy,
)
"""Models and dataclasses of LangChain and LangGraph that a tool may return."""

_SERIES: Final[Mapping[type, Callable[[Iterable[Any]], object]]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
}

_Classes = Mapping[str, type]


class ToolResults:
    """The ``ResultCodec`` of a tool; ``annotation`` is the return annotation of its function."""

    __slots__ = ("_classes",)

    def __init__(self, annotation: object = None) -> None:
        classes = {_name(kind): kind for kind in _annotated_classes(annotation, set())}
        self._classes: _Classes = classes | {_name(kind): kind for kind in _KNOWN}

    def dumps(self, result: Any) -> bytes:
        """Write a result; raises ``EncodeError`` for one that would be read as another value."""
        return dumps_checked(lambda value: _Writer(self._classes).write(value), self.loads, result)

    def loads(self, data: bytes) -> Any:
        """Read a result; raises ``DecodeError``."""
        try:
            return _Reader(self._classes).value(orjson.loads(data))
        except Exception as error:
            raise DecodeError(f"no result of a tool ({type(error).__name__})") from error


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _annotated_classes(annotation: object, seen: set[object]) -> Iterator[type]:
    """Yield the classes with fields that an annotation names, and those that their fields name."""
    for part in typing.get_args(annotation):
        yield from _annotated_classes(part, seen)
    kind = typing.get_origin(annotation) or annotation
    if not isinstance(kind, type) or kind in seen or not _has_fields(kind):
        return
    seen.add(kind)
    yield kind
    try:
        hints = {} if issubclass(kind, Enum) else typing.get_type_hints(kind)
    except (NameError, TypeError, AttributeError):
        return  # a name for type checkers only: a result with an object in the field is refused
    for hint in hints.values():
        yield from _annotated_classes(hint, seen)


def _has_fields(kind: type) -> bool:
    is_named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return issubclass(kind, BaseModel | Enum) or dataclasses.is_dataclass(kind) or is_named_tuple


# --- writing and reading --------------------------------------------------------------------------


class _Writer:
    """Writes one result: values that JSON has as they are, and all others as ``[tag, ...]``.

    Raises ``EncodeError`` at the largest size that the journal keeps: values that share parts grow
    as they are written.
    """

    def __init__(self, classes: _Classes) -> None:
        self._classes = classes
        self._spend = ResultBudget().spend

    def write(self, value: object) -> bytes:
        return orjson.dumps(self.node(value))

    def node(self, value: Any) -> Any:
        kind = type(value)
        if is_plain(value, kind):
            self._spend(len(value) if kind is str else 1)
            return value
        self._spend(4)
        if kind not in SCALARS:
            return self._parts(value, kind)
        text = SCALARS[kind].write(value)
        self._spend(len(text))
        return [kind.__name__, text]

    def _parts(self, value: Any, kind: type) -> Any:
        if kind is dict:
            return self._dict(value)
        if kind in _SERIES:
            nodes = list(map(self.node, value))
            ordered = kind in (list, tuple)
            return [kind.__name__, *(nodes if ordered else sorted(nodes, key=orjson.dumps))]
        if kind is deque:
            return ["deque", value.maxlen, *map(self.node, value)]
        if kind in (datetime, time):
            naive = value.replace(tzinfo=None).isoformat()
            return [kind.__name__, naive, value.fold, self.node(value.tzinfo)]
        if kind is Send:
            return ["Send", *map(self.node, (value.node, value.arg, value.timeout))]
        return self._object(value, kind)

    def _dict(self, value: Mapping[Any, object]) -> Any:
        if all(type(key) is str for key in value):
            self._spend(sum(map(len, value)))
            return {key: self.node(item) for key, item in value.items()}
        return ["dict", *([self.node(key), self.node(item)] for key, item in value.items())]

    def _object(self, value: Any, kind: type) -> Any:
        name = _name(kind)
        if self._classes.get(name) is not kind:
            raise EncodeError(f"a {name} can't be kept, unless the tool's annotation names it")
        self._spend(len(name))
        if isinstance(value, Enum):
            return ["enum", name, value.name]
        if isinstance(value, tuple):
            return ["namedtuple", name, *map(self.node, value)]
        if isinstance(value, BaseModel):
            extra, private = value.__pydantic_extra__, value.__pydantic_private__
            _require_fields(kind, vars(value).keys(), alone=not private)
            fields_set = sorted(value.__pydantic_fields_set__)
            return ["model", name, self._dict(vars(value)), self.node(extra), fields_set]
        fields = _fields(kind)
        _require_fields(
            kind, fields, alone=not hasattr(value, "__dict__") or vars(value).keys() <= fields
        )
        members = {field: getattr(value, field) for field in sorted(fields)}
        return ["dataclass", name, self._dict(members)]


class _Reader:
    """Reads the result of ``_Writer``; may raise any exception for other input."""

    def __init__(self, classes: _Classes) -> None:
        self._classes = classes

    def value(self, node: Any) -> Any:
        if isinstance(node, dict):
            return {key: self.value(item) for key, item in node.items()}
        if not isinstance(node, list):
            return node
        tag, *rest = node
        return TAGGED[tag].read(*rest) if tag in TAGGED else self._parts(tag, rest)

    def _parts(self, tag: str, rest: list[Any]) -> Any:
        match tag, rest:
            case "dict", pairs:
                return {self.value(key): self.value(item) for key, item in pairs}
            case "deque", [maxlen, *nodes]:
                return deque(map(self.value, nodes), maxlen)
            case (("datetime" | "time"), [naive, fold, zone]):
                kind = datetime if tag == "datetime" else time
                return kind.fromisoformat(naive).replace(fold=fold, tzinfo=self.value(zone))
            case "Send", [target, argument, timeout]:
                return Send(target, self.value(argument), timeout=self.value(timeout))
            case (("enum" | "namedtuple" | "model" | "dataclass"), [name, *parts]):
                return self._object(tag, self._classes[name], parts)
        (series,) = [make for kind, make in _SERIES.items() if kind.__name__ == tag]
        return series(map(self.value, rest))

    def _object(self, tag: str, kind: Any, parts: list[Any]) -> object:
        if tag == "enum":
            (name,) = parts
            return kind.__members__[name]
        if tag == "namedtuple":
            namedtuple: object = tuple.__new__(kind, map(self.value, parts))
            return namedtuple
        fields = self.value(parts[0])
        _require_fields(kind, fields.keys())
        if tag == "dataclass":
            instance = object.__new__(kind)
            for name, value in fields.items():
                object.__setattr__(instance, name, value)
            return instance
        model: BaseModel = kind.__new__(kind)
        state = {
            "__dict__": fields,
            "__pydantic_extra__": self.value(parts[1]),
            "__pydantic_fields_set__": set(parts[2]),
            "__pydantic_private__": None,
        }
        BaseModel.__setstate__(model, state)
        return model


def _fields(kind: Any) -> set[str]:
    if issubclass(kind, BaseModel):
        return set(kind.model_fields)
    return {field.name for field in dataclasses.fields(kind)}


def _require_fields(kind: type, names: Iterable[str], *, alone: bool = True) -> None:
    """Raise ``EncodeError`` unless an object has exactly the fields of its class."""
    if not alone or set(names) != _fields(kind):
        raise EncodeError(f"a {_name(kind)} that has more, or less, than its fields can't be kept")
