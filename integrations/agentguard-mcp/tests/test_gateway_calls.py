"""A call through the gateway is decided, logged and forwarded once; all else passes."""

from __future__ import annotations

from contextlib import closing

import pytest
from gateway_scene import CODE, LIMIT, code_of, gateway, settings, shown, until

from agentguard import Decision, Denied
from agentguard.testing import RecordedGuard


async def test_an_allowed_call_runs_and_a_denied_one_does_not(recorded, ran):
    recorded.decide = lambda call: (
        Decision.allow() if call["args"]["text"] == "good" else Decision.deny("only good texts")
    )
    async with gateway(recorded, settings(options={"ran": str(ran)})) as client:
        allowed = await client.call("echo", "good")
        denied = await client.call("echo", "bad")
    assert shown(allowed)["text"] == "good"
    assert code_of(denied) == "policy.denied"
    assert "only good texts" in denied["content"][0]["text"]
    assert ran.read_text() == "echo good\n"
    assert [(one.tool, one.decision) for one in recorded.calls()] == [
        ("echo", "allow"),
        ("echo", "deny"),
    ]
    assert recorded.outcomes() == ["ok"]
    assert recorded.calls()[0].predicate["tool"]["origin"] == "mcp:files"


async def test_resources_and_prompts_are_guarded_calls_too(recorded, ran):
    recorded.decide = lambda call: (
        Decision.deny() if "secret" in str(call["args"]) else Decision.allow()
    )
    async with gateway(recorded, settings(options={"ran": str(ran)})) as client:
        read = await client.ask("resources/read", {"uri": "file:///notes"})
        unread = await client.ask("resources/read", {"uri": "file:///secret"})
        prompt = await client.ask("prompts/get", {"name": "greet", "arguments": {"who": "me"}})
        unasked = await client.ask("prompts/get", {"name": "secret"})
    assert read["result"]["params"] == {"uri": "file:///notes"}
    assert prompt["result"]["params"] == {"name": "greet", "arguments": {"who": "me"}}
    for refused in (unread, unasked):
        assert refused["error"]["data"] == {CODE: "policy.denied"}
    assert ran.read_text() == "resources/read file:///notes\nprompts/get greet\n"
    assert [call["action"] for call in recorded.policy_inputs] == [
        *(["mcp:resources/read"] * 2 + ["mcp:prompts/get"] * 2),
    ]


async def test_the_agent_acts_for_the_principal_of_the_configuration(tmp_path):
    recorded = RecordedGuard.make(
        roles={"reader": {"scope": ["files:read"]}},
        principals={"user:alice": {"roles": ["reader"]}, "user:eve": {"roles": []}},
        agents={"assistant": {"authority": "delegated", "max_scope": ["files:read", "x:y"]}},
        tools={"fail": {"requires": ["x:y"]}},
    )
    given = settings(principal="user:alice", task_id="ticket-7")
    async with gateway(recorded, given) as client:
        assert "fail" not in await client.tools()
        assert shown(await client.call("echo", "a"))["text"] == "a"
        assert code_of(await client.call("fail", "a")) == "scope.exceeded"
    async with gateway(recorded, settings(principal="user:eve")) as client:
        assert code_of(await client.call("echo", "a")) == "scope.exceeded"
    async with gateway(recorded, settings()) as client:
        assert code_of(await client.call("echo", "a")) == "delegation.missing"
    first = recorded.calls()[0]
    assert (first.principal, first.predicate["task_id"]) == ("user:alice", "ticket-7")
    recorded.guard.close()


async def test_a_tool_that_reports_an_error_has_failed(recorded):
    async with gateway(recorded) as client:
        result = await client.call("fail", "a")
        assert result["isError"] is True
        assert "_meta" not in result
    assert recorded.outcomes() == ["error"]


async def test_all_else_passes_in_both_directions(recorded):
    async with gateway(recorded) as client:
        hello = {"protocolVersion": "2025-11-25", "capabilities": {"roots": {}, "tasks": {}}}
        result = (await client.ask("initialize", hello))["result"]
        assert result["seen"] == {**hello, "capabilities": {"roots": {}}}
        assert result["capabilities"] == {"tools": {"listChanged": True}}
        odd = [1, 2.5, None, "é"]
        for method, params in (
            ("ping", {}),
            ("prompts/list", {"cursor": odd}),
            ("completion/complete", {"ref": odd, "argument": odd}),
            ("server/discover", {"_meta": {"progressToken": 1}}),
        ):
            answer = await client.ask(method, params)
            assert answer["result"] == {"method": method, "params": params}
        client.send("tools/call", {"name": "ask", "arguments": {"text": "hi"}}, id="c1")
        asked = await client.next()
        assert (asked["method"], asked["params"]) == ("sampling/createMessage", {"prompt": "hi"})
        client.writer.write(b'{"jsonrpc":"2.0","id":"q1","result":{"said":"yes"}}\n')
        assert shown((await client.answer("c1"))["result"])["text"] == "yes"
    assert recorded.outcomes() == ["ok"]


