"""The attributes that each span has: who acts, for whom, and through whom."""

from __future__ import annotations

import functools
from types import MappingProxyType
from typing import Any, Final

from agentguard.flow.authority import Actor
from agentguard.telemetry import names, tracing
from agentguard.telemetry.settings import Settings

NOBODY: Final[MappingProxyType[str, Any]] = MappingProxyType({})
"""The attributes of a call whose agent is not known yet."""


def identity(
    settings: Settings,
    trust_domain: str,
    actor: Actor,
    principal: str,
    actors: tuple[str, ...],
    task_id: str | None,
) -> MappingProxyType[str, Any]:
    """Return who acts, for whom and through whom: the attributes that each span has."""
    who = (actor.uri, actor.name, actor.type)
    return _identity(settings.hash_users, trust_domain, *who, principal, actors, task_id)


@functools.lru_cache(4096)  # the same for all calls of an agent for one task
def _identity(
    hashed: bool,  # noqa: FBT001  a cache is quicker without names
    trust_domain: str,
    uri: str,
    name: str,
    kind: str,
    principal: str,
    actors: tuple[str, ...],
    task_id: str | None,
) -> MappingProxyType[str, Any]:
    members = [tracing.person(name, trust_domain, hashed=hashed) for name in (principal, *actors)]
    uri = tracing.text(uri)
    attributes: dict[str, Any] = {
        names.GEN_AI_AGENT_ID: uri,
        names.GEN_AI_AGENT_NAME: tracing.text(name),
        names.AGENT_ID: uri,
        names.AGENT_TYPE: tracing.text(kind),
        names.PRINCIPAL: members[0],
        names.CHAIN: ">".join(map(_member, members)),
        names.DEPTH: len(members) - 1,
    }
    if principal.startswith("user:"):
        attributes[names.USER] = members[0]
    if task_id is not None:
        attributes[names.TASK] = tracing.text(task_id)
    return MappingProxyType(attributes)


def _member(name: str) -> str:
    """Percent-encode a name's ``>``, which separates the members of a chain."""
    return name.replace("%", "%25").replace(">", "%3E")
