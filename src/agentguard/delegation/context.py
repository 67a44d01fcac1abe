"""The delegation and the guarded call that are in force where code runs.

A context variable carries both, so that threads and tasks never share them by accident. An
``Activation`` is one block, or one running call, that puts a delegation in force. When the block or
the call ends, the activation ends in every context, copies of the context included: a task that
outlives the block gets ``delegation.ended``, and never the delegation of an outer block.

A generator shares its caller's context between items. ``blocks.py`` therefore refuses a block in a
generator, and ``generators.py`` gives a generator's items a context of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar, Token

from agentguard.approvals.nested import NestedCalls
from agentguard.call.reason_codes import CODES
from agentguard.call.releases import Releases
from agentguard.errors import ConfigError, DelegationError, UnguardedCallError


class Activation:
    """One block, or one running call, in which ``delegation`` is in force until the end."""

    __slots__ = ("_delegation", "_has_ended", "_outer", "_reinstated", "_running", "_token")

    def __init__(self, delegation: object) -> None:
        self._delegation = delegation
        self._has_ended = False
        self._outer: Activation | None = None
        self._running: RunningCall | None = None
        self._token: Token[Activation | None] | None = None
        self._reinstated: Token[Activation | None] | None = None

    def begin(self) -> None:
        """Put the delegation in force in this context."""
        self._outer, self._running = _IN_FORCE.get(), _RUNNING.get()
        self._token = _IN_FORCE.set(self)

    def end(self) -> None:
        """End the activation in every context, and reinstate the outer activation in this one.

        This context need not be the one where the activation began: a server may close a streaming
        response elsewhere. An activation that began inside this one may still go on.
        """
        self._has_ended = True
        token, self._token = self._token, None
        innermost = _IN_FORCE.get()
        if not _reset(token):
            return
        if innermost is not self:
            # An inner activation goes on. When it ends, this token leads on to the outer one.
            self._reinstated = _IN_FORCE.set(innermost)
            return
        outer = _IN_FORCE.get()
        while outer is not None and _reset(outer._reinstated):  # noqa: SLF001
            outer = _IN_FORCE.get()

    @property
    def is_innermost(self) -> bool:
        """Whether this activation decides what is in force in this context."""
        return _IN_FORCE.get() is self

    @property
    def delegation(self) -> object:
        """The delegation in force; raises ``DelegationError`` (``delegation.ended``)."""
        if self._has_ended:
            message = (
                "the delegation that was in force here has ended: "
                f"{CODES['delegation.ended'].remedy}"
            )
            raise DelegationError(message, code="delegation.ended", delegation=self._refused)
        return self._delegation

    @property
    def _refused(self) -> object:
        """The delegation that was in force, for the denials of later calls."""
        return self._delegation

    @property
    def is_nearest(self) -> bool:
        """Whether neither a block nor a guarded call has begun here since this activation began."""
        return self.is_innermost and self._running is _RUNNING.get()

    def narrow(self, delegation: object) -> object:
        """Return a delegation from elsewhere, narrowed by each ``Narrowing`` that is active."""
        return delegation if self._outer is None else self._outer.narrow(delegation)


class Narrowing(Activation):
    """A block in which a part of the outer delegation is in force; without one, nothing is.

    ``narrow`` returns the part of a delegation; it raises ``DelegationError`` for a delegation that
    can't be narrowed so. ``owner`` is what ``narrowing_owner`` returns within the block. The block
    ends, at the latest, with the outer activation.
    """

    __slots__ = ("_narrow", "_owner")

    def __init__(self, narrow: Callable[[object], object], owner: object = None) -> None:
        super().__init__(None)
        self._narrow = narrow
        self._owner = owner

    @property
    def _refused(self) -> object:
        return None if self._outer is None else self._outer._refused  # noqa: SLF001

    @property
    def owner(self) -> object:
        """What the adapter has named as the owner of the block, or None."""
        return self._owner

    @property
    def delegation(self) -> object:
        """The delegation in force; raises ``DelegationError``."""
        super().delegation  # noqa: B018  raises after the end
        outer = None if self._outer is None else self._outer.delegation
        return None if outer is None else self._narrow(outer)

    def narrow(self, delegation: object) -> object:
        """Return the part of a delegation from elsewhere that may be used in this block."""
        super().delegation  # noqa: B018  raises after the end
        return self._narrow(super().narrow(delegation))


_RUNNING: ContextVar[RunningCall | None] = ContextVar("agentguard_running", default=None)
_IN_FORCE: ContextVar[Activation | None] = ContextVar("agentguard_in_force", default=None)


def require_separate_threads() -> None:
    """Raise ``ConfigError`` (``config.invalid``) where a thread begins in its starter's context.

    Python 3.14 has such a setting, which builds without the global lock have by default. A thread
    of a pool would then act for whoever used the pool first, whoever hands it work later.
    """
    if getattr(sys.flags, "thread_inherit_context", 0):
        message = (
            "this Python gives each new thread the context of the thread that starts it, so a "
            "thread pool would mix up for whom its threads act: start Python with "
            "-X thread_inherit_context=0, or set PYTHON_THREAD_INHERIT_CONTEXT=0"
        )
        raise ConfigError(message)


def in_force() -> object:
    """Return the delegation in force here, or None.

    Raises ``DelegationError`` (``delegation.ended``) where the activation has ended.
    """
    activation = _IN_FORCE.get()
    return None if activation is None else activation.delegation


def _reset(token: Token[Activation | None] | None) -> bool:
    """Undo the setting of ``token`` in this context; return False for another context's token."""
    if token is None:
        return False
    try:
        _IN_FORCE.reset(token)
    except (ValueError, RuntimeError):  # another context, or another thread was quicker
        return False
    return True


