"""Detects whether a ``with`` block runs inside a generator, where no delegation can be in force.

A generator shares the context of its caller, between items too. The interpreter's frames show whose
block is entered; nothing but the shape of the frames is read (docs/adr/0010).
"""

from __future__ import annotations

import inspect
from dis import opmap
from types import FrameType
from typing import Final


def generator_of(frame: FrameType) -> FrameType | None:
    """Return the generator whose ``with`` block the code in ``frame`` enters, or None.

    The walk goes from ``frame`` to its callers. Code that enters a block (a class, an ExitStack, a
    function) does so for its caller, up to the ``with`` statement that asked for the block. A
    function's own ``with`` block ends before the function returns, so the walk ends there. A
    coroutine's block does not, if a generator drives the coroutine by hand. A generator under
    ``contextlib.contextmanager`` enters the block for the ``with`` around it, and a generator
    expression for the code that iterates over it.
    """
    current: FrameType | None = frame
    in_coroutine_block = False  # the code from here on may leave the coroutine suspended in it
    while current is not None:
        caller = current.f_back
        if _is(current, _AWAITABLE):
            is_managed = _is_context_manager(current, caller)
            is_generator = _is(current, inspect.CO_ASYNC_GENERATOR)
            if is_generator and not in_coroutine_block and not is_managed:
                return current
            in_coroutine_block = in_coroutine_block or (_is_at_with(current) and not is_managed)
            if caller is None or not _is(caller, _AWAITABLE | inspect.CO_GENERATOR):
                return None  # an event loop runs the coroutine, whoever runs the loop
        elif _is(current, inspect.CO_GENERATOR):
            is_expression = current.f_code.co_name == "<genexpr>" and not in_coroutine_block
            if not is_expression and not _is_context_manager(current, caller):
                return current
        elif in_coroutine_block or _is_at_with(current):
            return None
        current = caller
    return None


_AWAITABLE: Final = (
    inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR
)


def _is(frame: FrameType, flags: int) -> bool:
    code = frame.f_code
    if code.co_flags & inspect.CO_GENERATOR and code.co_name == "__await__":
        return bool(flags & inspect.CO_COROUTINE)  # an awaitable, written as a generator
    return bool(code.co_flags & flags)


def _is_context_manager(generator: FrameType, caller: FrameType | None) -> bool:
    """Whether contextlib, in the frame ``caller``, runs a generator as a context manager."""
    if caller is None or caller.f_globals.get("__name__") != "contextlib":
        return False
    managed = getattr(caller.f_locals.get("self"), "gen", None)
    return generator in (getattr(managed, "gi_frame", None), getattr(managed, "ag_frame", None))


_NONE: Final = -1
_BEFORE: Final = (opmap.get("BEFORE_WITH", _NONE), opmap.get("BEFORE_ASYNC_WITH", _NONE))
_CALL, _SEND = opmap.get("CALL", _NONE), opmap.get("SEND", _NONE)
_SPECIAL_METHODS: Final = tuple((opmap.get("LOAD_SPECIAL", _NONE), name) for name in (0, 2))
"""Python 3.14 loads ``__enter__`` (0) or ``__aenter__`` (2) before the call."""

_AWAIT_ENTER: Final = (opmap.get("GET_AWAITABLE", _NONE), 1)
"""The instruction for the awaitable of ``__aenter__``; SEND follows."""


def _is_at_with(frame: FrameType) -> bool:
    """Whether the code in ``frame`` stands at the entrance of a ``with`` or ``async with``.

    On a Python with other instructions for ``with``, the answer is always False: then a block may
    be refused that could be allowed, and no block is allowed that must be refused.
    """
    code, offset = frame.f_code.co_code, frame.f_lasti
    while _instruction(code, offset)[0] == opmap["CACHE"]:  # it belongs to the one before it
        offset -= 2
    opcode, _ = _instruction(code, offset)
    if opcode == _CALL:
        return _instruction(code, offset - 2) in _SPECIAL_METHODS
    if opcode == _SEND:
        return _instruction(code, offset - 4) == _AWAIT_ENTER
    return opcode in _BEFORE and opcode != _NONE


def _instruction(code: bytes, offset: int) -> tuple[int, int]:
    """Return the opcode and the argument at an offset."""
    return (code[offset], code[offset + 1]) if offset >= 0 else (_NONE, _NONE)
