"""``guard_crew``, ``guard_crewbase``, and the class of guarded crews.

How one agent is guarded stands in ``agents.py``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar

from crewai import Crew, Process, Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.crews.crew_output import CrewOutput
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.types.streaming import CrewStreamingOutput
from crewai.utilities.i18n import get_i18n
from pydantic import PrivateAttr

from agentguard import ConfigError, Guard
from agentguard_crewai import runs
from agentguard_crewai.agents import (
    assign_identity,
    refuse_restoring,
    require_guardable,
    require_whole,
    resolve_identity,
)
from agentguard_crewai.classes import guarded_class
from agentguard_crewai.crewbase import crew_methods, mark_crew_method, names_in_yaml
from agentguard_crewai.identity import (
    GuardOptions,
    OnApproval,
    identity_of,
    name_from_role,
    require_identity,
)
from agentguard_crewai.sealing import seal
from agentguard_crewai.tracing import crew_span

Class = TypeVar("Class")
Guarded = TypeVar("Guarded", bound=Crew)
Output = TypeVar("Output")

_LOGGER = logging.getLogger("agentguard")


def guard_crew(
    crew: Guarded,
    guard: Guard,
    *,
    on_approval: OnApproval = "wait",
    timeout: timedelta | float | None = None,
) -> Guarded:
    """Give each agent of ``crew`` an identity, guard their tool calls, and return the same object.

    An agent's table in ``[agents]`` has the name of the role (``Senior Writer`` is
    ``senior-writer``), unless ``guard_agent`` gave the agent another name before. The manager that
    a hierarchical crew makes for itself is ``crew-manager``. The function changes the crew and its
    agents.

    ``on_approval`` and ``timeout`` (seconds) are those of ``guard_agent``, for all agents of the
    crew: with ``"pause"``, ``kickoff`` raises ``ApprovalPending`` at once. Raises ``ConfigError``
    and ``StorageError`` as ``guard_agent`` does; after an error no agent is changed. A
    ``ConfigError`` leaves no record; after a ``StorageError`` the credentials that were already
    recorded remain.
    """
    given: object = crew
    if not isinstance(given, Crew):
        raise ConfigError(f"crew: expected a CrewAI crew, got a {type(given).__name__}")
    return _record_tool_names(_guard(crew, GuardOptions.of(guard, on_approval, timeout), {}))


def guard_crewbase(
    guard: Guard,
    *,
    on_approval: OnApproval = "wait",
    timeout: timedelta | float | None = None,
) -> Callable[[Class], Class]:
    """Guard the crews of a class; the decorator stands above ``@CrewBase``.

    In ``agents.yaml``, ``identity: NAME`` names the agent's table in ``[agents]``. A key that
    CrewAI does not know is an error, because CrewAI drops such keys silently. The options are those
    of ``guard_crew``. Raises ``ConfigError`` for a class without a ``@crew`` method.
    """
    options = GuardOptions.of(guard, on_approval, timeout)

    def decorate(crew_class: Class) -> Class:
        methods = crew_methods(crew_class)
        if not methods:
            name = getattr(crew_class, "__name__", crew_class)
            message = f"guard_crewbase: {name} has no method below @crew; put it above @CrewBase"
            raise ConfigError(message)
        for name, method in methods.items():
            setattr(crew_class, name, mark_crew_method(_guarding_method(method, options)))
        return crew_class

    return decorate


def _guarding_method(method: Callable[..., Crew], options: GuardOptions) -> Callable[..., Crew]:
    @functools.wraps(method)
    def crew(self: Any, *args: Any, **kwargs: Any) -> Crew:
        unguarded = method(self, *args, **kwargs)
        names = names_in_yaml(self, [*_members(unguarded)])
        return _record_tool_names(_guard(unguarded, options, names))

    del crew.__wrapped__  # __wrapped__ leads to the unguarded crew
    return crew


def _guard(crew: Guarded, options: GuardOptions, names: Mapping[int, str]) -> Guarded:
    """Guard a crew and all its agents; ``names`` maps the ``id()`` of an agent to its name."""
    present = crew._agentguard if isinstance(crew, GuardedCrew) else None  # noqa: SLF001
    if present is not None and present.guard is not options.guard:
        message = (
            f"the crew {crew.name!r} is already guarded, by another guard: make the crew anew, or "
            "keep to one guard"
        )
        raise ConfigError(message, code="agent.guarded")
    members = [*_members(crew)]
    # all agents or none: an agent that can't be guarded raises before anything is recorded
    for agent in members:
        require_guardable(agent, options, names.get(id(agent)))
    if crew.process is Process.hierarchical and crew.manager_agent is None:
        _require_manager(crew, options)
    _warn_of_shared_names(crew, [agent for agent in members if id(agent) not in names])
    identities = [resolve_identity(agent, options, names.get(id(agent))) for agent in members]
    for agent, identity in zip(members, identities, strict=True):
        assign_identity(agent, identity)
    for task in crew.tasks:
        seal(task.tools)
    if present is None:
        crew.__class__ = guarded_class(GuardedCrew, type(crew))
    crew._agentguard = options  # type: ignore[attr-defined]  # noqa: SLF001
    return crew


def _warn_of_shared_names(crew: Crew, unnamed: Iterable[BaseAgent]) -> None:
    """Log a warning for agents whose roles give them the same name."""
    roles: dict[str, list[str]] = {}
    for agent in unnamed:
        if identity_of(agent) is None:  # a guarded agent has its name already
            roles.setdefault(name_from_role(agent.role), []).append(agent.role)
    for name, same in roles.items():
        if len(same) > 1:
            _LOGGER.warning(
                "%d agents of the crew %r are one name, %s, to the policy and in the log (%s): "
                "give each a name of its own with guard_agent(name=...)",
                len(same),
                crew.name,
                name,
                ", ".join(map(repr, same)),
            )


def _record_tool_names(crew: Guarded) -> Guarded:
    """Record the present names of the crew's tools as the names that policies know."""
    owners: list[Any] = [*_members(crew), *crew.tasks]
    for owner in owners:
        seal(owner.tools, anew=True)
    return crew


