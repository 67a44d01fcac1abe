"""The parameters of public functions that grant, limit or name somebody, found by signature.

A test has a case for each of them, with an empty value, so that a new parameter fails until
somebody has said what an empty value of it does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from types import ModuleType
from typing import Any

import pytest
from empty_is_all import WORDS

from agentguard import AgentguardError

Case = tuple[Callable[[], Any], Any]
"""A call with an empty value, and the code of its refusal, or the value that it becomes."""

NEVER_EMPTY = ("RolesFunction", "'TrustDocument'", "'TrustDocument | None'", "'Agent'", "BaseAgent")
"""Types of parameters that can't be empty."""


def parameters(module: ModuleType, made: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield the function and the name of each parameter of what a module exports.

    A module without ``__all__`` exports what is written there and has a public name. Nobody calls
    the classes in ``made``: agentguard makes their values itself.
    """
    written = [name for name, thing in vars(module).items() if _is_home(thing, module)]
    for exported in getattr(module, "__all__", written):
        thing: Any = getattr(module, exported)
        functions = [(exported, thing)]
        if inspect.isclass(thing):
            if issubclass(thing, Exception):
                continue
            functions = [] if exported in made else functions
            functions += [
                (f"{exported}.{name}", member)
                for name, member in inspect.getmembers(thing, _is_written)
                if not name.startswith("_") and member.__module__.startswith("agentguard")
            ]
        for where, function in functions:
            if callable(function) and _has_parameters(function):
                for one in inspect.signature(function).parameters.values():
                    is_word = any(one.name in (word, f"_{word}") for word in WORDS)
                    if is_word and not repr(one.annotation).endswith(NEVER_EMPTY):
                        yield where, one.name


def _is_home(thing: object, module: ModuleType) -> bool:
    is_public = not getattr(thing, "__name__", "_").startswith("_")
    return is_public and getattr(thing, "__module__", None) == module.__name__


def _is_written(member: object) -> bool:
    return inspect.isfunction(member) or inspect.ismethod(member)


def _has_parameters(function: Any) -> bool:
    return not inspect.isclass(function) or function.__init__ is not object.__init__


def require_nothing(case: Case) -> None:
    """Call with an empty value, and compare what it does."""
    call, expected = case
    if not isinstance(expected, str):
        assert call() == expected
        return
    with pytest.raises(AgentguardError) as caught:
        call()
    assert caught.value.code == expected


def require_no_two(call: Callable[[str], Any], is_held: str = "a") -> None:
    """Call with a name of a scope that others read as two, and with the name ``is_held``."""
    for blank in " \t\n\u00a0":
        with pytest.raises(AgentguardError) as caught:
            call(f"{is_held}{blank}b")
        assert caught.value.code in ("scope.malformed", "config.invalid")
    call(is_held)
