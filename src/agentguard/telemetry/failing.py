"""How telemetry fails open: what it raises ends no call, and is logged once."""

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
    """Have a function return None where it raises; the first time, the log says so.

    What ends a program or a task is raised on: it may come from outside, at any time. All else is
    telemetry's own, also where it is no ``Exception``, such as a panic of native code.
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
            kind = type(error).__name__  # its text may tell secrets
            if kind not in _FAILED:
                _FAILED.add(kind)
                _LOGGER.warning("telemetry failed (%s): calls go on without it", kind)
            return None

    return harmless


def _is_cancellation(error: BaseException) -> bool:
    """Whether a task was cancelled; without asyncio in the process there is none."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)
