"""What clients of a gateway over HTTP see: their lists, one limit for all, dialogs, no secrets."""

from __future__ import annotations

from gateway_scene import LIMIT, code_of, settings, shown
from http_scene import HELLO, STANDARD, TYPES, call_of, next_event, served
from login_provider import ISSUER, Provider

from agentguard import Decision
from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import OAuth
from agentguard_mcp.gateway.upstream.concealed import MARK

URL = "https://mcp.acme.example/mcp"
FORMS = {"elicitation": {}}
KEY = "dev.agentguard/approval"


async def names(client):
    answer = (await client.single("tools/list")).json()
    return [one["name"] for one in answer["result"]["tools"]]


async def test_each_user_gets_the_list_that_the_policy_gives_the_user(tmp_path):
    provider = Provider(tmp_path)
    recorded = RecordedGuard.make(
        agents={"assistant": {"max_scope": ["files:read"]}},
        issuers={"acme": provider.table(audience=[URL])},
    )
    shows = {"user:alice": "echo", "user:bob": "ask"}
    recorded.decide = lambda call: (
        Decision.allow()
        if call["args"]["tool"] == shows[call["delegation"]["subject"]]
        else Decision.deny()
    )
    oauth = OAuth({ISSUER: ("files:read",)}, scopes=("files:read",))
    async with served(recorded, settings(filter_list=True), url=URL, oauth=oauth) as gateway:
        for name in ("alice", "bob"):
            token = provider.token(
                aud=URL, scope="openid files:read", sub=name, preferred_username=name
            )
            headers = {"host": "mcp.acme.example", "authorization": f"Bearer {token}"}
            client = gateway.caller(**headers)
            client.url = f"http://127.0.0.1:{gateway.place.port}/mcp"
            assert await names(client) == [shows[f"user:{name}"]]
    recorded.guard.close()


async def test_a_second_session_is_no_way_around_a_limit(recorded):
    async with served(recorded, settings(calls_per_minute=2)) as gateway:
        first, second = await gateway.caller().begin(), await gateway.caller().begin()
        assert shown(await first.call("echo", "a"))["text"] == "a"
        assert shown(await second.call("echo", "b"))["text"] == "b"
        for client in (first, second, await gateway.caller().begin()):
            assert code_of(await client.call("echo", "c")) == "calls.rate"
        single = await gateway.caller().call_single("echo", "d")
        assert code_of(single.json()["result"]) == "calls.rate"


async def test_a_dialog_comes_on_the_stream_of_the_call_and_its_answer_approves_nothing(recorded):
    recorded.decide = lambda _call: Decision.require_approval()
    hello = {**HELLO, "capabilities": FORMS}
    async with served(recorded, settings(wait=LIMIT, elicit=True)) as gateway:
        client = gateway.caller()
        message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}
        client.headers["mcp-session-id"] = (await client.post(message)).headers["mcp-session-id"]
        given = {**TYPES, **client.headers}
        sent = call_of("echo", "a")
        async with client.http.stream("POST", client.url, json=sent, headers=given) as answer:
            lines = answer.aiter_lines()
            asked = await next_event(lines)
            assert asked["method"] == "elicitation/create"
            reply = {"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "accept"}}
            assert (await client.post(reply)).status_code == 202
            assert recorded.calls() == []
            recorded.approve()
            assert shown((await next_event(lines))["result"])["text"] == "a"


async def test_a_single_request_gets_its_dialog_in_a_result(recorded):
    recorded.decide = lambda _call: Decision.require_approval()
    meta = {f"{STANDARD}clientCapabilities": FORMS}
    async with served(recorded, settings(wait=0.2, elicit=True)) as gateway:
        client = gateway.caller()
        first = (await client.call_single("echo", "a", meta=meta)).json()["result"]
        assert first["resultType"] == "input_required"
        assert first["inputRequests"][KEY]["method"] == "elicitation/create"
        again = {"name": "echo", "arguments": {"text": "a"}}
        again["inputResponses"] = {KEY: {"action": "accept"}}
        waited = (await client.single("tools/call", again, meta=meta)).json()["result"]
        assert code_of(waited) == "approval.pending"
        recorded.approve()
        ran = (await client.single("tools/call", again, meta=meta)).json()["result"]
        assert shown(ran)["text"] == "a"


async def test_no_session_shows_a_secret_of_the_server(tmp_path):
    file = tmp_path / "token"
    file.write_text("s3cr3t-t0ken")
    file.chmod(0o600)
    recorded = RecordedGuard.make(secrets={"T": {"file": str(file), "tools": ["mcp:start"]}})
    async with served(recorded, settings(secrets={"TOKEN": "T"})) as gateway:
        for client in (await gateway.caller().begin(), await gateway.caller().begin()):
            assert shown(await client.call("echo", "a s3cr3t-t0ken"))["text"] == f"a {MARK}"
        single = await gateway.caller().call_single("echo", "s3cr3t-t0ken")
        assert shown(single.json()["result"])["text"] == MARK
    recorded.guard.close()
