"""``guard_agent``, and the class of guarded agents.

``guard_agent`` changes the class of the agent object to a subclass that this module makes. The
subclass puts each tool that CrewAI gives to the agent behind a gate, just before an executor gets
the tool. How a crew is guarded stands in ``crews.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final, Self, TypeVar, cast

from crewai import Agent as CrewAgent
from crewai import Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.agents.agent_executor import AgentExecutor
from crewai.agents.cache.cache_handler import CacheHandler
from crewai.agents.tools_handler import ToolsHandler
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.tools import BaseTool
from crewai.utilities.agent_utils import is_inside_event_loop
from crewai.utilities.types import LLMMessage
from pydantic import PrivateAttr

from agentguard import Agent, ConfigError, Guard, adapters
from agentguard_crewai import event_scopes, runs
from agentguard_crewai.binding import decision_names, model_names
from agentguard_crewai.cache import AgentCache, is_cache_of
from agentguard_crewai.call import ACTION, Action
from agentguard_crewai.classes import guarded_class
from agentguard_crewai.coworkers import collect_failure, hand_over
from agentguard_crewai.executor import define_flow, gate_executor
from agentguard_crewai.identity import (
    GuardOptions,
    Identity,
    OnApproval,
    identity_of,
    name_from_role,
    require_identity,
)
from agentguard_crewai.runs import Paused
from agentguard_crewai.sealing import seal
from agentguard_crewai.task_results import separate_task_results
from agentguard_crewai.tools import gated_tool, original_of
from agentguard_crewai.tracing import agent_span

_WORKER: Final[ContextVar[Identity | None]] = ContextVar(
    "agentguard_crewai_executing", default=None
)
"""The identity of the agent at work in this context; None outside of any agent's work."""

_ENTRY_POINTS: Final = (
    "execute_task",
    "aexecute_task",
    "kickoff",
    "kickoff_async",
    "akickoff",
    "copy",
    "create_agent_executor",
    "_prepare_kickoff",
    "_add_skill_loader_tool",
)
"""The methods that put an agent to work; CrewAI replaces some where an agent has remote agents."""


Guarded = TypeVar("Guarded", bound=BaseAgent)
Renewed = TypeVar("Renewed", bound="GuardedAgent")


def guard_agent(
    agent: Guarded,
    guard: Guard,
    *,
    name: str | None = None,
    on_approval: OnApproval = "wait",
    timeout: timedelta | float | None = None,
) -> Guarded:
    """Give ``agent`` an identity of its own, guard all its tool calls, and return the same object.

    ``name`` is the agent's table in ``[agents]``; by default the role gives the name (``Senior
    Writer`` is ``senior-writer``). The function changes the object, because tasks and crews refer
    to the object.

    With ``on_approval="wait"`` a call that needs an approval waits for ``timeout`` seconds (30);
    after that the model learns that the approval is missing. With ``on_approval="pause"``, which
    takes no ``timeout``, the kickoff raises ``ApprovalPending`` at once.

    Raises ``ConfigError`` for a name that the configuration lacks, for an agent of another guard,
    and for an agent that does not run its tools through CrewAI. Raises ``StorageError`` where the
    credential can't be recorded. After an error the agent is unchanged.
    """
    given: object = agent
    if not isinstance(given, BaseAgent):
        raise ConfigError(f"agent: expected a CrewAI agent, got a {type(given).__name__}")
    options = GuardOptions.of(guard, on_approval, timeout)
    assign_identity(agent, resolve_identity(agent, options, name))
    seal(agent.tools, anew=True)
    return agent


def agent_of(agent: BaseAgent) -> Agent:
    """Return the agentguard instance of a guarded agent (``id``, ``alias``, ``name``).

    Raises ``ConfigError`` (``agent.unguarded``) for an agent that is not guarded.
    """
    return require_identity(agent).agent


def resolve_identity(agent: BaseAgent, options: GuardOptions, name: str | None) -> Identity:
    """Return the agent's present identity with these options, or else a new instance.

    The agent is not changed yet; the credential of a new instance is recorded. Raises what
    ``require_guardable`` raises, and ``StorageError`` where the credential can't be recorded.
    """
    agent_name, present = require_guardable(agent, options, name), identity_of(agent)
    if present is None:
        return Identity.new(agent_name, options)
    return present if present.options == options else Identity(present.agent, options)


