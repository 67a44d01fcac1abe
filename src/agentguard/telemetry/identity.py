"""The attributes that each span has: who acts, for whom, through whom, and for which task."""

from __future__ import annotations

import functools
from types import MappingProxyType
from typing import Any, Final

from agentguard.flow.authority import AgentIdentity
from agentguard.identity.credential import agent_alias
from agentguard.telemetry import names, tracing
from agentguard.telemetry.settings import Settings

NOBODY: Final[MappingProxyType[str, Any]] = MappingProxyType({})
"""The attributes of a call whose agent is not known yet."""


def identity(
    settings: Settings,
    trust_domain: str,
    actor: AgentIdentity,
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
    attributes: dict[str, Any] = {
        names.ACTOR: tracing.text(agent_alias(uri)),
        names.GEN_AI_AGENT_NAME: tracing.text(name),
        names.AGENT_ID: tracing.text(uri),
        names.AGENT_TYPE: tracing.text(kind),
        names.PRINCIPAL: members[0],
        names.CHAIN: ">".join(map(_member, members)),
        names.DEPTH: len(members) - 1,
        **_user_and_task(principal, members[0], task_id),
    }
    return MappingProxyType(attributes)


def work(
    settings: Settings, trust_domain: str, principal: str, task_id: str | None
) -> dict[str, Any]:
    """Return for whom and for which task several agents work; a workflow itself is no agent."""
    name = tracing.person(principal, trust_domain, hashed=settings.hash_users)
    return {names.PRINCIPAL: name, **_user_and_task(principal, name, task_id)}


def _user_and_task(principal: str, named: str, task_id: str | None) -> dict[str, Any]:
    """Return the attributes that not each principal and not each delegation has."""
    user = {names.USER: named} if principal.startswith("user:") else {}
    return user if task_id is None else {**user, names.TASK: tracing.text(task_id)}


def _member(name: str) -> str:
    """Percent-encode a name's ``>``, which separates the members of a chain."""
    return name.replace("%", "%25").replace(">", "%3E")
