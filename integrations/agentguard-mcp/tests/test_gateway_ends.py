"""What ends while people decide on an approval: the server behind a call, or the gateway."""

from __future__ import annotations

import pytest
from gateway_scene import LIMIT, code_of, gateway, settings, shown, until

from agentguard import Decision
from agentguard.testing import RecordedGuard


@pytest.fixture
def recorded():
    made = RecordedGuard.make()
    yield made
    made.require_sound()
    made.guard.close()


@pytest.mark.parametrize("recheck", [0.0, 60.0])
async def test_a_call_that_waits_for_an_approval_ends_with_its_server(recorded, tmp_path, recheck):
    ran = tmp_path / "ran"
    recorded.decide = lambda call: (
        Decision.require_approval() if call["args"]["text"] == "a" else Decision.allow()
    )
    options = {"ran": str(ran), "leave": "logging/setLevel"}
    given = settings(options=options, wait=10 * LIMIT, recheck=recheck)
    async with gateway(recorded, given) as client:
        assert shown(await client.call("echo", "b"))["text"] == "b"
        client.send("tools/call", {"name": "echo", "arguments": {"text": "a"}}, id="a")
        await until(recorded.guard.approvals.pending)
        client.send("logging/setLevel", id="l")
        result = (await client.answer("a"))["result"]
        assert code_of(result) == "tool.unreachable"
        assert "echo did not run" in result["content"][0]["text"]
        assert await client.next() == {}  # and the gateway ends
    assert len(recorded.guard.approvals.pending()) == 1  # for a later call
    assert ran.read_text() == "echo b\n"
    assert recorded.outcomes() == ["ok"]
