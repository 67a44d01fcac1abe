"""A gateway shows the same tools whether its guard is in its own process or in a guard server."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from gateway_scene import code_of, gateway, settings
from preloaded import Preloaded
from served_place import founded_place

from agentguard_mcp.gateway import Settings

ALL = ["echo", "fail", "hang", "crash", "deaf", "ask"]
MORE = """
[principals."user:vera"]
roles = ["viewer"]

[roles.viewer]
scope = ["read"]

[tools.echo]
requires = ["read"]

[tools.fail]
requires = ["pay"]

[tools.hang]
requires = ["read", "pay"]

[tools.ask]
requires = ["admin"]
"""
CASES = {
    ("clerk", None): ["echo", "fail", "hang", "crash", "deaf"],
    ("clerk", "user:alice"): ["echo", "fail", "hang", "crash", "deaf"],
    ("clerk", "user:vera"): ["echo", "crash", "deaf"],
    ("helper", "user:alice"): ["echo", "crash", "deaf"],
    ("helper", "user:vera"): ["echo", "crash", "deaf"],
    ("helper", "user:nobody"): ["crash", "deaf"],
}
"""The tools that a list has, by the agent and the principal."""


@pytest.fixture(scope="module")
def programs() -> Iterator[Preloaded]:
    made = Preloaded("cheap_keys", "agentguard.server.serve")
    yield made
    made.close()


def given(agent: str, principal: str | None, **more: object) -> Settings:
    return settings(agent=agent, principal=principal, **more)


async def lists(guard) -> dict[tuple[str, str | None], list[str]]:
    shown = {}
    for agent, principal in CASES:
        async with gateway(SimpleNamespace(guard=guard), given(agent, principal)) as client:
            shown[agent, principal] = await client.tools()
            if principal == "user:vera":
                assert code_of(await client.call("fail", "a")) == "scope.exceeded"
    return shown


@pytest.mark.slow("a guard server, and thirteen MCP servers")
async def test_a_list_has_the_tools_whose_scope_a_call_can_have_wherever_the_guard_is(programs):
    with founded_place(programs, MORE) as place:
        (place.folder / "authz.rego").write_text("package agent.authz\n\nallow := true\n")
        path = place.folder / "agentguard.toml"
        served = path.read_text("utf-8")
        path.write_text(served.partition("[server]")[0] + MORE, "utf-8")
        with place.connect() as guard:
            assert await lists(guard) == CASES
        path.write_text(served, "utf-8")
        place.start()
        with place.connect() as guard:
            assert await lists(guard) == CASES
            delegated = given("clerk", "user:alice", delegated=("read",))
            async with gateway(SimpleNamespace(guard=guard), delegated) as client:
                assert await client.tools() == ["echo", "crash", "deaf"]
