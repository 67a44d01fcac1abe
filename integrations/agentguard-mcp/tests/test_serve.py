"""A gateway over HTTP: sessions, single requests, what is refused, and how it ends."""

from __future__ import annotations

import asyncio
import json
import ssl

import httpx
import pytest
from certificates import Authority
from gateway_scene import LIMIT, code_of, settings, shown, until
from http_scene import HELLO, STANDARD, TYPES, Caller, call_of, events, next_event, served, single

from agentguard import ConfigError, Decision
from agentguard.testing import RecordedGuard

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


@pytest.fixture
def recorded():
    made = RecordedGuard.make()
    made.decide = lambda call: (
        Decision.deny() if call["args"].get("text") == "bad" else Decision.allow()
    )
    yield made
    made.require_sound()
    made.guard.close()


async def test_a_client_with_a_session_makes_guarded_calls(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        listed = await client.ask("tools/list")
        assert "echo" in [one["name"] for one in listed["result"]["tools"]]
        assert shown(await client.call("echo", "a"))["text"] == "a"
        assert code_of(await client.call("echo", "bad")) == "policy.denied"
        ended = await client.http.delete(client.url, headers=client.headers)
        assert ended.status_code == 204
        gone = await client.post({"jsonrpc": "2.0", "id": 9, "method": "ping"})
        assert gone.status_code == 404
    assert recorded.outcomes() == ["ok"]


async def test_a_single_request_is_guarded_too(recorded):
    async with served(recorded) as gateway:
        client = gateway.caller()
        allowed = await client.call_single("echo", "a", identifier="x")
        assert (allowed.status_code, allowed.json()["id"]) == (200, "x")
        assert shown(allowed.json()["result"])["text"] == "a"
        denied = await client.call_single("echo", "bad")
        assert code_of(denied.json()["result"]) == "policy.denied"
    assert recorded.outcomes() == ["ok"]


async def test_messages_of_the_server_come_on_the_stream_of_the_call(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        call = {"name": "ask", "arguments": {"text": "who?"}}
        message = {"jsonrpc": "2.0", "id": "c", "method": "tools/call", "params": call}
        given = {**TYPES, **client.headers}
        async with client.http.stream("POST", client.url, json=message, headers=given) as answer:
            lines = answer.aiter_lines()
            asked = await next_event(lines)
            assert asked["method"] == "sampling/createMessage"
            reply = {"jsonrpc": "2.0", "id": asked["id"], "result": {"said": "me"}}
            assert (await client.post(reply)).status_code == 202
            assert shown((await next_event(lines))["result"])["text"] == "me"


async def test_a_session_listens_on_one_stream(recorded):
    notice = '{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'
    given = settings(options={"before": {"notifications/roots/list_changed": [notice]}})
    async with served(recorded, given) as gateway:
        client = await gateway.caller().begin()
        headers = {**client.headers, "accept": "text/event-stream"}
        async with client.http.stream("GET", client.url, headers=headers) as answer:
            second = await client.http.get(client.url, headers=headers)
            assert second.status_code == 409
            lines = answer.aiter_lines()
            told = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}
            assert (await client.post(told)).status_code == 202
            assert (await next_event(lines))["method"] == "notifications/tools/list_changed"
        without = await client.http.get(client.url, headers={"accept": "text/event-stream"})
        assert without.status_code == 405


async def test_each_session_has_a_server_of_its_own_and_a_crash_ends_one(recorded):
    async with served(recorded) as gateway:
        first, second = await gateway.caller().begin(), await gateway.caller().begin()
        assert first.headers["mcp-session-id"] != second.headers["mcp-session-id"]
        assert code_of(await first.call("crash")) == "tool.lost"
        gone = await first.post({"jsonrpc": "2.0", "id": 5, "method": "ping"})
        assert gone.status_code == 404
        assert shown(await second.call("echo", "b"))["text"] == "b"
        third = await gateway.caller().begin()
        assert shown(await third.call("echo", "c"))["text"] == "c"
    assert recorded.outcomes() == ["unknown", "ok", "ok"]


async def test_single_requests_with_one_id_get_their_own_answers_and_progress(recorded):
    async with served(recorded, settings(options={"extra": ["slow"], "slow": 0.1})) as gateway:
        clients = [gateway.caller() for _ in range(3)]
        answers = await asyncio.gather(
            *(one.call_single("slow", str(i), identifier=1) for i, one in enumerate(clients))
        )
        texts = [shown(one.json()["result"])["text"] for one in answers]
        assert texts == ["0", "1", "2"]
        token = {"progressToken": "mine"}
        sent = shown((await clients[0].call_single("echo", "a", meta=token)).json()["result"])
        assert sent["params"]["_meta"]["progressToken"] != "mine"
        after = await clients[0].call_single("crash")
        assert code_of(after.json()["result"]) == "tool.lost"
        again = await clients[0].call_single("echo", "a")  # with a new server
        assert shown(again.json()["result"])["text"] == "a"


async def test_a_client_that_closes_the_stream_of_a_single_call_cancels_the_call(recorded, ran):
    async with served(recorded, settings(options={"ran": str(ran)})) as gateway:
        client = gateway.caller()
        calling = asyncio.create_task(client.call_single("hang"))
        await until(lambda: ran.exists() and "hang" in ran.read_text())
        calling.cancel()
        await until(lambda: "notifications/cancelled" in ran.read_text())
    assert recorded.outcomes() == ["unknown"]


async def test_a_cancelled_call_of_a_session_ends_without_an_answer(recorded, ran):
    async with served(recorded, settings(options={"ran": str(ran)})) as gateway:
        client = await gateway.caller().begin()
        message = {"jsonrpc": "2.0", "id": "c", "method": "tools/call", "params": {"name": "hang"}}
        calling = asyncio.create_task(client.post(message))
        await until(lambda: ran.exists() and "hang" in ran.read_text())
        params = {"requestId": "c"}
        notice = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
        assert (await client.post(notice)).status_code == 202
        assert events((await calling).text) == []


async def test_an_end_lets_calls_end_and_takes_no_new_ones(recorded, ran):
    given = settings(options={"extra": ["slow"], "ran": str(ran)})
    async with served(recorded, given) as gateway:
        client = await gateway.caller().begin()
        calling = asyncio.create_task(client.call("slow", "a"))
        await until(lambda: ran.exists() and "slow" in ran.read_text())
        gateway.stop.set()
        assert shown(await calling)["text"] == "a"
    assert recorded.outcomes() == ["ok"]


async def test_a_call_that_asks_the_client_can_end_when_the_gateway_does(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        given = {**TYPES, **client.headers}
        message = call_of("ask", "who?")
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
        async with client.http.stream("POST", client.url, json=message, headers=given) as answer:
            lines = answer.aiter_lines()
            asked = await next_event(lines)
            gateway.stop.set()
            async with asyncio.timeout(LIMIT):
                while (await gateway.caller().post(hello)).status_code != 503:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            reply = {"jsonrpc": "2.0", "id": asked["id"], "result": {"said": "me"}}
            assert (await client.post(reply)).status_code == 202
            assert shown((await next_event(lines))["result"])["text"] == "me"
    assert recorded.outcomes() == ["ok"]


async def test_a_call_that_runs_too_long_at_the_end_stays_unknown(recorded, ran):
    given = settings(options={"ran": str(ran)})
    async with served(recorded, given, drain=0.05) as gateway:
        client = await gateway.caller().begin()
        calling = asyncio.create_task(client.post(call_of("hang")))
        await until(lambda: ran.exists() and "hang" in ran.read_text())
        gateway.stop.set()
        await asyncio.wait([calling])
    assert recorded.outcomes() == ["unknown"]


async def test_idle_sessions_end_and_too_many_are_refused(recorded):
    async with served(recorded, sessions=2, idle=0.2) as gateway:
        client = await gateway.caller().begin()
        await gateway.caller().begin()
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
        assert (await gateway.caller().post(hello)).status_code == 503
        async with asyncio.timeout(LIMIT):
            while (await client.post(PING)).status_code != 404:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.3)
            # a session counts until its server has ended
            while (await gateway.caller().post(hello)).status_code == 503:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_a_server_that_can_not_be_started_is_no_error_of_the_gateway(recorded):
    async with served(recorded, settings(command=("/not/there",))) as gateway:
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
        refused = await gateway.caller().post(hello)
        assert (refused.status_code, refused.json()["id"]) == (503, 0)
        assert (await gateway.caller().call_single("echo")).status_code == 503


async def test_a_tool_that_changes_between_two_sessions_is_refused(recorded, tmp_path):
    lists = tmp_path / "lists"
    given = settings(options={"lists": str(lists), "pull_after": 2})
    async with served(recorded, given) as gateway:
        first = await gateway.caller().begin()
        assert shown(await first.call("echo", "a"))["text"] == "a"
        second = await gateway.caller().begin()
        assert shown(await second.call("echo", "b"))["text"] == "b"
        third = await gateway.caller().begin()
        assert code_of(await third.call("echo", "c")) == "tool.changed"


async def test_a_subscription_of_a_single_request_has_the_clients_own_id(recorded):
    meta = {"_meta": {f"{STANDARD}subscriptionId": "http-1"}}
    notice = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": meta}
    method = "subscriptions/listen"
    given = settings(options={"before": {method: [json.dumps(notice)]}, "silent": [method]})
    async with served(recorded, given) as gateway:
        client = gateway.caller()
        message, headers = single(method, {"notifications": {}}, identifier="mine")
        sent = {**TYPES, **headers}
        async with client.http.stream("POST", client.url, json=message, headers=sent) as answer:
            event = await next_event(answer.aiter_lines())
            assert event["params"]["_meta"] == {f"{STANDARD}subscriptionId": "mine"}
            other = await client.call_single("echo", "a")
            assert other.status_code == 200


async def test_a_gateway_serves_with_tls(recorded, tmp_path):
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.issue("server")
    async with served(recorded, certificate=certificate, key=key) as gateway:
        assert gateway.place.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(authority.file))
        async with httpx.AsyncClient(verify=context, trust_env=False) as http:
            client = await Caller(http, gateway.place.url).begin()
            assert shown(await client.call("echo", "a"))["text"] == "a"
        with pytest.raises(httpx.ConnectError):
            await gateway.caller().begin()
    with pytest.raises(ConfigError, match="can't be read"):
        async with served(recorded, certificate=key, key=key):
            raise AssertionError


async def test_without_proofs_completion_passes(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        answer = await client.ask("completion/complete", {"ref": {}})
        assert answer["result"]["method"] == "completion/complete"
