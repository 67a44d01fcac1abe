"""How telemetry fails open: an exception of telemetry ends no call, and is logged once."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_LOGGER = logging.getLogger("agentguard")
_FAILED: set[str] = set()
_FROM_OUTSIDE: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)


def fails_open(function: Callable[P, R]) -> Callable[P, R | None]:
    """Wrap a function so that it returns None in the place of an exception.

    The first exception of each type is logged. Exceptions that end a program or a task are raised:
    they may come from outside, at any time. All others are telemetry's own, also those that are no
    ``Exception``, such as a panic of native code.
    """

    @functools.wraps(function)
    def harmless(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return function(*args, **kwargs)
        except _FROM_OUTSIDE:
            raise
        except BaseException as error:
            if _is_cancellation(error):
                raise
            kind = type(error).__name__  # the exception's text may hold secrets
            if kind not in _FAILED:
                _FAILED.add(kind)
                _warn(kind)
            return None

    return harmless


def _warn(kind: str) -> None:
    """Log the failure; a handler of the application's log may fail as well."""
    try:
        _LOGGER.warning("telemetry failed (%s): calls go on without it", kind)
    except _FROM_OUTSIDE:
        raise
    except BaseException as error:
        if _is_cancellation(error):
            raise


def _is_cancellation(error: BaseException) -> bool:
    """Whether the exception cancels a task; a process without asyncio has no tasks."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)
