"""What a policy decides on is what the server gets: the types, the numbers, the defaults."""

from __future__ import annotations

import json

import pytest
from gateway_scene import code_of, gateway, settings, shown

from agentguard import Decision
from agentguard.adapters import MAX_INTEGER, digest, loads

TOOL = {"type": "object", "properties": {"n": {}, "force": {"type": "boolean", "default": True}}}


def call(text, tool="echo", method="tools/call"):
    """Return the line of a call, with arguments that a test writes itself."""
    params = f'{{"name":"{tool}","arguments":{text}}}'
    return f'{{"jsonrpc":"2.0","id":7,"method":"{method}","params":{params}}}'.encode()


async def sent(client, text, **more):
    client.write(call(text, **more))
    return await client.next()


@pytest.mark.parametrize("value", ["true", 1, '"1"'])
async def test_a_policy_decides_on_no_other_value_than_the_tool_gets(recorded, value):
    recorded.decide = lambda call: (
        Decision.deny() if call["args"].get("force") is True else Decision.allow()
    )
    schema = {"type": "object", "properties": {"force": {"type": "boolean"}}}
    async with gateway(recorded, settings(options={"schema": schema})) as client:
        params = {"name": "echo", "arguments": {"force": value}}
        assert code_of((await client.ask("tools/call", params))["result"]) == "arguments.invalid"
        for force, code in ((True, "policy.denied"), (False, None)):
            given = {"name": "echo", "arguments": {"force": force}}
            result = (await client.ask("tools/call", given))["result"]
            assert (code_of(result) if result["isError"] else None) == code
    assert recorded.outcomes() == ["ok"]


async def test_a_policy_decides_on_the_default_of_an_argument_that_is_left_out(recorded):
    recorded.decide = lambda call: (
        Decision.deny() if call["args"]["force"] is True else Decision.allow()
    )
    async with gateway(recorded, settings(options={"schema": TOOL})) as client:
        assert code_of((await sent(client, "{}"))["result"]) == "policy.denied"
        allowed = shown((await sent(client, '{"force":false}'))["result"])
        assert allowed["params"]["arguments"] == {"force": False}


async def test_a_text_that_a_server_may_read_as_json_is_refused(recorded):
    schema = {"properties": {"data": {"anyOf": [{"type": "string"}, {"type": "array"}]}}}
    async with gateway(recorded, settings(options={"schema": schema})) as client:
        refused = (await sent(client, '{"data":"[1]"}'))["result"]
        assert code_of(refused) == "arguments.invalid"
        assert shown((await sent(client, '{"data":[1]}'))["result"])


def doubles(value):
    """Return a JSON value as a reader reads it whose numbers are doubles, in its one form."""
    return digest(loads(json.dumps(value)))


NUMBERS = [
    *(sign * (2**53 + near) for sign in (1, -1) for near in (-2, -1, 0, 1, 2)),
    *(2**63 - 1, 2**63, 2**64, 2**70, -(2**70), 10**400),
    *(0, 1, -1, 7, 2**31, 2**32, 2**52),
]
FLOATS = ["0.1", "1.0", "-0.0", "1e16", "1e17", "1E+21", "1e22", "5e-324", "1e-7", "1.5e300"]
SHAPES = ['{"n":%s}', '{"n":[1,%s]}', '{"n":{"a":[{"b":%s}]}}']


@pytest.mark.parametrize("shape", SHAPES)
async def test_each_number_that_a_server_gets_is_the_one_that_was_decided(recorded, shape):
    async with gateway(recorded, settings(options={"schema": TOOL})) as client:
        for number in NUMBERS:
            answer = (await sent(client, shape % number))["result"]
            if abs(number) > MAX_INTEGER:
                assert code_of(answer) == "arguments.invalid", number
                text = answer["content"][0]["text"]
                assert "the argument 'n' has an integer beyond 2^53-1" in text
                assert str(number) not in text
            else:
                assert shown(answer)["params"]["arguments"] == json.loads(shape % number)
        for number in FLOATS:
            got = shown((await sent(client, shape % number))["result"])["params"]["arguments"]
            decided = dict(recorded.policy_inputs[-1]["args"])
            del decided["force"]
            assert doubles(got) == doubles(decided) == doubles(json.loads(shape % number))
    assert recorded.outcomes() == ["ok"] * sum(abs(n) <= MAX_INTEGER for n in NUMBERS) + [
        "ok"
    ] * len(FLOATS)


async def test_no_number_of_a_prompt_and_no_id_is_another_one_for_the_server(recorded):
    big = MAX_INTEGER + 2
    async with gateway(recorded) as client:
        refused = await sent(client, f'{{"n":{big}}}', method="prompts/get")
        assert "the argument 'arguments' has an integer" in refused["error"]["message"]
        assert "result" in await sent(client, f'{{"n":{MAX_INTEGER}}}', method="prompts/get")
        client.write(call("{}").replace(b'"id":7', f'"id":{big}'.encode()))
        assert (await client.next())["error"]["message"].endswith("[json.malformed]")
        client.write(call("{}").replace(b'"id":7', f'"id":{MAX_INTEGER}'.encode()))
        assert (await client.next())["id"] == MAX_INTEGER


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("_meta", '{"progressToken":%s}'),
        ("inputResponses", '{"a":{"content":{"amount":%s}}}'),
    ],
)
async def test_no_number_beside_the_arguments_is_another_one_for_the_server(
    recorded, member, value
):
    async with gateway(recorded) as client:
        for number in (MAX_INTEGER + 2, -(2**70)):
            more = f',"{member}":{value % number}}}}}'.encode()
            client.write(call("{}").removesuffix(b"}}") + more)
            refused = (await client.next())["error"]
            assert refused["message"] == f"tools/call: {member} has an integer beyond 2^53-1"
        assert recorded.calls() == []
        answer = await client.call("echo", "a", _meta={"progressToken": MAX_INTEGER})
        assert shown(answer)["params"]["_meta"] == {"progressToken": MAX_INTEGER}


