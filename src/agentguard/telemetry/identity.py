"""Who acts, for whom and through whom: the attributes that each span has."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from agentguard.effects import Actor
from agentguard.telemetry import names, tracing
from agentguard.telemetry.settings import Settings


def identity(
    settings: Settings,
    trust_domain: str,
    actor: Actor,
    principal: str,
    actors: tuple[str, ...],
    task_id: str | None,
) -> Mapping[str, Any]:
    """Return who acts, for whom and through whom: the attributes that each span has."""
    hashed = settings.hash_users
    who = (tracing.person(one, trust_domain, hashed=hashed) for one in (principal, *actors))
    return _identity(actor.uri, actor.name, actor.type, tuple(who), task_id, principal)


@functools.lru_cache(4096)  # it is the same for all calls that an agent makes for one task
def _identity(
    uri: str,
    name: str,
    kind: str,
    members: tuple[str, ...],
    task_id: str | None,
    principal: str,
) -> Mapping[str, Any]:
    uri = tracing.text(uri)
    found: dict[str, Any] = {
        names.GEN_AI_AGENT_ID: uri,
        names.GEN_AI_AGENT_NAME: tracing.text(name),
        names.AGENT_ID: uri,
        names.AGENT_TYPE: tracing.text(kind),
        names.PRINCIPAL: members[0],
        names.CHAIN: ">".join(map(_member, members)),
        names.DEPTH: len(members) - 1,
    }
    if principal.startswith("user:"):
        found[names.USER] = members[0]
    if task_id is not None:
        found[names.TASK] = tracing.text(task_id)
    return MappingProxyType(found)


def _member(name: str) -> str:
    """Return a name as it stands in a chain: a ``>`` in it, percent-encoded, parts no members."""
    return name.replace("%", "%25").replace(">", "%3E")