@pytest.mark.parametrize("method", ["tasks/get", "tasks/result", "files/format", "roots/list"])
async def test_a_method_that_the_gateway_does_not_know_does_not_pass(recorded, method):
    async with gateway(recorded) as client:
        assert (await client.ask(method))["error"]["code"] == -32601
        assert "result" in await client.ask("prompts/list")


async def test_a_call_as_a_task_does_not_run(recorded, ran):
    async with gateway(recorded, settings(options={"ran": str(ran)})) as client:
        answer = await client.ask("tools/call", {"name": "echo", "task": {"ttl": 1}})
        assert answer["error"]["code"] == -32602
        await client.call("echo", "plain")
    assert ran.read_text() == "echo plain\n"


async def test_a_server_that_answers_with_a_task_leaves_the_call_in_doubt(recorded):
    async with gateway(recorded, settings(options={"extra": ["task"]})) as client:
        assert code_of(await client.call("task")) == "tool.lost"
        assert shown(await client.call("echo", "a"))["text"] == "a"
    assert recorded.outcomes() == ["unknown", "ok"]


async def test_a_cancelled_call_is_cancelled_at_the_server_and_its_outcome_is_unknown(
    recorded, ran
):
    async with gateway(recorded, settings(options={"ran": str(ran)})) as client:
        client.send("tools/call", {"name": "hang"}, id="slow")
        await until(ran.exists)
        client.send("notifications/cancelled", {"requestId": "slow"})
        client.send("notifications/cancelled", {"requestId": "of nobody"})
        await client.call("echo", "next")
    assert ran.read_text() == 'hang \nnotifications/cancelled "slow"\necho next\n'
    assert recorded.outcomes() == ["unknown", "ok"]


async def test_a_server_that_hangs_leaves_the_call_in_doubt(recorded):
    async with gateway(recorded, settings(timeout=0.3)) as client:
        await client.awake()
        result = await client.call("hang", "a")
        assert code_of(result) == "tool.timeout"
        assert shown(await client.call("echo", "b"))["text"] == "b"
    assert recorded.outcomes() == ["unknown", "ok"]


async def test_many_calls_at_once_each_get_their_own_answer(recorded):
    async with gateway(recorded) as client:
        for number in range(30):
            client.send(
                "tools/call", {"name": "echo", "arguments": {"text": str(number)}}, id=number
            )
        answers = [await client.next() for _ in range(30)]
    assert {one["id"]: shown(one["result"])["text"] for one in answers} == {
        number: str(number) for number in range(30)
    }
    assert recorded.outcomes() == ["ok"] * 30


async def test_a_modern_request_needs_no_initialize(recorded):
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    recorded.decide = lambda call: (
        Decision.deny() if call["args"]["text"] == "bad" else Decision.allow()
    )
    async with gateway(recorded) as client:
        assert shown(await client.call("echo", "a", _meta=meta))["params"]["_meta"] == meta
        assert (await client.call("echo", "bad", _meta=meta))["resultType"] == "complete"
        assert "resultType" not in await client.call("echo", "bad")


async def test_a_call_that_needs_an_approval_runs_once_somebody_has_approved(recorded, ran):
    recorded.decide = lambda _call: Decision.require_approval()
    async with gateway(recorded, settings(options={"ran": str(ran)})) as client:
        for _try in range(3):  # a client that tries again executes nothing
            waiting = await client.call("echo", "a")
            assert code_of(waiting) == "approval.pending"
        (request,) = recorded.guard.approvals.pending()
        assert waiting["_meta"]["dev.agentguard/request"] == request.request_id
        assert not ran.exists()
        recorded.approve()
        assert code_of(await client.call("echo", "b")) == "approval.pending"
        assert shown(await client.call("echo", "a"))["text"] == "a"
        assert code_of(await client.call("echo", "a")) == "approval.pending"
    assert ran.read_text() == "echo a\n"