def require_guardable(agent: BaseAgent, options: GuardOptions, name: str | None) -> str:
    """Return the name of the agent's identity, present or future; change nothing.

    Raises ``ConfigError`` for an agent that can't be guarded, and for a name that the configuration
    lacks.
    """
    present = identity_of(agent)
    if present is not None:
        if present.options.guard is not options.guard:
            message = (
                f"the agent {agent.role!r} is already guarded, by another guard: make the agent "
                "anew, or keep to one guard"
            )
            raise ConfigError(message, code="agent.guarded")
        if name not in (None, present.agent.name):
            message = (
                f"the agent {agent.role!r} is already guarded, as {present.agent.name}: give it "
                f"the name {name} where it is guarded first, or make the agent anew"
            )
            raise ConfigError(message, code="agent.guarded")
        return present.agent.name
    role = _require_crewai_role(agent)
    agent_name = name if name is not None else name_from_role(role)
    try:
        options.guard.require_agent(agent_name)
    except ConfigError as error:
        message = f"the agent with the role {role!r}: {error}"
        if name is None:
            message += (
                f". Its name is made of its role: add [agents.{agent_name}], or give it another "
                "one, with guard_agent(agent, guard, name=...) before the crew is guarded, or with "
                "identity: in agents.yaml and guard_crewbase (guard_crew does not see that key)"
            )
        raise ConfigError(message, code=error.code) from error
    return agent_name


def _require_crewai_role(agent: BaseAgent) -> str:
    """Return the role from the agent's definition: inputs must not decide an agent's identity.

    Raises ``ConfigError`` for an agent that runs its tools past ``GuardedAgent``'s methods.
    """
    if not isinstance(agent, CrewAgent):
        raise _unguardable(agent, f"it is a {type(agent).__name__}, which runs its tools by itself")
    executor: object = agent.executor_class
    if not (isinstance(executor, type) and issubclass(executor, AgentExecutor)):
        raise _unguardable(agent, "its executor_class is not CrewAI's: it runs tools by itself")
    require_whole(agent)
    original = agent._original_role  # noqa: SLF001  kept by CrewAI for its own copies
    return agent.role if original is None else original


def require_whole(agent: BaseAgent) -> None:
    """Raise ``ConfigError`` (``agent.unguardable``) where an entry point was replaced."""
    for method in _ENTRY_POINTS:
        if method in vars(agent):
            replaced = f"its {method} was replaced on the object, as Agent(a2a=...) does"
            raise _unguardable(agent, replaced)


def _unguardable(agent: BaseAgent, why: str) -> ConfigError:
    message = (
        f"the agent {agent.role!r} can't be guarded: {why}, where agentguard can't check or record "
        "a call; make it a plain crewai.Agent"
    )
    return ConfigError(message, code="agent.unguardable")


def assign_identity(agent: BaseAgent, identity: Identity) -> None:
    """Give the agent this identity, a seal on its tools, and a cache of its own."""
    kind = type(agent)  # read once: another thread may guard the same agent meanwhile
    if not issubclass(kind, GuardedAgent):
        agent.__class__ = guarded_class(GuardedAgent, kind)
    given: Any = agent
    given._agentguard = identity  # noqa: SLF001
    given._agentguard_tools = {}  # noqa: SLF001
    seal(agent.tools)
    if agent.cache_handler is not None:
        agent.set_cache_handler(agent.cache_handler)


