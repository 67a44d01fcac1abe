"""The terms of a delegation as an application gives them: who lends, how long, towards whom."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

from agentguard.errors import DelegationError
from agentguard.identity.principal import require_principal


@dataclass(frozen=True, slots=True)
class Lender:
    """Who lends: a principal for whom the application vouches, or one who came with a token.

    With both, the token has to be the principal's. ``via_token`` is a token of the service through
    which the request came; None where the application vouches for the service. ``actors`` are the
    names of the agent that is to act, where the agent is known: a token may say who may act.
    """

    name: str | None
    token: str | None = field(default=None, repr=False)
    via_token: str | None = field(default=None, repr=False)
    actors: frozenset[str] = frozenset()

    def check(self) -> None:
        """Raise ``DelegationError`` (``principal.malformed``) for a name of another form, or none.

        A token brings its name along.
        """
        if self.name is not None or self.token is None:
            require_principal(self.name, "principal", DelegationError)


def lifetime(given: object) -> int:
    """Return seconds; the hop's own check refuses a number that is too large."""
    if isinstance(given, timedelta):
        return int(given.total_seconds())
    if not isinstance(given, int | float):
        message = f"expires_in is a timedelta or a number of seconds, not {given!r}"
        raise DelegationError(message, code="hop.malformed")
    return given  # type: ignore[return-value]  # a float is refused with the hop


def names(audience: object) -> tuple[str, ...] | None:
    """Return the names of an audience, a name or several, None for None.

    Raises ``DelegationError``.
    """
    if audience is None:
        return None
    given = (audience,) if isinstance(audience, str) else audience
    if isinstance(given, Iterable):
        texts = tuple(given)
        if all(isinstance(name, str) for name in texts):
            return texts
    message = f"audience is a name or a list of names, not {audience!r}"
    raise DelegationError(message, code="hop.malformed")
