"""The members ``agent`` and ``delegation`` of the policy's input (policy-document.md, Input)."""

from __future__ import annotations

from collections.abc import Sequence

from agentguard.call.client import Client
from agentguard.delegation.chain import Chain
from agentguard.domain.config.agents import AgentConfig
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, Fragment


def agent_description(
    uri: str, config: AgentConfig, instance: str, client: Client | None
) -> Fragment:
    """Return the member ``agent`` of the policy's input (policy-document.md, Input)."""
    members: dict[str, JSON] = {
        "id": uri,
        "name": config.name,
        "type": config.type,
        "instance": instance,
        "roles": list(config.roles),
    }
    if client is not None:
        members |= {"client": client.name, "isolation": client.isolation}
    return Fragment(canonical.dumps(members))


def delegation_description(chain: Chain, roles: Sequence[str]) -> Fragment:
    """Return the member ``delegation`` of the policy's input (policy-document.md, Input)."""
    members: dict[str, JSON] = {
        "subject": chain.principal,
        "actor": chain.principal,
        "via": chain.via,
        "chain": list(chain.members),
        "scope": list(chain.leaf.scope),
        "depth": len(chain.hops),
        "assurance": chain.root.assurance,
        "roles": list(roles),
    }
    login = chain.root.subject_token
    if login is not None:
        members["subject_token"] = {
            "iss": login.iss,
            "sub": login.sub,
            "auth_time": login.auth_time,
            "acr": login.acr,
        }
    service = chain.root.via_token
    if service is not None:
        members["via_token"] = {"iss": service.iss, "sub": service.sub}
    return Fragment(canonical.dumps(members))