def _require_manager(crew: Crew, options: GuardOptions) -> None:
    """Raise ``ConfigError`` where ``[agents]`` lacks the manager that the crew will make."""
    role = get_i18n(prompt_file=crew.prompt_file).retrieve("hierarchical_manager_agent", "role")
    name = name_from_role(role)
    try:
        options.guard.require_agent(name)
    except ConfigError as error:
        message = (
            f"the manager that the crew {crew.name!r} makes for itself is {name}: {error}. Add "
            "that table, or give the crew a manager_agent"
        )
        raise ConfigError(message, code=error.code) from error


def _members(crew: Crew) -> Iterator[BaseAgent]:
    """Yield each agent that the crew may put to work, once."""
    seen: set[int] = set()
    tasks: Iterable[Task] = crew.tasks
    for agent in (*crew.agents, *(task.agent for task in tasks), crew.manager_agent):
        if isinstance(agent, BaseAgent) and id(agent) not in seen:
            seen.add(id(agent))
            yield agent


class GuardedCrew(Crew):
    """The mixin that turns a crew's class into the class of a guarded crew."""

    _agentguard: GuardOptions | None = PrivateAttr(default=None)

    def kickoff(
        self,
        inputs: dict[str, Any] | None = None,
        input_files: dict[str, Any] | None = None,
        from_checkpoint: CheckpointConfig | None = None,
    ) -> CrewOutput | CrewStreamingOutput:
        """Run the crew; raises ``ConfigError`` where an agent of the crew has no identity."""
        _require_ready(self, from_checkpoint)
        if self.stream:
            return _bind_stream(super().kickoff(inputs, input_files, from_checkpoint))
        with _kickoff_scope(self):
            return super().kickoff(inputs, input_files, from_checkpoint)

    async def akickoff(
        self,
        inputs: dict[str, Any] | None = None,
        input_files: dict[str, Any] | None = None,
        from_checkpoint: CheckpointConfig | None = None,
    ) -> CrewOutput | CrewStreamingOutput:
        """Run the crew; raises ``ConfigError`` where an agent of the crew has no identity."""
        _require_ready(self, from_checkpoint)
        if self.stream:
            return _bind_stream(await super().akickoff(inputs, input_files, from_checkpoint))
        with _kickoff_scope(self):
            return await super().akickoff(inputs, input_files, from_checkpoint)

    async def kickoff_async(
        self,
        inputs: dict[str, Any] | None = None,
        input_files: dict[str, Any] | None = None,
        from_checkpoint: CheckpointConfig | None = None,
    ) -> CrewOutput | CrewStreamingOutput:
        """Run the crew in a thread; raises ``ConfigError`` as ``kickoff`` does."""
        _require_ready(self, from_checkpoint)
        return _bind_stream(await super().kickoff_async(inputs, input_files, from_checkpoint))

    async def kickoff_for_each_async(
        self, inputs: list[dict[str, Any]], input_files: dict[str, Any] | None = None
    ) -> list[CrewOutput | CrewStreamingOutput] | CrewStreamingOutput:
        """Run copies of the crew in threads; raises ``ConfigError`` as ``copy`` does."""
        return _bind_stream(await super().kickoff_for_each_async(inputs, input_files))

    async def akickoff_for_each(
        self, inputs: list[dict[str, Any]], input_files: dict[str, Any] | None = None
    ) -> list[CrewOutput | CrewStreamingOutput] | CrewStreamingOutput:
        """Run copies of the crew; raises ``ConfigError`` as ``copy`` does."""
        return _bind_stream(await super().akickoff_for_each(inputs, input_files))

    def copy(self) -> Crew:  # type: ignore[override]  # as CrewAI does
        """Return a copy whose agents are other instances of the same names.

        Raises ``ConfigError`` where an agent of the crew has no identity.
        """
        options = _require_guarded(self)
        copied = super().copy()
        members = [*self.agents, self.manager_agent]
        twins = dict(zip(map(id, members), [*copied.agents, copied.manager_agent], strict=True))
        for task, original in zip(copied.tasks, self.tasks, strict=True):
            if original.agent is not None:  # CrewAI looks for any of the same role
                if id(original.agent) not in twins:
                    twins[id(original.agent)] = original.agent.copy()
                task.agent = twins[id(original.agent)]
        return _guard(copied, options, {})

    def _create_manager_agent(self) -> None:
        super()._create_manager_agent()
        if self.manager_agent is not None:
            manager = self.manager_agent
            assign_identity(manager, resolve_identity(manager, options_of(self), None))

    def _get_agent_to_use(self, task: Task) -> BaseAgent | None:
        agent = super()._get_agent_to_use(task)
        if agent is not None:
            require_identity(agent)
        return agent