class GuardedAgent(CrewAgent):
    """The mixin that turns an agent's class into the class of a guarded agent.

    A private attribute holds the identity: no representation, dump or checkpoint shows it.
    """

    _agentguard: Identity | None = PrivateAttr(default=None)
    _agentguard_tools: dict[str, BaseTool] = PrivateAttr(default_factory=dict)

    def _add_skill_loader_tool(
        self, tools: list[BaseTool], task: Task | None = None
    ) -> list[BaseTool]:
        """Put all tools behind the gate: the last step before an executor gets the tools."""
        identity = require_identity(self)
        originals = [original_of(tool) for tool in tools]
        extended = super()._add_skill_loader_tool(originals, task)
        names = model_names(extended)
        policy_names = decision_names(extended, names)
        guarded = [
            gated_tool(tool, identity, name)
            for tool, name in zip(extended, policy_names, strict=True)
        ]
        self._agentguard_tools = dict(zip(names, guarded, strict=True))
        handler: ToolsHandler | None = self.tools_handler  # CrewAI sets it late
        cache = handler.cache if handler is not None else None
        if cache is not None and not is_cache_of(cache, self):
            self.set_cache_handler(cache)
        adapters.check_tool_names(identity.agent)
        return guarded

    def create_agent_executor(
        self, tools: list[BaseTool] | None = None, task: Task | None = None
    ) -> None:
        """Make an executor; raises ``ConfigError`` for an executor with unguarded tools."""
        define_flow(self.executor_class)
        super().create_agent_executor(tools, task)
        gate_executor(cast("AgentExecutor", self.agent_executor))

    def _prepare_kickoff(
        self,
        messages: str | list[LLMMessage],
        response_format: type[Any] | None = None,
        input_files: dict[str, Any] | None = None,
    ) -> Any:
        define_flow(AgentExecutor)
        prepared = super()._prepare_kickoff(messages, response_format, input_files)
        gate_executor(prepared[0])
        return prepared

    def execute_task(
        self, task: Task, context: str | None = None, tools: list[BaseTool] | None = None
    ) -> Any:
        """Execute a task as this identity."""
        with _work_as(self, task):
            return super().execute_task(task, context, tools)

    async def aexecute_task(
        self, task: Task, context: str | None = None, tools: list[BaseTool] | None = None
    ) -> Any:
        """Execute a task as this identity."""
        with _work_as(self, task):
            return await super().aexecute_task(task, context, tools)

    def kickoff(
        self,
        messages: str | list[LLMMessage],
        response_format: type[Any] | None = None,
        input_files: dict[str, Any] | None = None,
        from_checkpoint: CheckpointConfig | None = None,
    ) -> Any:
        """Run the agent without a crew, as this identity; raises ``ConfigError`` for a restore."""
        _require_ready(self, from_checkpoint)
        if is_inside_event_loop():  # what CrewAI returns there is kickoff_async
            return super().kickoff(messages, response_format, input_files, from_checkpoint)
        with _work_as(self):
            return super().kickoff(messages, response_format, input_files, from_checkpoint)

    async def kickoff_async(
        self,
        messages: str | list[LLMMessage],
        response_format: type[Any] | None = None,
        input_files: dict[str, Any] | None = None,
        from_checkpoint: CheckpointConfig | None = None,
    ) -> Any:
        """Run the agent without a crew, as this identity; raises ``ConfigError`` for a restore."""
        _require_ready(self, from_checkpoint)
        with _work_as(self):
            return await super().kickoff_async(
                messages, response_format, input_files, from_checkpoint
            )

    def copy(self) -> Self:  # type: ignore[override]  # as CrewAI does
        """Return a copy that has an identity of its own."""
        return _with_new_identity(super().copy(), self)

    def __copy__(self) -> Self:
        return _with_new_identity(super().__copy__(), self)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return _with_new_identity(super().__deepcopy__(memo), self)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy that has an identity of its own."""
        return _with_new_identity(super().model_copy(update=update, deep=deep), self)

    def set_fingerprint(self, fingerprint: Any) -> None:
        """Begin an ``Action`` for the next call of a model that writes its calls as text.

        CrewAI sets the fingerprint once before each such call, and not before further tries.
        """
        super().set_fingerprint(fingerprint)
        ACTION.set(Action())

    def set_cache_handler(self, cache_handler: CacheHandler) -> None:  # noqa: ARG002  CrewAI's
        """Give the agent a cache of its own in the place of the crew's."""
        present = self.cache_handler
        own = present if present is not None and is_cache_of(present, self) else AgentCache(self)
        super().set_cache_handler(own)


def _require_ready(agent: GuardedAgent, from_checkpoint: CheckpointConfig | None) -> None:
    refuse_restoring("agent", from_checkpoint)
    require_whole(agent)
    require_identity(agent).options.require_open()


def _with_new_identity(copied: Renewed, original: GuardedAgent) -> Renewed:
    """Give a copy a new identity that has the original's name."""
    copied.agent_executor = None  # it has the original's tools
    assign_identity(copied, require_identity(original).new_instance())
    return copied


@contextmanager
def _work_as(agent: GuardedAgent, task: Task | None = None) -> Iterator[None]:
    """Run the block as the agent's work; within another agent's work, sign the hop first.

    Raises ``Denied``. Where a call waits for an approval, the outermost agent's block raises
    ``ApprovalPending``; a nested block raises ``Paused``.
    """
    identity, outer, before = require_identity(agent), _WORKER.get(), event_scopes.open_scopes()
    if not agent.role:  # CrewAI leaves out what tells one step of a model from another
        raise ConfigError(f"the role of the agent {identity.agent.name} is empty: give it one")
    around = adapters.nested_calls()
    if around is not None:  # the guarded call hands over this work
        around.hands_over = True
    with runs.join_run() as run, runs.attempt(agent, task), separate_task_results(agent):
        try:
            with collect_failure():
                run.require_running()
                if outer is not None:
                    hand_over(identity, outer)
                with agent_span(identity, run, task):
                    with adapters.assigned(_WORKER, identity), adapters.assigned(ACTION, None):
                        yield
                    run.require_running()  # a planner's parallel steps take a pause for a failure
        except Paused as paused:
            event_scopes.close_scopes(before, agent, task, str(paused))
            # the thread of a task by itself ends with what CrewAI catches, or never
            if outer is not None and not (task is not None and task.async_execution):
                raise
            raise paused.pending from None


def refuse_restoring(what: str, config: CheckpointConfig | None) -> None:
    """Raise ``ConfigError`` for a restore from a checkpoint: checkpoints hold no identities."""
    if config is not None and getattr(config, "restore_from", config) is not None:
        message = (
            f"a checkpoint holds no identities, and what is restored from one is not guarded: "
            f"restore the {what} first, guard it, and kick that off"
        )
        raise ConfigError(message, code="agent.unguarded")
