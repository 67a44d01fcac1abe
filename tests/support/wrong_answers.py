"""What a function of an application returns by mistake, where a guard expects an answer.

A coroutine is the usual mistake: the function is ``async def``, or hands on what such a function
returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final


class Awaitable:
    """An awaitable that is no coroutine, as a future is."""

    def __await__(self) -> Any:
        yield


async def later() -> None:
    """Return a coroutine, which nobody runs."""


WRONG: Final[dict[str, Callable[[], Any]]] = {
    "coroutine": later,
    "awaitable": Awaitable,
    "generator": lambda: (one for one in "x"),
    "none": lambda: None,
    "false": lambda: False,
    "true": lambda: True,
    "zero": lambda: 0,
    "number": lambda: 1.5,
    "text": lambda: "x",
    "bytes": lambda: b"x",
    "list": list,
    "pair": lambda: (1, 2),
    "mapping": lambda: {"x": 1},
    "not implemented": lambda: NotImplemented,
    "object": object,
}
"""Makes each wrong answer anew, by its name; a port leaves those out that are right for it."""


def coroutine_functions(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the function as a coroutine function, in each form that Python has."""

    async def plain(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    async def generator(*args: Any, **kwargs: Any) -> Any:
        yield function(*args, **kwargs)

    class Called:
        async def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    return {"function": plain, "generator": generator, "object": Called()}