def options_of(crew: Crew) -> GuardOptions:
    """Return the options of a guarded crew; raises ``ConfigError`` for an unguarded crew."""
    options = crew._agentguard if isinstance(crew, GuardedCrew) else None  # noqa: SLF001
    if options is None:
        message = f"the crew {crew.name!r} is not guarded: see guard_crew"
        raise ConfigError(message, code="agent.unguarded")
    return options


def _require_ready(crew: GuardedCrew, from_checkpoint: CheckpointConfig | None) -> None:
    refuse_restoring("crew", from_checkpoint)
    _require_guarded(crew).require_open()


def _require_guarded(crew: GuardedCrew) -> GuardOptions:
    """Return the crew's options; raises ``ConfigError`` where an agent has no identity."""
    options = options_of(crew)
    for agent in _members(crew):
        require_identity(agent)
        require_whole(agent)
    return options


_ACTIVE_CREWS: Final[dict[int, object]] = {}


@contextmanager
def _exclusive(crew: Crew) -> Iterator[None]:
    """Allow one kickoff of the crew at a time: the tasks hold the inputs of one kickoff.

    Raises ``ConfigError`` (``crew.busy``) for a second one.
    """
    mine = object()
    if _ACTIVE_CREWS.setdefault(id(crew), mine) is not mine:  # setdefault is atomic between threads
        message = (
            f"the crew {crew.name!r} is being kicked off already, for whoever that is: give each "
            "kickoff a crew of its own, as crew.copy() does"
        )
        raise ConfigError(message, code="crew.busy")
    try:
        yield
    finally:
        del _ACTIVE_CREWS[id(crew)]


@contextmanager
def _kickoff_scope(crew: Crew) -> Iterator[None]:
    """Run the block as the crew's only kickoff, in the current or a new run, and in a span."""
    member = identity_of(next(_members(crew), None))
    with _exclusive(crew), runs.join_run() as run, crew_span(crew.name or "crew", run, member):
        yield


def _bind_stream(output: Output) -> Output:
    """Bind a stream, which works while it is read, to the run and delegation of its kickoff."""
    if isinstance(output, CrewStreamingOutput):
        kickoff = runs.current_kickoff()
        # CrewAI's iterators are generators, and private
        sync_items: Any = output._sync_iterator  # noqa: SLF001
        async_items: Any = output._async_iterator  # noqa: SLF001
        if sync_items is not None:
            output._sync_iterator = runs.read_within(sync_items, kickoff)  # noqa: SLF001
        if async_items is not None:
            output._async_iterator = runs.aread_within(async_items, kickoff)  # noqa: SLF001
    return output
