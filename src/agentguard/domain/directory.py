"""The directory of an application: which roles a principal has, and who owns an agent.

An application with thousands of users names functions in its configuration (``principals``,
``owners``) instead of tables. Each answer is kept for ``directory_seconds``. A function that fails,
or answers with another type, raises an error: an answer that is too old is never used instead.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

from agentguard.call.plain import discarded, require_plain
from agentguard.domain.config.agents import AgentConfig, PrincipalConfig
from agentguard.domain.config.settings import Config
from agentguard.domain.config.tools import load_callable
from agentguard.errors import AgentguardError, ConfigError, DelegationError
from agentguard.identity.principal import require_principal

Answer = TypeVar("Answer")

_LOGGER = logging.getLogger("agentguard")

MOST_KEPT: Final = 10_000
"""The number of answers after which a look-up forgets all answers, and asks again."""


class DirectoryLookUp(Generic[Answer]):
    """Asks a function of the application about a name, and keeps each answer for ``seconds``.

    With 0 seconds nothing is kept. ``read`` turns what the function returns into an answer, and
    raises ``TypeError`` or ``AgentguardError`` for what is none. The answer None, which stands for
    an unknown name, is not kept: a new user need not wait. An error is raised as ``error``, with
    the reason code ``code``. ``clock`` returns seconds that never go back. Any thread, and any
    fork, may call a look-up.
    """

    def __init__(
        self,
        function: Callable[[str], object],
        read: Callable[[object], Answer],
        *,
        seconds: float,
        where: str,
        error: type[AgentguardError],
        code: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._function = function
        self._read = read
        self._seconds = seconds
        self._where = where
        self._error = error
        self._code = code
        self._clock = clock
        self._kept: dict[str, tuple[float, Answer]] = {}

    def __call__(self, name: str) -> Answer:
        """Return the answer about ``name``; raises the error of this look-up."""
        now = self._clock()
        kept = self._kept.get(name)
        if kept is not None and now < kept[0]:
            return kept[1]
        self._kept.pop(name, None)
        try:
            given = self._function(name)
            if inspect.isawaitable(given):
                raise TypeError(f"the function returned a {discarded(given)}")  # noqa: TRY301
            answer = self._read(given)
        except Exception as failure:
            _LOGGER.exception("%s failed for %s", self._where, name)
            # the failure's own text stays in the program's log: it may hold a secret
            message = (
                f"{self._where}: the function failed for {name} ({type(failure).__name__}); the "
                "program's log has the error"
            )
            raise self._error(message, code=self._code) from failure
        if answer is not None and self._seconds > 0:
            if len(self._kept) >= MOST_KEPT:
                self._kept = {}
            self._kept[name] = (now + self._seconds, answer)
        return answer


class Directory:
    """What the configuration, or the application's functions, say of principals and owners.

    Raises ``ConfigError`` for a function that can't be imported, or is a coroutine function.
    """

    def __init__(self, settings: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._principals: DirectoryLookUp[PrincipalConfig | None] | None = None
        self._owners: DirectoryLookUp[str | None] | None = None
        if isinstance(settings.principals, str):
            self._principals = DirectoryLookUp(
                _load(settings, "principals", settings.principals),
                self._read_principal,
                seconds=settings.directory_seconds,
                where=f"{settings.source}: principals",
                error=DelegationError,
                code="principal.failed",
                clock=clock,
            )
        if settings.owners is not None:
            self._owners = DirectoryLookUp(
                _load(settings, "owners", settings.owners),
                _read_owner,
                seconds=settings.directory_seconds,
                where=f"{settings.source}: owners",
                error=ConfigError,
                code="owner.failed",
                clock=clock,
            )

    def principal(self, name: str) -> PrincipalConfig | None:
        """Return the roles of a principal, with their scope; None for an unknown principal.

        Raises ``DelegationError`` (``principal.failed``).
        """
        if self._principals is not None:
            return self._principals(name)
        return self._settings.principal_tables.get(name)

    def roles(self, name: str) -> Sequence[str]:
        """Return the roles of a principal, none for an unknown one; raises as ``principal``."""
        principal = self.principal(name)
        return principal.roles if principal is not None else ()

    def with_owner(self, agent: AgentConfig) -> AgentConfig:
        """Return an agent's configuration with the owner that the application names.

        Raises ``ConfigError`` (``owner.failed``).
        """
        if self._owners is None:
            return agent
        return replace(agent, owner=self._owners(agent.name))

    def _read_principal(self, roles: object) -> PrincipalConfig | None:
        if roles is None:
            return None
        names = tuple(sorted(set(read_roles(roles))))
        scopes = self._settings.role_scopes
        unknown = [name for name in names if name not in scopes]
        if unknown:
            message = f"{unknown[0]!r} is no role of [roles]: {', '.join(sorted(scopes)) or 'none'}"
            raise TypeError(message)
        return PrincipalConfig(names, frozenset[str]().union(*(scopes[name] for name in names)))


def read_roles(roles: object) -> tuple[str, ...]:
    """Return the names of roles that a function of the application has returned.

    Raises ``TypeError`` for a value that is no list, tuple or set of strings: a string is no list
    of roles.
    """
    if isinstance(roles, list | tuple | AbstractSet):  # no mapping, whose values may say no
        names = tuple(roles)
        if all(isinstance(name, str) for name in names):
            return names
    message = f"expected a list of roles, or None for an unknown principal, got {roles!r:.80}"
    raise TypeError(message)


def _read_owner(owner: object) -> str | None:
    return None if owner is None else require_principal(owner, "owner", ConfigError)


def _load(settings: Config, key: str, reference: str) -> Callable[[str], Any]:
    where = f"{settings.source}: {key}"
    function = load_callable(reference, where)
    require_plain(function, where)
    return function
