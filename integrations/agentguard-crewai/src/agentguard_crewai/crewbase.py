"""Reads a ``@CrewBase`` class: its crew methods, and the identities in its ``agents.yaml``.

CrewAI drops the keys of ``agents.yaml`` that CrewAI does not know. This module therefore reads the
entries of the file before CrewAI does. ``guard_crewbase`` itself stands in ``crews.py``.
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
_MARK: Final = "__agentguard_crew__"
_PARTS: Final = ("role", "goal", "backstory")


def crew_methods(crew_class: Any) -> dict[str, Callable[..., Crew]]:
    """Return the ``@crew`` methods of a class and its bases; CrewAI itself does not mark them."""
    members: dict[str, Any] = {}
    for base in reversed(crew_class.__mro__):
        members.update(vars(base))
    return {
        name: member
        for name, member in members.items()
        if callable(member) and any(map(_is_crew, _unwrapped(member)))
    }


def mark_crew_method(method: Callable[..., Crew]) -> Callable[..., Crew]:
    """Mark a method that makes a guarded crew, so that ``crew_methods`` of a subclass finds it."""
    setattr(method, _MARK, True)
    return method


def _unwrapped(function: Any) -> Iterator[Any]:
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def _is_crew(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return hasattr(function, _MARK) or (
        code is not None
        and code.co_qualname == "crew.<locals>.wrapper"
        and function.__globals__.get("__name__") == "crewai.project.annotations"
    )


def names_in_yaml(instance: Any, crew: Sequence[BaseAgent]) -> dict[int, str]:
    """Return the names that ``agents.yaml`` gives to the agents of a ``@CrewBase``, by ``id()``.

    ``crew`` are the agents of the crew, also those that no ``@agent`` method has made. Raises
    ``ConfigError`` for an unknown key, and for an identity that no agent has.
    """
    entries: Mapping[str, Any] = instance.agents_config or {}
    agents_by_method: dict[str, BaseAgent] = {
        name: make() for name, make in _agent_methods(instance).items()
    }
    method_agents = {id(agent) for agent in agents_by_method.values()}
    kinds: set[type[BaseAgent]] = {
        CrewAgent,
        *map(type, agents_by_method.values()),
        *map(type, crew),
    }
    known_keys = {IDENTITY, *AgentConfig.__annotations__}.union(*(k.model_fields for k in kinds))
    others = [agent for agent in crew if id(agent) not in method_agents]
    names: dict[int, str] = {}
    for entry, members in entries.items():
        where = f"{instance.original_agents_config_path}: {entry}"
        name = _identity(where, members, known_keys)
        if name is None:
            continue
        agents = [agent for agent in others if _matches_entry(agent, members)]
        agents += _agents_of_entry(entry, entries, agents_by_method)
        if not agents:
            message = (
                f"{where}.{IDENTITY}: no agent of the crew is made from this: call the method "
                f"below @agent {entry}"
            )
            raise ConfigError(message)
        for agent in agents:
            if names.setdefault(id(agent), name) != name:
                message = (
                    f"{where}.{IDENTITY}: the agent {agent.role!r} is made from another entry as "
                    f"well, which gives it another identity: {names[id(agent)]}, and {name}"
                )
                raise ConfigError(message)
    return names


def _agent_methods(instance: Any) -> dict[str, Callable[[], CrewAgent]]:
    names = _filter_methods(instance._all_methods, "is_agent")  # noqa: SLF001  CrewAI has no other
    return {name: getattr(instance, name) for name in names}


def _agents_of_entry(
    entry: str, entries: Mapping[str, Any], agents_by_method: Mapping[str, BaseAgent]
) -> list[BaseAgent]:
    """Return the agents that ``@agent`` methods made from an entry.

    These are the agents whose texts equal the entry's, or else the agent of the method that has the
    entry's name. A method with an equal entry of its own made its agent from its own entry.
    """
    agents = [
        agent
        for name, agent in agents_by_method.items()
        if _matches_entry(agent, entries[entry])
        and (name == entry or not _matches_entry(agent, entries.get(name)))
    ]
    if not agents and entry in agents_by_method:
        return [agents_by_method[entry]]
    return agents


def _identity(where: str, members: Mapping[str, Any], known_keys: Collection[str]) -> str | None:
    """Return the identity in an entry, None for none; raises ``ConfigError`` for a wrong key.

    ``known_keys`` are the keys that CrewAI uses, and ``identity``.
    """
    for key in members:
        if key not in known_keys:
            suggestion = closest_name(str(key), known_keys)
            hint = f"; {suggestion} is close to it" if suggestion else ""
            message = f"{where}.{key}: CrewAI does not know this key, and drops it{hint}"
            raise ConfigError(message)
    if IDENTITY not in members:
        return None
    name: object = members[IDENTITY]
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}.{IDENTITY}: expected the name of an agent, got {name!r}")
    return name


def _matches_entry(agent: BaseAgent, members: Mapping[str, Any] | None) -> bool:
    """Return whether an agent's texts equal an entry's, before inputs are filled in."""
    return members is not None and all(
        (getattr(agent, f"_original_{part}") or getattr(agent, part)) == members.get(part)
        for part in _PARTS
    )
