"""The gateway passes the notices that MCP names, each in its own direction, and no others."""

from __future__ import annotations

import json

from gateway_scene import gateway, settings

OF_CLIENT = ["initialized", "progress", "roots/list_changed"]
OF_SERVER = [
    *("elicitation/complete", "message", "progress", "prompts/list_changed"),
    *("resources/list_changed", "resources/updated", "subscriptions/acknowledged"),
    "tools/list_changed",
]
OF_NOBODY = ["notifications/run", "notifications/tasks/status", "notifications/", "keys/export"]


def named(names):
    return [f"notifications/{name}" for name in names]


async def test_a_client_sends_a_server_only_the_notices_that_mcp_gives_a_client(
    recorded, ran, caplog
):
    foreign = set(named(OF_SERVER)) - set(named(OF_CLIENT))
    async with gateway(recorded, settings(options={"ran": str(ran)})) as client:
        for method in (*named(OF_CLIENT), *OF_NOBODY, *sorted(foreign)):
            client.send(method)
        client.send("notifications/cancelled", {"requestId": 7})  # nothing to cancel
        await client.ask("ping")
    assert [line.split()[0] for line in ran.read_text().splitlines()] == named(OF_CLIENT)
    for method in (*OF_NOBODY, *foreign):
        assert f"the client: a message is dropped: MCP names no notice {method!r}" in caplog.text


async def test_a_server_sends_a_client_only_the_notices_that_mcp_gives_a_server(recorded, caplog):
    foreign = set(named(OF_CLIENT)) - set(named(OF_SERVER))
    methods = [*OF_NOBODY, *sorted(foreign), *named(OF_SERVER)]
    lines = [json.dumps({"jsonrpc": "2.0", "method": method, "params": {}}) for method in methods]
    async with gateway(recorded, settings(options={"before": {"ping": lines}})) as client:
        await client.ask("ping")
        assert [one["method"] for one in client.notices] == named(OF_SERVER)
    for method in (*OF_NOBODY, *foreign):
        assert f"files: a message is dropped: MCP names no notice {method!r}" in caplog.text
