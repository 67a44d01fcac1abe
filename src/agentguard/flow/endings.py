"""How an attempt of a call can end, and what the log, the journal and the call around are told.

The constants are the rows of the table "How an attempt ends" in architecture.md, which a test
compares with them. ``Attempt.close`` in ``attempt.py`` carries a row out.
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from agentguard.approvals.nested import NestedCalls
from agentguard.audit.entry import Status
from agentguard.call.options import CallOptions

_LOGGER = logging.getLogger("agentguard")


class Ending(NamedTuple):
    """One way in which an attempt ends, and what each store is told.

    ``status`` is the status of the outcome in the log; None where the authorization entry, a
    refusal, is all that the log holds. ``has_page`` says that the journal keeps the result.
    ``is_complete`` says that the call around needs to wait for this call no longer.
    ``is_suspended`` says in the outcome that the call goes on when the framework makes it again.
    """

    status: Status | None
    is_complete: bool
    is_suspended: bool = False
    has_page: bool = False


POSTPONED: Final = Ending(None, is_complete=False)
"""Refused, and the same call may be allowed later; or interrupted before the decision."""

REFUSED: Final = Ending(None, is_complete=True)
"""Refused for good."""

UNRECORDED: Final = Ending("not_run", is_complete=False)
"""Nobody knows whether the authorization is in the log: the tool did not run."""

REPLAYED: Final = Ending("not_run", is_complete=True)
"""The tool ran in an earlier attempt, whose result is returned."""

NOT_RUN: Final = Ending("not_run", is_complete=True)
"""The arguments changed after the decision."""

SUSPENDED: Final = Ending("unknown", is_complete=False, is_suspended=True)
"""The framework has paused the tool, and makes the call again to go on."""

HANDED_ON: Final = Ending("unknown", is_complete=True)
"""The framework goes on elsewhere: the tool's exception steers the framework."""

CUT_SHORT: Final = Ending("unknown", is_complete=False)
"""A time-out, a cancellation or an exit: nobody knows what the tool did."""

FAILED: Final = Ending("error", is_complete=True)
"""The tool raised an exception."""

UNFINISHED: Final = Ending("error", is_complete=False)
"""The tool raised an exception, and what it does are guarded calls, which may go on."""

DONE: Final = Ending("ok", is_complete=True, has_page=True)
"""The tool returned."""

AWAITING: Final = Ending("ok", is_complete=True, is_suspended=True)
"""The tool returned while a call inside waits: the framework makes the call again."""

ABANDONED: Final = Ending(None, is_complete=False)
"""The process that ran the tool is lost: the call stays in doubt."""


def ending_of_error(
    error: BaseException, options: CallOptions, nested_calls: NestedCalls
) -> Ending:
    """Return how an attempt ends whose tool has raised ``error``."""
    if isinstance(error, options.suspends):
        return SUSPENDED
    if not isinstance(error, Exception):
        return CUT_SHORT
    if isinstance(error, options.hands_on):
        return HANDED_ON
    if isinstance(error, (TimeoutError, *options.outcome_unknown)):
        return CUT_SHORT
    is_resumable = options.reentrant or nested_calls.hands_over
    return UNFINISHED if is_resumable else FAILED


def ending_of_return(
    options: CallOptions, nested_calls: NestedCalls, *, invocation_id: str, is_journalled: bool
) -> Ending:
    """Return how an attempt ends whose tool has returned.

    A call that hands work over to an agent is not complete while a call inside waits. The outer
    call may be made again only if the journal has every call inside.
    """
    if not is_journalled or not nested_calls.waits:
        return DONE
    if nested_calls.is_repeatable and (options.reentrant or nested_calls.hands_over):
        return AWAITING
    _LOGGER.warning(
        "the call %s has ended, although a call that its tool made still waits. A resumed run "
        "does not make the ended call again, since the rest of the tool's work would be done "
        "twice. Let the tool raise the exception that it gets for the waiting call",
        invocation_id,
    )
    return DONE
