"""Functions of the application that a guard calls: plain ones, which answer when they return.

What a coroutine function returns is an answer that is not there yet: nobody may take it for one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from agentguard.errors import ConfigError


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether a function, or the ``__call__`` of an object, is a coroutine function."""
    own = getattr(function, "__call__", None)  # noqa: B004  an object's may be a coroutine function
    return any(
        inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one)
        for one in (function, own)
    )


def require_plain(function: object, what: str) -> None:
    """Raise ``ConfigError`` for what is no function, and for a coroutine function."""
    if not callable(function) or is_coroutine_function(function):
        raise ConfigError(f"{what}: expected a function, no coroutine function, got {function!r}")


def discarded(answer: object) -> str:
    """Return the name of the type of an answer that does not count; a coroutine is closed."""
    if inspect.iscoroutine(answer):
        answer.close()
    return type(answer).__name__
