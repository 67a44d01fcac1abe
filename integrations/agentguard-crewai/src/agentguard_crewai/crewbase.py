"""What stands in the files and the class of a ``@CrewBase``: its crews, and the agents' identities.

CrewAI drops a key of ``agents.yaml`` that it does not know, so the file is read here as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from crewai import Agent as CrewAgent
from crewai import Crew
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.project.crew_base import AgentConfig, _filter_methods

from agentguard import ConfigError
from agentguard.adapters import closest_name

IDENTITY: Final = "identity"
_MADE: Final = "__agentguard_crew__"
_PARTS: Final = ("role", "goal", "backstory")


def crew_methods(made: Any) -> dict[str, Callable[..., Crew]]:
    """Return the methods below ``@crew`` of a class and its bases; CrewAI does not mark them."""
    members: dict[str, Any] = {}
    for base in reversed(made.__mro__):
        members.update(vars(base))
    return {
        name: member
        for name, member in members.items()
        if callable(member) and any(map(_is_crew, _layers(member)))
    }


def as_crew(method: Callable[..., Crew]) -> Callable[..., Crew]:
    """Mark a method that makes a guarded crew, for whoever inherits it."""
    setattr(method, _MADE, True)
    return method


def _layers(function: Any) -> Iterator[Any]:
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def _is_crew(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return hasattr(function, _MADE) or (
        code is not None
        and code.co_qualname == "crew.<locals>.wrapper"
        and function.__globals__.get("__name__") == "crewai.project.annotations"
    )


def names_in_yaml(instance: Any, crew: Sequence[BaseAgent]) -> dict[int, str]:
    """Return the names that ``agents.yaml`` gives to the agents of a ``@CrewBase``, by ``id()``.

    ``crew`` are its agents, some of which no method may have made.

    Raises ``ConfigError`` for a key that nobody knows, and for an identity that no agent has.
    """
    entries: Mapping[str, Any] = instance.agents_config or {}
    made: dict[str, BaseAgent] = {name: make() for name, make in _agent_methods(instance).items()}
    by_method = {id(agent) for agent in made.values()}
    kinds: set[type[BaseAgent]] = {CrewAgent, *map(type, made.values()), *map(type, crew)}
    known = {IDENTITY, *AgentConfig.__annotations__}.union(*(k.model_fields for k in kinds))
    others = [agent for agent in crew if id(agent) not in by_method]
    found: dict[int, str] = {}
    for entry, members in entries.items():
        where = f"{instance.original_agents_config_path}: {entry}"
        name = _identity(where, members, known)
        if name is None:
            continue
        alike = [agent for agent in others if _is_as(agent, members)]
        alike += _made_from(entry, entries, made)
        if not alike:
            message = (
                f"{where}.{IDENTITY}: no agent of the crew is made from this: call the method "
                f"below @agent {entry}"
            )
            raise ConfigError(message)
        for agent in alike:
            if found.setdefault(id(agent), name) != name:
                message = (
                    f"{where}.{IDENTITY}: the agent {agent.role!r} is made from another entry as "
                    f"well, which gives it another identity: {found[id(agent)]}, and {name}"
                )
                raise ConfigError(message)
    return found


def _agent_methods(instance: Any) -> dict[str, Callable[[], CrewAgent]]:
    names = _filter_methods(instance._all_methods, "is_agent")  # noqa: SLF001  CrewAI has no other
    return {name: getattr(instance, name) for name in names}


def _made_from(
    entry: str, entries: Mapping[str, Any], made: Mapping[str, BaseAgent]
) -> list[BaseAgent]:
    """Return the agents that methods made from an entry: all that are as it says, or one named so.

    A method that has an entry of its own which says the same made its agent from that.
    """
    alike = [
        agent
        for name, agent in made.items()
        if _is_as(agent, entries[entry]) and (name == entry or not _is_as(agent, entries.get(name)))
    ]
    return alike or [made[entry]] if entry in made else alike


def _identity(where: str, members: Mapping[str, Any], known: Collection[str]) -> str | None:
    """Return what an entry says of the identity; raises ``ConfigError``.

    ``known`` are the keys that CrewAI makes something of.
    """
    for key in members:
        if key not in known:
            meant = closest_name(str(key), known)
            hint = f"; {meant} is close to it" if meant else ""
            message = f"{where}.{key}: CrewAI does not know this key, and drops it{hint}"
            raise ConfigError(message)
    if IDENTITY not in members:
        return None
    name: object = members[IDENTITY]
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}.{IDENTITY}: expected the name of an agent, got {name!r}")
    return name


def _is_as(agent: BaseAgent, members: Mapping[str, Any] | None) -> bool:
    """Whether an agent is as an entry says, before inputs were filled in."""
    return members is not None and all(
        (getattr(agent, f"_original_{part}") or getattr(agent, part)) == members.get(part)
        for part in _PARTS
    )
