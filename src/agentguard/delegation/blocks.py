"""Whose block a ``with`` is: whether a generator's, in which a delegation can't be put in force.

A generator shares the context of whoever asks for its items, between them too. Frames tell whose
block is entered, and nothing else is taken from them (docs/adr/0010).
"""

from __future__ import annotations

import inspect
from dis import opmap
from types import FrameType
from typing import Final


def generator_of(frame: FrameType) -> FrameType | None:
    """Return the frame of the generator whose block is entered by code in ``frame``; None if none.

    What enters a block (a class, contextlib's stacks, a helper) does so for whoever called it, up
    to the ``with`` that this was for. That of a function is over before the function returns; that
    of a coroutine is not, where a generator drives it by hand. A generator that contextlib makes a
    context manager enters the block for the ``with`` around it, and a generator expression for
    whoever goes through it.
    """
    at: FrameType | None = frame
    is_whole = False  # in a coroutine, which the code from here on may leave half done
    while at is not None:
        asks = at.f_back
        if _is(at, _WAITS):
            is_managed = _is_managed(at, asks)
            if _is(at, inspect.CO_ASYNC_GENERATOR) and not is_whole and not is_managed:
                return at
            is_whole = is_whole or (_is_at_with(at) and not is_managed)
            if asks is None or not _is(asks, _WAITS | inspect.CO_GENERATOR):
                return None  # an event loop runs it, whoever runs that
        elif _is(at, inspect.CO_GENERATOR):
            passes_on = at.f_code.co_name == "<genexpr>" and not is_whole
            if not passes_on and not _is_managed(at, asks):
                return at
        elif is_whole or _is_at_with(at):
            return None
        at = asks
    return None


_WAITS: Final = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR


def _is(frame: FrameType, flags: int) -> bool:
    code = frame.f_code
    if code.co_flags & inspect.CO_GENERATOR and code.co_name == "__await__":
        return bool(flags & inspect.CO_COROUTINE)  # it is what is awaited
    return bool(code.co_flags & flags)


def _is_managed(generator: FrameType, asks: FrameType | None) -> bool:
    """Whether contextlib, as which ``asks`` runs, makes a context manager of a generator."""
    if asks is None or asks.f_globals.get("__name__") != "contextlib":
        return False
    made_of = getattr(asks.f_locals.get("self"), "gen", None)
    return generator in (getattr(made_of, "gi_frame", None), getattr(made_of, "ag_frame", None))


_NONE: Final = -1
_BEFORE: Final = (opmap.get("BEFORE_WITH", _NONE), opmap.get("BEFORE_ASYNC_WITH", _NONE))
_CALL, _SEND = opmap.get("CALL", _NONE), opmap.get("SEND", _NONE)
_LOOKED_UP: Final = tuple((opmap.get("LOAD_SPECIAL", _NONE), name) for name in (0, 2))
"""In Python 3.14, before the call: ``__enter__`` or ``__aenter__``."""
_ENTERING: Final = (opmap.get("GET_AWAITABLE", _NONE), 1)
"""Before a None is sent: what ``__aenter__`` returned."""


def _is_at_with(frame: FrameType) -> bool:
    """Whether the code in ``frame`` stands where its ``with`` or ``async with`` enters something.

    Where a Python has other instructions for that, it never does, which is the safe answer.
    """
    code, at = frame.f_code.co_code, frame.f_lasti
    while _word(code, at)[0] == opmap["CACHE"]:  # of the instruction before it
        at -= 2
    instruction, _ = _word(code, at)
    if instruction == _CALL:
        return _word(code, at - 2) in _LOOKED_UP
    if instruction == _SEND:
        return _word(code, at - 4) == _ENTERING
    return instruction in _BEFORE and instruction != _NONE


def _word(code: bytes, at: int) -> tuple[int, int]:
    return (code[at], code[at + 1]) if at >= 0 else (_NONE, _NONE)