async def test_a_call_waits_for_an_approval_as_long_as_the_configuration_says(recorded):
    recorded.decide = lambda _call: Decision.require_approval()
    async with gateway(recorded, settings(wait=LIMIT)) as client:
        params = {"name": "echo", "arguments": {"text": "a"}, "_meta": {"progressToken": 7}}
        client.send("tools/call", params, id=1)
        notice = await client.next()
        assert notice["method"] == "notifications/progress"
        assert notice["params"]["progressToken"] == 7
        (request,) = recorded.guard.approvals.pending()
        assert request.request_id in notice["params"]["message"]
        recorded.approve()
        assert shown((await client.answer(1))["result"])["text"] == "a"
    async with gateway(recorded, settings(wait=0.1)) as client:
        assert code_of(await client.call("echo", "b")) == "approval.pending"
    assert recorded.outcomes() == ["ok"]


async def test_a_call_that_a_client_makes_again_while_it_runs_runs_once(recorded, ran):
    options = {"ran": str(ran), "extra": ["slow"], "slow": 0.1}
    async with gateway(recorded, settings(options=options)) as client:
        for number in range(3):
            params = {
                "name": "slow",
                "arguments": {"text": "a"},
                "_meta": {"progressToken": number},
            }
            client.send("tools/call", params, id=number)
        client.send("tools/call", {"name": "slow", "arguments": {"text": "b"}}, id=3)
        client.send("notifications/cancelled", {"requestId": 0})
        answers = {}
        for _answer in range(3):
            message = await client.next()
            answers[message["id"]] = shown(message["result"])["text"]
        assert answers == {1: "a", 2: "a", 3: "b"}
        assert shown(await client.call("slow", "a"))["text"] == "a"  # a call of its own
    assert sorted(ran.read_text().splitlines()) == ["slow a", "slow a", "slow b"]
    assert recorded.outcomes() == ["ok"] * 3


async def test_calls_that_are_cancelled_at_once_take_no_place_of_later_ones(recorded):
    params = {"name": "echo", "arguments": {"text": "a"}}
    async with gateway(recorded) as client:
        for batch in range(12):
            for number in range(100):
                identifier = f"{batch} {number}"
                client.send("tools/call", params, id=identifier)
                client.send("notifications/cancelled", {"requestId": identifier})
            await client.ask("ping")
        assert shown(await client.call("echo", "b"))["text"] == "b"


async def test_an_error_of_the_server_is_no_error_of_the_connection(recorded):
    async with gateway(recorded, settings(options={"extra": ["broken"]})) as client:
        result = await client.call("broken")
        assert code_of(result) == "tool.error"
        assert "it broke" in result["content"][0]["text"]
    assert recorded.outcomes() == ["error"]


@pytest.mark.parametrize("code", [-32601, -32602, -32021, -32042])
async def test_an_error_by_which_the_client_acts_stays_an_error(recorded, code):
    async with gateway(recorded, settings(options={"extra": ["broken"]})) as client:
        passed = await client.ask(
            "tools/call", {"name": "broken", "arguments": {"text": str(code)}}
        )
        assert passed["error"] == {"code": code, "message": "it broke"}
    assert recorded.outcomes() == ["error"]


@pytest.mark.parametrize("prefix", ["", "files/"])
async def test_a_server_gets_its_secrets_by_a_guarded_call_on_record(tmp_path, prefix):
    file = tmp_path / "token"
    file.write_text("s3cr3t-t0ken\n")
    file.chmod(0o600)
    recorded = RecordedGuard.make(
        secrets={"GITLAB": {"file": str(file), "tools": ["mcp:start"]}},
    )
    given = settings(secrets={"TOKEN": "GITLAB"}, prefix=prefix)
    async with gateway(recorded, given) as client:
        assert "TOKEN" in shown(await client.call("echo", "a"))["environment"]
    start = recorded.policy_inputs[0]
    assert (start["action"], start["args"]["server"]) == ("mcp:start", "files")
    assert recorded.policy_inputs[-1]["action"] == f"{prefix}echo"
    with closing(recorded.guard.reader()) as reader:
        stored = [one.data for entry in reader.stored() for one in entry.attachments]
    assert stored
    assert not [data for data in stored if b"s3cr3t" in data]
    assert [entry.kind for entry in recorded._entries()].count("secret") == 1
    recorded.decide = lambda _call: Decision.deny("no server starts")
    with pytest.raises(Denied):
        async with gateway(recorded, given) as client:
            await client.next()
    recorded.guard.close()
