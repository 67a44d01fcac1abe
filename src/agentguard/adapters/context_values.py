"""``assigned``: the value of a context variable for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def assigned(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Let ``variable`` have ``value`` within the block.

    A coroutine or a generator may be closed in another context than its own. That context never had
    the value, so nothing is undone there, and what ended the block comes through.
    """
    token = variable.set(value)
    try:
        yield
    finally:
        with suppress(ValueError):
            variable.reset(token)
