"""Takes released secrets out of what a tool returns or raises, before a model sees it.

The adapters ask for it (``CallOptions.conceals``). A value is found as it is, and in the spellings
of ``masking.py``. An object that can't be rewritten is left out as a whole.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final, NamedTuple

from agentguard.call.masking import Masks
from agentguard.signing.keys import Secret

MARK: Final = "[a secret was here]"
"""What a model sees in the place of a secret."""

SHORTEST: Final = 6
"""Characters of the shortest secret that is looked for; a shorter one stands in many texts."""

_DEEPEST: Final = 100
"""Levels of a result that are looked at; what is deeper is left out."""


class _Seen(NamedTuple):
    """The values that were looked at in one walk, by their ids, each with what is shown of it.

    A value that holds itself is shown as it is there (``is_whole``), or left out. Without this
    memory, a tree whose nodes know their parents is walked for ever.
    """

    is_whole: bool
    made: dict[int, tuple[Any, Any]]


class Concealer:
    """Returns values without the given secrets; a value that holds none is returned itself."""

    __slots__ = ("_masks", "_secrets")

    def __init__(self, released: Iterable[Secret]) -> None:
        spelled = {form for one in released for form in (one.reveal(), one.reveal().strip())}
        # the longest first: a secret may be the beginning of another one
        long = sorted((one for one in spelled if len(one) >= SHORTEST), key=len, reverse=True)
        self._secrets = tuple(Secret(one) for one in long)
        self._masks = Masks(self._secrets)

    def shown(self, value: Any) -> Any:
        """Return a value as a model may see it."""
        made = self._shown(value, _Seen(is_whole=True, made={}))
        return made if made is value else self._shown(value, _Seen(is_whole=False, made={}))

    def _shown(self, value: Any, seen: _Seen, depth: int = 0) -> Any:
        match value:
            case None | bool():
                return value
            case str():
                return self._text(value)
            case bytes() | bytearray() | memoryview():
                return MARK.encode() if self._masks.find(bytes(value)) else value
        if id(value) in seen.made:
            return seen.made[id(value)][1]
        if depth > _DEEPEST:
            return MARK
        seen.made[id(value)] = value, value if seen.is_whole else MARK
        made = self._shown_parts(value, seen, depth + 1)
        seen.made[id(value)] = value, made
        return made

    def _shown_parts(self, value: Any, seen: _Seen, depth: int) -> Any:
        """Return a value that may have parts, without the secrets in them."""
        match value:
            case dict():
                pairs = {self._shown(name, seen, depth): one for name, one in value.items()}
                made = {name: self._shown(one, seen, depth) for name, one in pairs.items()}
                return value if _is_same(value.items(), made.items()) else made
            case list() | tuple() | set() | frozenset():
                items = [self._shown(item, seen, depth) for item in value]
                return value if _are_same(value, items) else _like(value, items)
        return self._object(value, seen, depth)

    def error(self, error: BaseException) -> BaseException:
        """Return an exception whose texts hold no secret; the same one where that is possible."""
        todo: list[BaseException | None] = [error]
        seen: set[int] = set()
        while todo:
            one = todo.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            todo += [one.__cause__, one.__context__]
            if isinstance(one, BaseExceptionGroup):
                todo += one.exceptions  # which args has, too
            else:
                one.args = tuple(self.shown(list(one.args)))
            members = getattr(one, "__dict__", {})  # an exception in Rust has none
            for name, member in list(members.items()):
                members[name] = self.shown(member)
        if self._holds(error):
            concealed = RuntimeError(f"{type(error).__name__}: {MARK}")
            return concealed.with_traceback(error.__traceback__)
        return error

    def _text(self, value: str) -> str:
        if not self._finds(value):
            return value
        for one in self._secrets:
            value = value.replace(one.reveal().decode(), MARK)
        return MARK if self._finds(value) else value

    def _finds(self, text: str) -> bool:
        return self._masks.find(text.encode("utf-8", "surrogatepass"))

    def _object(self, value: Any, seen: _Seen, depth: int) -> Any:
        """Return a copy of a model or a dataclass without the secrets, and else a text."""
        if hasattr(type(value), "model_fields") or is_dataclass(type(value)):
            members = {**getattr(value, "__dict__", {}), **_slots(value)}
            made = {name: self._shown(one, seen, depth) for name, one in members.items()}
            extra = getattr(value, "__pydantic_extra__", None)
            if extra:
                made["__pydantic_extra__"] = self._shown(extra, seen, depth)
            old = {"__pydantic_extra__": extra, **members}
            changed = {name: one for name, one in made.items() if one is not old[name]}
            if changed:
                value = _changed(value, changed)
        return MARK if self._holds(value) else value

    def _holds(self, value: object) -> bool:
        """Whether a text of the value holds a secret; a value without a text counts as one."""
        try:
            texts = (str(value), repr(value))
        except Exception:  # noqa: BLE001  code of the application
            return True
        return any(map(self._finds, texts))


def _changed(value: Any, members: dict[str, Any]) -> Any:
    """Return a copy with other members, or the mark where the value can't be copied."""
    try:
        made = copy.copy(value)
        for name, member in members.items():
            object.__setattr__(made, name, member)
    except Exception:  # noqa: BLE001  code of the application
        return MARK
    return made


def _slots(value: Any) -> dict[str, Any]:
    """Return the members of a dataclass with slots."""
    names = [field.name for field in fields(value)] if is_dataclass(type(value)) else []
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _like(value: Any, items: list[Any]) -> Any:
    """Return the items in a collection of the kind of ``value``."""
    if isinstance(value, tuple):
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return items
    return frozenset(items) if isinstance(value, frozenset) else set(items)


def _are_same(value: Iterable[Any], items: Sequence[Any]) -> bool:
    return all(one is other for one, other in zip(value, items, strict=True))


def _is_same(pairs: Iterable[tuple[Any, Any]], others: Iterable[tuple[Any, Any]]) -> bool:
    pairs, others = list(pairs), list(others)
    return len(pairs) == len(others) and all(
        a is c and b is d for (a, b), (c, d) in zip(pairs, others, strict=True)
    )
