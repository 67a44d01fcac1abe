"""What stands in the files and the class of a ``@CrewBase``: its crews, and the agents' identities.

CrewAI drops a key of ``agents.yaml`` that it does not know, so the file is read here as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from crewai import Agent as CrewAgent
from crewai import Crew
from crewai.project.crew_base import AgentConfig

from agentguard import ConfigError
from agentguard.spelling import closest

IDENTITY: Final = "identity"
_PARTS: Final = ("role", "goal", "backstory")


def crew_methods(made: object) -> dict[str, Callable[..., Crew]]:
    """Return the methods below ``@crew`` of a class; CrewAI does not mark them."""
    return {
        name: member
        for name, member in vars(made).items()
        if callable(member) and any(map(_is_crew, _layers(member)))
    }


def _layers(function: Any) -> Iterator[Any]:
    while function is not None:
        yield function
        function = getattr(function, "__wrapped__", None)


def _is_crew(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return (
        code is not None
        and code.co_qualname == "crew.<locals>.wrapper"
        and function.__globals__.get("__name__") == "crewai.project.annotations"
    )


def names_in_yaml(instance: Any) -> dict[int, str]:
    """Return the names that ``agents.yaml`` gives to the agents of a ``@CrewBase``, by ``id()``.

    Raises ``ConfigError`` for a key that nobody knows, and for an identity that no agent has.
    """
    entries: Mapping[str, Any] = instance.agents_config or {}
    made = {name: make() for name, make in _agent_methods(instance).items()}
    found: dict[int, str] = {}
    for entry, members in entries.items():
        name = _identity(f"{instance.original_agents_config_path}: {entry}", members)
        if name is None:
            continue
        agents = [made[entry]] if entry in made else _alike(members, made.values())
        if not agents:
            message = (
                f"{instance.original_agents_config_path}: {entry}.{IDENTITY}: no agent of the "
                f"crew is made from this: call the method below @agent {entry}"
            )
            raise ConfigError(message)
        for agent in agents:
            if found.setdefault(id(agent), name) != name:
                message = (
                    f"{instance.original_agents_config_path}: two entries are as one agent, and "
                    f"give it two identities: {found[id(agent)]} and {name}"
                )
                raise ConfigError(message)
    return found


def _agent_methods(instance: Any) -> dict[str, Callable[[], CrewAgent]]:
    names: Mapping[str, Any] = instance.__crew_metadata__["original_agents"]
    return {name: getattr(instance, name) for name in names}


def _identity(where: str, members: Mapping[str, Any]) -> str | None:
    """Return what an entry says of the identity; raises ``ConfigError``."""
    known = {*CrewAgent.model_fields, *AgentConfig.__annotations__, IDENTITY}
    for key in members:
        if key not in known:
            meant = closest(str(key), known)
            hint = f"; {meant} is close to it" if meant else ""
            message = f"{where}.{key}: CrewAI does not know this key, and drops it{hint}"
            raise ConfigError(message)
    name = members.get(IDENTITY)
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigError(f"{where}.{IDENTITY}: expected the name of an agent, got {name!r}")
    return name


def _alike(members: Mapping[str, Any], agents: Any) -> list[CrewAgent]:
    """Return the agents that were made from an entry under another name."""
    return [
        agent
        for agent in agents
        if all(getattr(agent, part) == members.get(part) for part in _PARTS)
    ]
