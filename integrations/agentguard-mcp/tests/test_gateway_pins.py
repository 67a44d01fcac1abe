"""Pins: a tool that is changed or unknown is neither shown nor called."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from gateway_scene import LIMIT, code_of, command, gateway, settings, shown

from agentguard import AgentguardError, Decision, ServerError
from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import Pins, compare, list_tools

ALL = ["echo", "fail", "hang", "crash", "deaf", "ask"]


@pytest.fixture(scope="module")
def pins():
    return list_tools(settings())


async def test_pinned_tools_are_shown_and_called(recorded, pins):
    async with gateway(recorded, settings(pins=pins)) as client:
        assert await client.tools() == ALL
        assert shown(await client.call("echo", "a"))["text"] == "a"


async def test_a_tool_that_is_not_pinned_is_hidden_and_refused_at_the_call(
    recorded, pins, tmp_path
):
    options = {"extra": ["delete"], "ran": str(tmp_path / "ran")}
    async with gateway(recorded, settings(pins=pins, options=options)) as client:
        assert await client.tools() == ALL
        assert code_of(await client.call("delete", "a")) == "tool.unpinned"
        assert code_of(await client.call("nothing", "a")) == "tool.unknown"
        assert shown(await client.call("echo", "a"))["text"] == "a"
    assert (tmp_path / "ran").read_text() == "echo a\n"
    assert [one.code for one in recorded.calls()] == ["tool.unpinned", "tool.unknown", ""]


async def test_a_tool_that_changes_between_the_list_and_the_call_is_refused(
    recorded, pins, tmp_path
):
    options = {"pull_after": 1, "ran": str(tmp_path / "ran")}
    async with gateway(recorded, settings(pins=pins, options=options)) as client:
        assert await client.tools() == ALL
        assert code_of(await client.call("echo", "a")) == "tool.changed"
        assert await client.tools() == ALL[1:]
        assert shown({**await client.call("fail", "b"), "isError": False})["text"] == "b"
    assert (tmp_path / "ran").read_text() == "fail b\n"


async def test_a_tool_that_changes_while_its_call_waits_for_an_approval_is_refused(
    recorded, pins, tmp_path
):
    recorded.decide = lambda _call: Decision.require_approval()
    options = {"pull_after": 1, "ran": str(tmp_path / "ran")}
    async with gateway(recorded, settings(pins=pins, options=options, wait=LIMIT)) as client:
        params = {"name": "echo", "arguments": {"text": "a"}, "_meta": {"progressToken": 7}}
        client.send("tools/call", params, id=1)
        assert (await client.next())["method"] == "notifications/progress"
        recorded.approve()
        assert code_of((await client.answer(1))["result"]) == "tool.changed"
    assert not (tmp_path / "ran").exists()


async def test_without_pins_a_tool_is_held_to_its_first_description(recorded):
    async with gateway(recorded, settings(options={"pull_after": 2})) as client:
        assert shown(await client.call("echo", "a"))["text"] == "a"
        assert await client.tools() == ALL
        assert code_of(await client.call("echo", "a")) == "tool.changed"
        assert await client.tools() == ALL[1:]


async def test_a_list_that_is_new_enough_counts_for_the_next_calls(recorded, pins):
    given = settings(pins=pins, options={"pull_after": 1}, recheck=60)
    async with gateway(recorded, given) as client:
        for _call in range(3):
            assert shown(await client.call("echo", "a"))["text"] == "a"


async def test_a_notice_of_a_change_makes_the_gateway_ask_anew(recorded, pins):
    change = '{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'
    options = {"pull_after": 1, "before": {"ping": [change]}}
    async with gateway(recorded, settings(pins=pins, options=options, recheck=60)) as client:
        assert shown(await client.call("echo", "a"))["text"] == "a"
        await client.ask("ping")
        assert [one["method"] for one in client.notices] == ["notifications/tools/list_changed"]
        assert code_of(await client.call("echo", "a")) == "tool.changed"


async def test_a_tool_with_two_descriptions_is_refused(recorded, pins):
    async with gateway(recorded, settings(pins=pins, options={"twice": True})) as client:
        assert await client.tools() == ALL[1:]
        assert code_of(await client.call("echo", "a")) == "tool.changed"
        assert code_of(await client.call("hidden", "a")) == "tool.unknown"


async def test_the_configuration_chooses_which_tools_a_client_sees(recorded, pins):
    async with gateway(recorded, settings(pins=pins, tools=("e*", "ask"))) as client:
        assert await client.tools() == ["echo", "ask"]
        assert shown(await client.call("echo", "a"))["text"] == "a"
        assert code_of(await client.call("fail", "a")) == "tool.unknown"


async def test_a_prefix_stands_before_the_name_in_the_policy_alone(recorded, pins):
    async with gateway(recorded, settings(pins=pins, prefix="files/")) as client:
        assert await client.tools() == ALL
        assert shown(await client.call("echo", "a"))["params"]["name"] == "echo"
        await client.ask("prompts/get", {"name": "a"})
    actions = [call["action"] for call in recorded.policy_inputs]
    assert actions == ["files/echo", "files/mcp:prompts/get"]


async def test_no_prefix_makes_a_tool_the_start_of_a_server(recorded):
    given = settings(prefix="mcp", options={"extra": [":start"]})
    async with gateway(recorded, given) as client:
        assert ":start" not in await client.tools()
        assert code_of(await client.call(":start", "a")) == "tool.changed"
        assert shown(await client.call("echo", "a"))["text"] == "a"  # the twin
    allowed = [call.tool for call in recorded.calls() if call.decision == "allow"]
    assert allowed == ["mcpecho"]


async def test_the_tables_of_tools_apply_to_a_servers_tools(pins):
    recorded = RecordedGuard.make(tools={"echo": {"origin": "mcp:files"}, "ask": {"origin": "x:y"}})
    async with gateway(recorded, settings(pins=pins)) as client:
        assert await client.tools() == [name for name in ALL if name != "ask"]
        assert shown(await client.call("echo", "a"))["text"] == "a"
        assert code_of(await client.call("ask", "a")) == "tool.changed"
    recorded.guard.close()


async def test_a_server_that_takes_the_name_of_another_servers_tool_gets_no_call(ran):
    recorded = RecordedGuard.make(tools={"echo": {"origin": "mcp:files"}})
    shadowing = settings(server="games", options={"ran": str(ran)})
    async with gateway(recorded, shadowing) as client:
        assert "echo" not in await client.tools()
        assert code_of(await client.call("echo", "a")) == "tool.changed"
        assert shown({**await client.call("fail", "b"), "isError": False})["text"] == "b"
    async with gateway(recorded, settings(server="files")) as client:
        assert "echo" in await client.tools()
        assert shown(await client.call("echo", "a"))["text"] == "a"
    assert ran.read_text() == "fail b\n"
    recorded.require_sound()
    recorded.guard.close()


async def test_a_server_that_does_not_say_its_tools_gets_no_call(recorded, pins):
    given = settings(pins=pins, command=command())
    async with gateway(recorded, replace(given, command=("/bin/cat",), timeout=0.5)) as client:
        assert code_of(await client.call("echo", "a")) == "tool.unlisted"
    async with gateway(recorded, given) as client:
        assert shown(await client.call("echo", "a"))["text"] == "a"


def test_pins_survive_a_file_and_a_change_in_the_file_is_found(pins):
    data = pins.dumps()
    assert Pins.loads(data, "files") == pins
    for changed in (
        data.replace(b"Says what", b"Does what", 1),
        data.replace(b'"files"', b'"other"'),
        data.replace(b"agentguard-mcp-pins/1", b"agentguard-mcp-pins/2"),
        data[:-3],
        b"[]",
        data.replace(b'"server": "files"', b'"server": "files", "server": "files"'),
    ):
        assert changed != data
        with pytest.raises(AgentguardError) as refused:
            Pins.loads(changed, "files")
        assert refused.value.code == "pins.malformed"


def test_a_difference_names_what_is_added_changed_and_removed(pins):
    document = json.loads(pins.dumps())["tools"]
    definitions = {name: one["definition"] for name, one in document.items()}
    definitions["new"] = definitions.pop("ask")
    definitions["fail"] = {**definitions["fail"], "annotations": {"readOnlyHint": True}}
    difference = compare(pins, Pins("files", definitions))
    assert (difference.added, difference.changed, difference.removed) == (
        *(("new",), ("fail",), ("ask",)),
    )
    assert not compare(pins, pins)


@pytest.mark.parametrize("program", [("/bin/false",), ("/bin/cat",), ("/bin/echo", "{}")])
def test_the_probe_of_a_server_that_does_not_answer_ends_with_an_error(program):
    with pytest.raises(ServerError) as failed:
        list_tools(settings(command=program, timeout=1.0))
    assert failed.value.code == "tool.unlisted"


def test_the_probe_of_a_server_that_answers_finds_the_same_tools_twice():
    assert not compare(list_tools(settings()), list_tools(settings()))