def narrowing_owner() -> object:
    """For adapters: return the owner of the ``Narrowing`` in which this code runs, or None.

    Returns None as well where another block, or a guarded call, has begun here since. The block
    itself is not returned: code that ends a block would act under a wider delegation.
    """
    activation = _IN_FORCE.get()
    if isinstance(activation, Narrowing) and activation.is_nearest:
        return activation.owner
    return None


def is_inside_delegating_call() -> bool:
    """For adapters: whether a guarded call has put a delegation in force here, or had and ended.

    No other delegation takes the place of an ended one.
    """
    if _RUNNING.get() is None:
        return False
    try:
        return in_force() is not None
    except DelegationError:
        return True


def narrowed_here(delegation: object) -> object:
    """For adapters: return the part of a delegation from elsewhere that may be used here.

    Raises ``DelegationError`` where an activation has ended, or a narrowing asks for more than the
    delegation has.
    """
    activation = _IN_FORCE.get()
    return delegation if activation is None else activation.narrow(delegation)


def idempotency_key() -> str:
    """Return the invocation's id of the guarded call in which this tool runs (32 hex digits).

    Hand the key to a service that takes idempotency keys. Each authorization has one key, so the
    service can answer whether a call in doubt took effect, and a retry inside the tool has no
    second effect. Raises ``UnguardedCallError`` (``tool.unguarded``) outside a guarded call.
    """
    running = _RUNNING.get()
    if running is None:
        message = "no guarded call is running here: call the tool with agent.call"
        raise UnguardedCallError(message)
    return running.invocation_id


def secret(name: str) -> str:
    """Return a secret that the configuration (``[secrets.NAME]``) releases to this tool.

    The release is durably on record in the log before the function returns; the log never has the
    value. The function waits for the source of the secret and for the disk: an async tool calls
    ``await asyncio.to_thread(agentguard.secret, name)``. Ask anew for each use, and keep no copy.

    Raises ``UnguardedCallError`` (``tool.unguarded``) outside a guarded call, and ``SecretError``:
    ``secret.unknown`` for a name without a table; ``secret.refused`` where the table names other
    tools or a scope that the call's authority lacks, where the authority is revoked, and after the
    end of the call; ``secret.failed`` where the source or the log fails.
    """
    running = _RUNNING.get()
    if running is None:
        message = "a secret is for a guarded call, and none is running here: call with agent.call"
        raise UnguardedCallError(message)
    return running.releases.release(name)


def running_call() -> RunningCall | None:
    """Return the guarded call in which this code runs, or None."""
    return _RUNNING.get()


def nested_calls() -> NestedCalls | None:
    """For adapters: return the nested calls of the guarded call that runs here, or None.

    A call that has returned is complete once none of its nested calls ``waits``.
    """
    running = _RUNNING.get()
    return None if running is None else running.nested_calls


class RunningCall:
    """The running guarded call: answers ``idempotency_key`` and ``secret``.

    ``delegation`` is that of the call's agent, and is in force while the tool runs. An agent on its
    own authority has None, which changes nothing of what is in force: an agent uses its own
    authority only where no delegation is in force.
    """

    __slots__ = ("_activation", "_token", "invocation_id", "nested_calls", "releases")

    def __init__(
        self,
        invocation_id: str,
        nested_calls: NestedCalls,
        delegation: object,
        releases: Releases,
    ) -> None:
        self.invocation_id = invocation_id
        self.nested_calls = nested_calls
        self.releases = releases
        self._activation = Activation(delegation) if delegation is not None else None

    def __enter__(self) -> None:
        self._token = _RUNNING.set(self)
        if self._activation is not None:
            self._activation.begin()

    def __exit__(self, *_exception: object) -> None:
        if self._activation is not None:
            self._activation.end()
        try:
            _RUNNING.reset(self._token)
        except ValueError:  # a coroutine may be closed in another context than its own
            return
