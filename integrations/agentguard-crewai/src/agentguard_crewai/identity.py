"""The identity of a crew's agent: its instance at the guard, and its options for approvals.

The default name of an agent, made from its role, stands here as well.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import timedelta
from typing import Final, Literal, NamedTuple, NoReturn, Self

from crewai.agents.agent_builder.base_agent import BaseAgent

from agentguard import Agent, ConfigError, Guard, StorageError

OnApproval = Literal["wait", "pause"]
"""What a call that needs an approval does: hold its thread for a while, or stop the crew."""

DEFAULT_TIMEOUT: Final = 30
"""The seconds that a call waits for an approval by default."""

_SEPARATORS: Final = re.compile(r"[^a-z0-9]+")


class GuardOptions(NamedTuple):
    """The guard, and how calls wait for approvals; ``timeout`` is in seconds."""

    guard: Guard
    on_approval: OnApproval
    timeout: float

    @classmethod
    def of(cls, guard: Guard, on_approval: OnApproval, timeout: timedelta | float | None) -> Self:
        """Return the checked options of an application; raises ``ConfigError``."""
        if timeout is not None and on_approval == "pause":
            message = (
                "timeout: a crew that pauses waits for nobody: leave it out, or say "
                "on_approval='wait'"
            )
            raise ConfigError(message)
        timeout = DEFAULT_TIMEOUT if timeout is None else timeout
        given: tuple[object, object] = guard, timeout
        if not isinstance(given[0], Guard):
            raise ConfigError(f"guard: expected a Guard, as from Guard.open, got {guard!r}")
        if on_approval not in ("wait", "pause"):
            raise ConfigError(f"on_approval: expected 'wait' or 'pause', got {on_approval!r}")
        if not isinstance(given[1], timedelta | int | float) or isinstance(given[1], bool):
            raise ConfigError(f"timeout: expected seconds or a timedelta, got {timeout!r}")
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        if not seconds >= 0:  # NaN is neither
            raise ConfigError(f"timeout: expected 0 seconds or more, got {timeout!r}")
        return cls(guard, on_approval, seconds)

    def require_open(self) -> None:
        """Raise ``StorageError`` (``storage.closed``) where the guard is closed."""
        if self.guard.closed:
            message = "the guard is closed: open it again, and guard the crew with it"
            raise StorageError(message, code="storage.closed")


class Identity:
    """The instance of one agent of a crew, which has a key of its own."""

    __slots__ = ("agent", "options")

    def __init__(self, agent: Agent, options: GuardOptions) -> None:
        self.agent: Final = agent
        self.options: Final = options

    @classmethod
    def new(cls, name: str, options: GuardOptions) -> Self:
        """Return a new instance.

        Raises ``ConfigError`` for a name that the configuration lacks, ``StorageError`` where its
        credential can't be recorded.
        """
        return cls(options.guard.new_agent(name), options)

    def new_instance(self) -> Identity:
        """Return another instance of the same name, for a copy of the agent."""
        return Identity.new(self.agent.name, self.options)

    def __repr__(self) -> str:
        return f"<Identity {self.agent.alias}>"

    def __deepcopy__(self, memo: object) -> Self:
        return self  # a copy of an agent gets a new identity in GuardedAgent

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        message = "a guarded agent can't be pickled: guard the agent where it runs"
        raise TypeError(message)


def identity_of(agent: object) -> Identity | None:
    """Return the identity of a crew's agent; None for an unguarded agent."""
    identity = getattr(agent, "_agentguard", None)  # a private attribute that guarded agents have
    return identity if isinstance(identity, Identity) else None


def require_identity(agent: BaseAgent) -> Identity:
    """Return an agent's identity; raises ``ConfigError`` (``agent.unguarded``) without one."""
    identity = identity_of(agent)
    if identity is None:
        message = (
            f"the agent {agent.role!r} is not guarded: guard the crew once it is complete "
            "(guard_crew), or the agent (guard_agent); copies of a guarded one are made with copy()"
        )
        raise ConfigError(message, code="agent.unguarded")
    return identity


def name_from_role(role: str) -> str:
    """Return the name in ``[agents]`` of an agent with this role: ``Senior Writer`` is
    ``senior-writer``.

    Placeholders of the role stay unfilled, since inputs may come from anybody. Raises
    ``ConfigError`` where the role has no letter or digit.
    """  # noqa: D205  the example belongs to the sentence
    text = unicodedata.normalize("NFKD", role).encode("ascii", "ignore").decode().lower()
    name = _SEPARATORS.sub("-", text).strip("-")
    if not name:
        message = f"the role {role!r} makes no name: give the agent one, with guard_agent(name=...)"
        raise ConfigError(message)
    return name