@pytest.mark.parametrize("number", [2**53 + 1, 2**64, 2**70, -(2**70)])
async def test_what_passes_without_a_decision_keeps_its_digits(recorded, number):
    async with gateway(recorded) as client:
        params = {"argument": {"value": number}}
        answer = await client.ask("completion/complete", params)  # the server sends it back
        assert answer["result"]["params"]["argument"] == {"value": number}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"n":1,"n":2}', "json.duplicate_key"),
        ('{"n":{"a":1,"a":2}}', "json.duplicate_key"),
        ('{"n":1e400}', "json.number"),
        ('{"n":-1e400}', "json.number"),
        ('{"n":NaN}', "json.number"),
        ('{"n":Infinity}', "json.number"),
        ('{"n":"\\ud800"}', "json.surrogate"),
        ('{"\\udc00":1}', "json.surrogate"),
        ('{"n":"\\ud83d\\ude00"}', None),
    ],
)
async def test_what_two_readers_read_in_two_ways_is_no_message(recorded, text, code):
    async with gateway(recorded, settings(options={"schema": TOOL})) as client:
        answer = await sent(client, text)
        if code is None:
            assert shown(answer["result"])["params"]["arguments"] == json.loads(text)
        else:
            assert answer["error"]["message"].endswith(f"[{code}]")
            assert recorded.calls() == []


async def test_an_answer_of_two_meanings_is_none(recorded):
    lines = [
        '{"jsonrpc":"2.0","id":7,"result":{"a":1},"result":{"a":2}}',
        '{"jsonrpc":"2.0","id":7,"result":{"a":1e400}}',
        '{"jsonrpc":"2.0","id":7,"result":{"a":"\\udc00"}}',
        '{"jsonrpc":"2.0","id":7,"result":{"a":3}}',
    ]
    given = settings(options={"before": {"ping": lines}})
    async with gateway(recorded, given) as client:
        client.send("ping", id=7)
        assert (await client.next())["result"] == {"a": 3}


BAD = {"type": "object", "properties": {"force": {"$ref": "https://evil.example/flag"}}}


async def test_a_tool_whose_schema_can_not_be_checked_is_in_no_list(recorded, caplog):
    async with gateway(recorded, settings(options={"schema": BAD})) as client:
        assert await client.tools() == []
        assert code_of(await client.call("echo", "a")) == "tool.uncheckable"
    said = "the tool echo of the MCP server files is left out: the schema of the tool can't be used"
    assert f"{said} to check arguments: it refers to another document" in caplog.text
    assert recorded.outcomes() == []
    async with gateway(recorded, settings(options={"schema": TOOL})) as client:
        assert "echo" in await client.tools()
        assert shown((await sent(client, "{}"))["result"])


async def test_a_tool_whose_description_has_no_one_form_is_in_no_list(recorded):
    schema = {"type": "object", "properties": {"n": {"maximum": 2**63 - 1}}}
    async with gateway(recorded, settings(options={"schema": schema})) as client:
        assert await client.tools() == []
        assert code_of(await client.call("echo", "a")) == "tool.uncheckable"


async def test_the_schemas_of_a_server_are_checked_for_so_long_and_no_longer(recorded, monkeypatch):
    monkeypatch.setattr("agentguard_mcp.gateway.catalog.MAX_CHECKING", 0.0)
    async with gateway(recorded, settings(options={"schema": TOOL})) as client:
        assert await client.tools() == ["echo"]
        assert code_of(await client.call("fail", "a")) == "tool.uncheckable"
        assert shown(await client.call("echo", "a"))


async def test_a_tool_whose_schema_was_checked_too_slowly_comes_back(recorded, monkeypatch, caplog):
    schema = {"type": "object", "properties": {"text": {"title": "of a busy moment"}}}
    async with gateway(recorded, settings(options={"schema": schema})) as client:
        with monkeypatch.context() as busy:
            busy.setattr("agentguard_mcp.schemas.SECONDS", -1.0)
            assert [await client.tools(), await client.tools()] == [[], []]
            assert code_of(await client.call("echo", "a")) == "tool.uncheckable"
        monkeypatch.setattr("agentguard_mcp.schemas.RETRY", 1e-3)  # a minute is over
        assert "echo" in await client.tools()
        assert shown(await client.call("echo", "a"))
    said = [one.getMessage() for one in caplog.records if one.name == "agentguard.mcp"]
    assert sum(one.startswith("the tool echo of") for one in said) == 1
