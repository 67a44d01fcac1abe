"""What another process reports of a call: how the tool has ended, or that a look-up has failed.

A guard server runs the steps of a call, and a client runs the tool and the application's look-up of
facts. The client knows the result or the exception, and which ``Ending`` the framework gives the
exception (``endings.py``).
"""

from __future__ import annotations

from typing import NamedTuple

from agentguard.flow.endings import Ending


class ReportedResult(NamedTuple):
    """What a tool has returned: the canonical JSON (None without one) and the name of the type.

    ``journal`` is the result as the adapter's codec writes it, None where the result can't be
    replayed.
    """

    ending: Ending
    type_name: str
    encoded: bytes | None
    journal: bytes | None


class ReportedError(BaseException):
    """Raised in the place of what a tool has raised; ``type_name`` is the exception's type."""

    def __init__(self, ending: Ending, type_name: str) -> None:
        super().__init__(type_name)
        self.ending = ending
        self.type_name = type_name


class ReportedFailure(Exception):  # noqa: N818  the client's exception is the error
    """Raised in the place of what a client's look-up of facts has raised.

    A subclass has the name of the exception's type. The client's own log has the traceback.
    """
