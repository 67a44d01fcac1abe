"""Which names a decorated function's arguments have: those of the code that runs, or none.

That ``functools.wraps`` makes a wrapper look like another function must not make a call look like
another call. How plain functions bind stands in ``test_arguments.py``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from agentguard import ConfigError
from agentguard.call.binding import binder
from agentguard.errors import ArgumentsError


def fetch(url: str, limit: int = 10) -> str:
    return f"{url} {limit}"


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def with_session(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function("session", *args, **kwargs)

    return wrapper


def with_option(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, attempts: int = 3, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def with_first(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(url: str, *args: Any, **kwargs: Any) -> Any:
        return function(url, *args, **kwargs)

    return wrapper


def stating(function: Callable[..., Any]) -> Callable[..., Any]:
    """Put an argument in front, and say what is left."""
    wrapper = with_session(function)
    rest = [*inspect.signature(function).parameters.values()][1:]
    wrapper.__signature__ = inspect.Signature(rest)  # type: ignore[attr-defined]
    return wrapper


class Client:
    @passing_on
    def fetch(self, url: str, limit: int = 10) -> str:
        return f"{url} {limit}"

    @staticmethod
    @passing_on
    def static(url: str, limit: int = 10) -> str:
        return f"{url} {limit}"

    @passing_on
    def __call__(self, url: str, limit: int = 10) -> str:
        return f"{url} {limit}"


class Counting:
    """A decorator that is a class."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]


PASSING_ON: dict[str, Callable[..., Any]] = {
    "function": passing_on(fetch),
    "twice": passing_on(passing_on(fetch)),
    "method": Client().fetch,
    "static method": Client.static,
    "callable object": Client(),
    "class": Counting(fetch),
    "partial inside": passing_on(functools.partial(fetch)),
    "partial outside": functools.partial(passing_on(fetch)),
    "cached": functools.lru_cache(passing_on(fetch)),
}


@pytest.mark.parametrize("function", PASSING_ON.values(), ids=PASSING_ON)
def test_a_decorator_that_takes_anything_binds_by_name(function):
    bind = binder(function)
    assert bind((), {"url": "a"}) == {"url": "a", "limit": 10}
    assert bind((), {"url": "a", "limit": 5}) == {"url": "a", "limit": 5}
    assert bind.declared == {"url", "limit"}
    for args, kwargs in (((), {}), (("a",), {}), ((), {"url": "a", "secret": 1})):
        with pytest.raises(ArgumentsError, match="the arguments do not fit") as caught:
            bind(args, kwargs)
        assert caught.value.code == "arguments.invalid"
        assert "secret" not in str(caught.value)


def test_an_argument_that_a_decorator_puts_in_front_moves_no_name():
    def delete(session: str, path: str = "tmp/scratch") -> str:
        return path

    bind = binder(with_session(delete))
    with pytest.raises(ArgumentsError, match="pass them by name"):
        bind(("/etc/passwd",), {})
    with pytest.raises(ArgumentsError, match="a decorator that changes arguments needs a sign"):
        bind((), {"path": "/etc/passwd"})
    stated = binder(stating(delete))
    assert stated(("/etc/passwd",), {}) == {"path": "/etc/passwd"}
    assert stated((), {}) == {"path": "tmp/scratch"}


def test_a_statement_that_was_copied_is_none_of_the_wrappers():
    def delete(session: str, path: str = "tmp/scratch") -> str:
        return path

    delete.__signature__ = inspect.signature(delete)  # type: ignore[attr-defined]
    with pytest.raises(ArgumentsError, match="pass them by name"):
        binder(with_session(delete))(("/etc/passwd",), {})
    assert binder(delete)(("x", "/etc/passwd"), {})["path"] == "/etc/passwd"


def test_a_wrapper_with_parameters_of_its_own_is_bound_by_them():
    @functools.wraps(fetch)
    def search(query: str) -> str:
        return fetch(f"?q={query}")

    assert binder(search)(("a",), {}) == {"query": "a"}
    with pytest.raises(ArgumentsError):
        binder(search)((), {"url": "a"})


def test_a_wrapper_may_take_something_for_itself():
    bind = binder(with_option(fetch))
    assert bind((), {"url": "a"}) == {"url": "a", "limit": 10, "attempts": 3}
    assert bind((), {"url": "a", "attempts": 1}) == {"url": "a", "limit": 10, "attempts": 1}
    first = binder(with_first(fetch))
    assert first(("a",), {"limit": 5}) == first((), {"url": "a", "limit": 5})
    for args in (("a", 5), ("a", 5, 6)):
        with pytest.raises(ArgumentsError, match="pass them by name"):
            first(args, {})


def test_no_argument_hides_behind_another_of_its_name():
    @functools.wraps(fetch)
    def wrapper(url: str, /, **kwargs: Any) -> str:
        return fetch(kwargs.get("url", url))

    with pytest.raises(ArgumentsError, match="given twice"):
        binder(wrapper)(("a",), {"url": "b"})
    assert binder(wrapper)(("a",), {}) == {"url": "a", "limit": 10}


@pytest.mark.parametrize("where", ["args alone", "another name"])
def test_a_decorator_whose_arguments_have_no_name_is_refused(where):
    @functools.wraps(fetch)
    def alone(*args: Any) -> str:
        return fetch(*args)

    @functools.wraps(fetch)
    def another(place: str = "a secret", *args: Any, **kwargs: Any) -> str:
        return fetch(place, *args, **kwargs)

    with pytest.raises(ConfigError, match="fetch is behind a decorator that takes") as caught:
        binder(alone if where == "args alone" else another)
    assert caught.value.code == "tool.invalid"
    assert "a secret" not in str(caught.value)
