"""What a client's log says of an outcome that the guard server does not have: whose, and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from agentguard.errors import AgentguardError

_LOGGER = logging.getLogger("agentguard")


def warn(report: Mapping[str, Any], error: BaseException) -> None:
    """Log that a report (the header of a frame) has not reached the server.

    An error of agentguard says what is in the way in one line; of another one, the log has the
    traceback.
    """
    code = error.code if isinstance(error, AgentguardError) else type(error).__name__
    _LOGGER.warning(
        "the outcome of call %s of tool %s did not reach the guard server, and the call is in "
        "doubt: see agentguard audit list at the server, and agentguard resolve (%s [%s])",
        report.get("call") or "unknown",
        report.get("tool") or "unknown",
        error,
        code,
        exc_info=None if isinstance(error, AgentguardError) else error,
    )
