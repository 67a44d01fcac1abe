"""A client of a gateway over HTTP whose connection breaks, and that comes back for the answer."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from gateway_scene import LIMIT, code_of, settings, shown, until
from http_scene import call_of, served, single
from stream_scene import asked, broken, fetched, listening, question_of, reply_to

from agentguard_mcp.gateway.http.server_sent_events import RETRY
from agentguard_mcp.gateway.http.sessions import Sessions

NOTICE = '{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'
TOLD = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}
NOTIFYING = settings(options={"before": {TOLD["method"]: [NOTICE]}})
SLOW = {"extra": ["slow"], "slow": 0.2}


@asynccontextmanager
async def listening_anew(client):
    """Listen once the gateway has seen that the former connection is broken."""
    async with asyncio.timeout(LIMIT):
        while True:
            async with listening(client) as events:
                if events.answer.status_code == 200:
                    yield events
                    return
            await asyncio.sleep(0.01)


async def first_notice(client):
    """Return the first two events of the stream of a GET: its beginning and a notice."""
    async with listening(client) as events:
        begin = await events.next()
        assert (await client.post(TOLD)).status_code == 202
        return begin, await events.next()


@pytest.mark.parametrize("late", [False, True], ids=["while-it-runs", "after-its-end"])
async def test_the_answer_comes_over_another_connection_and_the_call_runs_once(recorded, ran, late):
    given = settings(options={**SLOW, "ran": str(ran)})
    async with served(recorded, given) as gateway:
        client = await gateway.caller().begin()
        last = await broken(client, call_of("slow", "a"))
        if late:
            await until(lambda: recorded.outcomes() == ["ok"])
        status, (answer,) = await fetched(client, last)
        assert (status, answer["id"], shown(answer["result"])["text"]) == (200, "c", "a")
    assert ran.read_text().splitlines().count("slow a") == 1
    assert recorded.outcomes() == ["ok"]
    assert len(recorded.calls()) == 1


async def test_a_stream_begins_with_an_id_and_the_time_after_which_the_client_comes_again(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        async with asked(client, call_of("echo", "a")) as events:
            first, second = await events.next(), await events.next()
            assert (first.message, first.retry) == (None, str(RETRY))
            assert second.message["id"] == "c"
            assert first.identifier != second.identifier
            assert await events.next() is None


async def test_an_older_client_gets_ids_and_no_event_without_a_message(recorded):
    async with served(recorded, settings(options={"revision": "2025-06-18"})) as gateway:
        client = await gateway.caller().begin()
        async with asked(client, call_of("ask", "who?")) as events:
            event = await events.next()
            assert event.message["method"] == "sampling/createMessage"
        assert (await client.post(reply_to(event.message))).status_code == 202
        status, (answer,) = await fetched(client, event.identifier)
        assert (status, shown(answer["result"])["text"]) == (200, "me")


async def test_a_request_of_revision_2026_07_28_has_no_event_ids(recorded):
    message, headers = single("tools/call", {"name": "ask", "arguments": {"text": "who?"}})
    async with served(recorded) as gateway:
        client = gateway.caller(**headers)
        plain = await client.post(
            {**message, "params": {**message["params"], "name": "echo"}}, **{"mcp-name": "echo"}
        )
        assert plain.headers["content-type"] == "application/json"
        headers = {"accept": "text/event-stream", "last-event-id": "x-1"}
        refused = await client.http.get(client.url, headers=headers)
        assert refused.status_code == 405


async def test_a_client_gets_what_follows_the_event_that_it_names(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        async with asked(client, call_of("ask", "who?")) as events:
            begin, question = await events.next(), await events.next()
        assert (await client.post(reply_to(question.message))).status_code == 202
        _, messages = await fetched(client, begin.identifier)
        assert [one["id"] for one in messages] == ["q1", "c"]
        _, messages = await fetched(client, question.identifier)
        assert [one["id"] for one in messages] == ["c"]
    assert recorded.outcomes() == ["ok"]


async def test_one_connection_reads_a_stream_at_a_time(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        async with asked(client, call_of("ask", "who?")) as former:
            await former.next()
            question = await former.next()
            async with listening(client, question.identifier) as latter:
                assert (await latter.next()).message is None
                assert await former.next() is None
                assert (await client.post(reply_to(question.message))).status_code == 202
                assert [one["id"] for one in await latter.rest()] == ["c"]


async def test_two_calls_whose_connections_break_get_an_answer_each(recorded):
    async with served(recorded, settings(options=SLOW)) as gateway:
        client = await gateway.caller().begin()
        calls = [call_of("slow", text, identifier=text) for text in ("a", "b", "c")]
        ids = await asyncio.gather(*(broken(client, call) for call in calls))
        answers = await asyncio.gather(*(fetched(client, last) for last in reversed(ids)))
        texts = [[shown(one["result"])["text"] for one in messages] for _, messages in answers]
        assert texts == [["c"], ["b"], ["a"]]


async def test_the_stream_of_a_get_is_resumed_too(recorded):
    async with served(recorded, NOTIFYING) as gateway:
        client = await gateway.caller().begin()
        begin, first = await first_notice(client)
        assert (await client.post(TOLD)).status_code == 202
        async with listening(client, first.identifier) as events:
            assert (await events.next()).message is None
            second = await events.next()
            assert second.message == first.message
            assert second.identifier not in (begin.identifier, first.identifier)
        async with listening(client, begin.identifier) as events:
            found = [await events.next() for _ in range(3)]
            assert [one.identifier for one in found] == [
                begin.identifier,
                first.identifier,
                second.identifier,
            ]


async def test_a_client_that_listens_anew_gets_no_message_of_its_former_stream(recorded):
    async with served(recorded, NOTIFYING) as gateway:
        client = await gateway.caller().begin()
        begin, first = await first_notice(client)
        async with listening_anew(client) as events:
            other = await events.next()
            assert (await fetched(client, begin.identifier)) == (200, [first.message])
            assert (await client.post(TOLD)).status_code == 202
            assert (await events.next()).identifier.startswith(other.identifier[:-1])


async def test_a_call_without_a_client_counts_until_it_ends(recorded):
    async with served(recorded, settings(calls_at_once=1)) as gateway:
        client, other = await gateway.caller().begin(), await gateway.caller().begin()
        question = await question_of(client)
        assert code_of(await other.call("echo", "b")) == "calls.simultaneous"
        assert (await client.post(reply_to(question.message))).status_code == 202
        await until(lambda: recorded.outcomes() == ["ok"])
        assert shown(await other.call("echo", "b"))["text"] == "b"
        assert len((await fetched(client, question.identifier))[1]) == 1


async def test_requests_without_a_client_count_as_requests_that_wait(recorded, monkeypatch):
    monkeypatch.setattr("agentguard_mcp.gateway.http.endpoint.MAX_PENDING", 1)
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        question = await question_of(client)
        assert (await client.post(call_of("echo", "b", identifier="d"))).status_code == 503
        assert (await client.post(reply_to(question.message))).status_code == 202
        await until(lambda: recorded.outcomes() == ["ok"])
        assert shown(await client.call("echo", "b"))["text"] == "b"


@pytest.fixture
def sessions(monkeypatch):
    """Return the list that has the sessions of the gateway once the gateway serves."""
    made = []

    class Remembered(Sessions):
        def __init__(self, *arguments, **more):
            super().__init__(*arguments, **more)
            made.append(self)

    monkeypatch.setattr("agentguard_mcp.gateway.http.server.Sessions", Remembered)
    return made


async def test_a_session_whose_call_runs_without_a_client_is_not_idle(recorded, sessions):
    def after_a_day(client):
        session = sessions[0].find(client.headers["mcp-session-id"], None)
        session.used_at -= 86_400.0
        sessions[0].end_idle()
        return session

    async with served(recorded) as gateway:
        client, unused = await gateway.caller().begin(), await gateway.caller().begin()
        question = await question_of(client)
        session = after_a_day(client)
        after_a_day(unused)
        # the call counts as use of the session, so that the client has time after its answer
        assert asyncio.get_running_loop().time() - session.used_at < 3_600
        assert (await fetched(unused, question.identifier))[0] == 404
        assert (await client.post(reply_to(question.message))).status_code == 202
        await until(lambda: recorded.outcomes() == ["ok"])
        assert (await fetched(client, question.identifier))[0] == 200
        after_a_day(client)
        assert (await fetched(client, question.identifier))[0] == 404


async def test_a_call_without_a_client_has_time_to_end_when_the_gateway_does(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        question = await question_of(client)
        gateway.stop.set()
        async with listening(client, question.identifier) as events:
            assert events.answer.status_code == 200
            assert (await client.post(reply_to(question.message))).status_code == 202
            assert [one["id"] for one in await events.rest()] == ["c"]
    assert recorded.outcomes() == ["ok"]


async def test_a_client_that_listens_while_the_gateway_ends_does_not_hold_the_end_up(recorded):
    async with served(recorded, drain=LIMIT) as gateway:
        client = await gateway.caller().begin()
        async with asked(client, call_of("ask", "who?")) as events:
            await events.next()
            question = await events.next()
            async with listening(client) as standing:
                begin = await standing.next()
                gateway.stop.set()
                assert await standing.next() is None
            async with listening(client) as refused:
                assert refused.answer.status_code == 503
            assert await fetched(client, begin.identifier) == (200, [])
            assert (await client.post(reply_to(question.message))).status_code == 202
            assert [one["id"] for one in await events.rest()] == ["c"]


async def test_what_came_with_a_request_is_forgotten_with_its_answer(recorded, sessions):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        question = await question_of(client)
        contexts = sessions[0].find(client.headers["mcp-session-id"], None).contexts
        assert await contexts.of(call_of("ask")) is None  # the settings name the caller
        assert (await client.post(reply_to(question.message))).status_code == 202
        await fetched(client, question.identifier)
        assert (await contexts.of(call_of("ask"))).code == "proof.missing"


async def test_a_call_without_a_client_is_cancelled_by_a_notice_alone(recorded, ran):
    async with served(recorded, settings(options={"ran": str(ran)})) as gateway:
        client = await gateway.caller().begin()
        last = await broken(client, call_of("hang"))
        assert shown(await client.call("echo", "b"))["text"] == "b"
        assert "notifications/cancelled" not in ran.read_text()
        params = {"requestId": "c"}
        notice = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
        assert (await client.post(notice)).status_code == 202
        await until(lambda: sorted(recorded.outcomes()) == ["ok", "unknown"])
        assert (await fetched(client, last))[0] == 410


async def test_a_denied_call_is_answered_at_once_and_not_resumed(recorded):
    async with served(recorded) as gateway:
        client = await gateway.caller().begin()
        denied = await client.post(call_of("nothing"))
        assert denied.headers["content-type"] == "application/json"
        assert code_of(denied.json()["result"]) == "tool.unknown"
