"""One policy file, embedded and on an OPA server: the same calls, the same answers.

Run it with ``python examples/opa/main.py``. With the URL of an OPA in ``AGENTGUARD_OPA_URL`` the
calls are made once more, decided by it; without one it says how to start one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypedDict

import httpcore

from agentguard import Denied, Guard
from agentguard.audit.kinds import parse_entry
from agentguard.policy.engine import Engine
from agentguard.policy.opa import OpaEngine
from agentguard.policy.opa_server import Server
from agentguard.policy.rego import RegoEngine

POLICY = Path(__file__).with_name("authz.rego")
QUERY = "data.example.deploys"
CALLS = (
    ("release-bot", "web", "staging"),
    ("release-bot", "web", "production"),
    ("release-bot", "web", "laptop"),
    ("intern-bot", "web", "staging"),
)
HOW = """There is no AGENTGUARD_OPA_URL. To make the same calls once more, decided by an OPA server:

  scripts/services up opa && eval "$(scripts/services env)"  # from a clone; or, an OPA of yours:
  opa run --server & export AGENTGUARD_OPA_URL=http://127.0.0.1:8181"""


class Freeze(TypedDict):
    """What the policy reads beside the call itself."""

    freeze: dict[str, bool]


def freeze(_args: Mapping[str, Any]) -> Freeze:
    """Tell whether releases are frozen: what a policy must not take from the model."""
    return {"freeze": {"active": True}}


def answers(engine: Engine) -> Iterator[str]:
    """Make the calls under a policy engine; yield what came of each."""
    with Guard.ephemeral(engine) as guard:

        @guard.tool(resource="service:{service}", facts=freeze)
        def deploy(service: str, target: str) -> str:
            return f"{service} is on {target}"

        for name, service, target in CALLS:
            try:
                said = guard.new_agent(name).call(deploy, service, target)
            except Denied as denied:
                said = f"denied, {denied.reason} [{denied.code}]"
            yield f"  {name} deploys {service} to {target}: {said}"
        with closing(guard.reader()) as reader:
            logged = [parse_entry(body) for _index, body in reader.entries()]
        said_by_it = [one.members["evaluation"] for one in logged if "evaluation" in one.members]
        if said_by_it:
            yield f"  decision ids on record, as in the log of OPA: {len(said_by_it)}"


@contextmanager
def loaded(url: str) -> Iterator[OpaEngine]:
    """Have a server load the file, as a bundle would in earnest; take it away in the end."""
    place = f"{url}/v1/policies/agentguard-example"
    httpcore.request("PUT", place, content=POLICY.read_bytes())
    try:
        yield OpaEngine(Server(url), QUERY)
    finally:
        httpcore.request("DELETE", place)


def main() -> None:
    """Make the calls embedded and, where there is one, by an OPA."""
    print("embedded:")
    embedded = list(answers(RegoEngine.load(POLICY, query=QUERY)))
    print(*embedded, sep="\n")
    url = os.environ.get("AGENTGUARD_OPA_URL")
    if url is None:
        print(HOW)
        return
    print("on OPA:")
    with loaded(url) as engine:
        served = list(answers(engine))
    print(*served, sep="\n")
    print(f"the same answers: {served[: len(CALLS)] == embedded}")


if __name__ == "__main__":
    main()
