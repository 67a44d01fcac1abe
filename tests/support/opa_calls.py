"""An OPA engine on a test's server, and what it answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentguard import PolicyError
from agentguard.policy.document import Evaluated
from agentguard.policy.opa import OpaEngine
from agentguard.policy.opa_server import Server

POLICIES = Path(__file__).parents[1] / "policies"
AUTHZ = POLICIES / "authz.rego"
OPEN_PR = {
    "agent": {"type": "code-agent"},
    "action": "open_pr",
    "repo": {"visibility": "internal"},
}


def engine_of(server: Any, **options: Any) -> OpaEngine:
    query = options.pop("query", "data.agent.authz")
    # a TLS handshake may take a second where other tests run beside this one
    patient = {"timeout": 5.0, "connect_timeout": 5.0}
    return OpaEngine(Server(server.url, **{**patient, **options}), query)


def ask(engine: Any, **members: Any) -> Evaluated:
    answer = engine.evaluate(json.dumps(members or OPEN_PR).encode())
    assert isinstance(answer, Evaluated)
    return answer


def code_of(engine: Any) -> str:
    with pytest.raises(PolicyError) as raised:
        ask(engine)
    return raised.value.code
