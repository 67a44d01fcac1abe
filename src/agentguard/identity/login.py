"""A person's log-in at a provider, and the log-out that ends log-ins, as values.

A chain that rests on a user's token has the names of the log-in among its names, and the state
keeps which keys of these names have ended. ``logout_token.py`` reads what a provider says of a
log-out. OpenID Connect Back-Channel Logout 1.0.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from agentguard.signing import canonical

_PREFIX: Final = "log-in "  # no other name has a space

LONGEST: Final = 7 * 24 * 3600
"""Seconds for which a log-in counts at the most: so old may its token be, and no delegation of the
user lasts longer. So a log-out need not be kept for ever."""

KEPT: Final = LONGEST + 24 * 3600
"""Seconds for which a log-out is kept: by then every delegation and token of its log-ins has ended,
also for a process with a slow clock."""

Clock = Literal["here", "provider"]
"""Whose clock a time is of: the one of the machine with the log, or the provider's."""


class LogIn(NamedTuple):
    """A log-in of a user, by the ``iss``, ``sub`` and ``sid`` (or None) of a token.

    ``at`` is the latest time at which the user can have logged in, in seconds since the epoch, of
    the ``clock``.
    """

    issuer: str
    subject: str
    session: str | None
    at: int
    clock: Clock

    @property
    def names(self) -> frozenset[str]:
        """The names under which a log-out can end the log-in."""
        time = f"{self.clock} {self.at}"
        names = {f"{_PREFIX}{_key('user', self.issuer, self.subject)} {time}"}
        if self.session is None:
            names.add(f"{_PREFIX}{_key('without session', self.issuer, self.subject)} {time}")
        else:
            names.add(f"{_PREFIX}{_key('session', self.issuer, self.session)}")
        return frozenset(names)


class LogOut(NamedTuple):
    """A log-out that a provider has signed: the ``iss``, ``sub``, ``sid`` and ``iat``.

    At least one of ``subject`` and ``session`` is not None. ``issued_at`` is in seconds since the
    epoch, of the provider's clock.
    """

    issuer: str
    subject: str | None
    session: str | None
    issued_at: int

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the log-ins that end.

        A log-out of a session ends this session (2.7). Of a log-in whose token named no session
        nobody knows whether the session is the one, and so such log-ins of the user end as well.
        """
        if self.session is None:
            return (_key("user", self.issuer, str(self.subject)),)
        session = _key("session", self.issuer, self.session)
        if self.subject is None:
            return (session,)
        return session, _key("without session", self.issuer, self.subject)


class Ended(NamedTuple):
    """Up to when the log-ins of a key have ended, in seconds since the epoch.

    ``issued_at`` is of the provider's clock, and ``received_at`` of the one here.
    """

    issued_at: int
    received_at: int

    def joined(self, other: Ended | None) -> Ended:
        """Return the later times of both."""
        if other is None:
            return self
        return Ended(max(self.issued_at, other.issued_at), max(self.received_at, other.received_at))


def key_of(name: str) -> str | None:
    """Return the key in a name of ``LogIn.names``; None for the name of anything else."""
    return name.removeprefix(_PREFIX).split(" ")[0] if name.startswith(_PREFIX) else None


def is_ended(name: str, ended: Ended) -> bool:
    """Whether a log-in with this name has ended; ``ended`` is of the key of the name."""
    match name.split(" ")[2:]:
        case ["provider", at]:
            return int(at) <= ended.issued_at
        case ["here", at]:
            return int(at) <= ended.received_at
    return True


def _key(kind: str, issuer: str, value: str) -> str:
    """Return a short key: half of a digest, since a state may keep many."""
    return canonical.sha256_hex(canonical.dumps([kind, issuer, value]))[:32]
