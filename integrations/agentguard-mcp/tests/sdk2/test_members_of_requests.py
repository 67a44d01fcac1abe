"""Each member of each request of each revision is bound to the call, or does not reach the server.

The members are those of the specification's schemas, as the SDK 2 has them (``CLIENT_REQUESTS`` and
``CLIENT_NOTIFICATIONS``); the SDK reads all revisions with ``initialize`` by the schema of
2025-11-25, the largest of them. Each request also gets a member that no schema has. "Bound" is
tried out: an approval for the request without the member, or with another value, does not count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from gateway_scene import gateway, settings
from mcp_scene import code_of, exchange, low
from mcp_types import _v2026_07_28 as newest
from mcp_types.methods import CLIENT_NOTIFICATIONS, CLIENT_REQUESTS

from agentguard import Decision
from agentguard.proof import CallReceiver, prove_call
from agentguard.testing import RecordedGuard
from agentguard_mcp import messages, params
from agentguard_mcp.gateway import methods
from agentguard_mcp.messages import RefusedRequestError
from agentguard_mcp.params import GUARDED, MODERN, ROUND, STANDARD
from agentguard_mcp.request_guard import RequestGuard, ToolDescription

SURPLUS = "surplus"
VALUES: dict[str, Any] = {
    "arguments": {"text": "other"},
    "inputResponses": {"q": {"action": "accept", "content": {"amount": 1_000_000}}},
    "name": "extra",
    "requestState": '{"to": "mallory"}',
    "task": {"ttl": 1},
    "uri": "file:///other",
}
BASES: dict[str, dict[str, Any]] = {
    "tools/call": {"name": "echo", "arguments": {"text": "a"}},
    "resources/read": {"uri": "file:///a"},
    "prompts/get": {"name": "p", "arguments": {"text": "a"}},
}
META_OF_MCP = {field.alias or name for name, field in newest.RequestMetaObject.model_fields.items()}
META_OF_MCP |= {"traceparent", "tracestate", "baggage"}
META = META_OF_MCP | {
    SURPLUS,
    "fastmcp",
    f"{STANDARD}surplus",
    f"{STANDARD}related-task",
    "dev.agentguard/code",
    "dev.agentguard/surplus",
}


def members_of(model: Any) -> set[str]:
    """Return the members of the params of a request that a schema has, without ``_meta``."""
    annotation = model.model_fields["params"].annotation
    kinds = [one for one in getattr(annotation, "__args__", (annotation,)) if one is not type(None)]
    named = {field.alias or name for kind in kinds for name, field in kind.model_fields.items()}
    return named - {"_meta"}


def meta_of(revision: str) -> dict[str, Any]:
    """Return the ``_meta`` with which a client of a revision sends each request."""
    if revision != MODERN:
        return {}
    meta = {
        "protocolVersion": revision,
        "clientCapabilities": {},
        "clientInfo": {"name": "c", "version": "1"},
    }
    return {"_meta": {f"{STANDARD}{key}": value for key, value in meta.items()}}


REQUESTS = {key: members_of(model) for key, model in CLIENT_REQUESTS.items()}
GUARDED_REQUESTS = sorted(key for key in REQUESTS if key[0] in GUARDED)
PASSED_REQUESTS = sorted(REQUESTS.keys() - GUARDED_REQUESTS)
BY_METHOD: dict[str, set[str]] = {}
for (one_method, _revision), found in REQUESTS.items():
    BY_METHOD.setdefault(one_method, set()).update(found - {"task"})


def test_the_lists_of_the_gateway_have_what_the_schemas_have():
    notices = {
        method: members_of(model) for (method, _), model in sorted(CLIENT_NOTIFICATIONS.items())
    }
    assert {**BY_METHOD, **notices} == params.MEMBERS
    assert {*notices} == {*params.CLIENT_NOTICES}
    assert {*GUARDED} == {"prompts/get", "resources/read", "tools/call"}
    assert {revision for _method, revision in REQUESTS} == {*methods.LEGACY, MODERN}


def altered(method: str, member: str) -> dict[str, Any]:
    return {**BASES[method], member: VALUES.get(member, "other")}


@pytest.fixture
def recorded() -> Iterator[RecordedGuard]:
    """Return a guard that allows each call."""
    made = RecordedGuard.make()
    yield made
    made.require_sound()
    made.guard.close()


def is_answered(answer: dict[str, Any]) -> bool:
    """Whether a request has run on the scripted server."""
    return "result" in answer and not answer["result"].get("isError")


# --- the gateway ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "revision"), GUARDED_REQUESTS, ids=str)
async def test_an_approval_at_the_gateway_covers_each_member(recorded, method, revision):
    recorded.decide = lambda _call: Decision.require_approval()
    given = settings(options={"extra": ["extra"]}, rounds=("*",))
    tried = REQUESTS[method, revision] | ROUND | {SURPLUS}
    async with gateway(recorded, given) as client:
        if revision != MODERN:
            await client.ask("initialize", {"protocolVersion": revision})

        async def ask(changed: dict[str, Any]) -> dict[str, Any]:
            return await client.ask(method, {**changed, **meta_of(revision)})

        for member in sorted(tried):
            assert not is_answered(await ask(BASES[method]))
            recorded.approve()
            assert not is_answered(await ask(altered(method, member))), member
            assert is_answered(await ask(BASES[method])), member
    beside = [[*call["args"]["$mcp"]] for call in recorded.policy_inputs if "$mcp" in call["args"]]
    assert beside == [[one] for one in sorted(ROUND) if revision == MODERN]


@pytest.mark.parametrize(("method", "revision"), GUARDED_REQUESTS, ids=str)
async def test_no_key_of_meta_reaches_a_server_behind_the_gateway_but_those_of_mcp(
    recorded, method, revision
):
    """Also not one of MCP's with a value of another type than the specification gives it."""
    async with gateway(recorded) as client:
        for key in sorted(META):
            for value in ("text", {"to": "mallory"}):
                meta = {**meta_of(revision).get("_meta", {}), key: value}
                answer = await client.ask(method, {**BASES[method], "_meta": meta})
                reached = received(answer).get("_meta", {})
                is_typed = isinstance(value, dict) is ("/client" in key)
                assert (key in reached) is (key in META_OF_MCP and is_typed), key


def received(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the params that the scripted server has received."""
    result = answer["result"]
    shown: dict[str, Any] = (
        json.loads(result["content"][0]["text"]) if "content" in result else result
    )
    return shown["params"]


@pytest.mark.parametrize(("method", "revision"), PASSED_REQUESTS, ids=str)
async def test_what_passes_undecided_has_what_the_schemas_have_alone(recorded, method, revision):
    async with gateway(recorded) as client:
        for member in sorted(REQUESTS[method, revision]):
            passed = await client.ask(method, {member: {}, **meta_of(revision)})
            assert "result" in passed
        for member in sorted(({SURPLUS, "task"} | ROUND) - BY_METHOD[method]):
            refused = await client.ask(method, {member: "x", **meta_of(revision)})
            assert refused["error"]["code"] == -32602
        kept = meta_of(revision).get("_meta", {})
        meta = dict.fromkeys(META - META_OF_MCP, "x") | kept
        answer = (await client.ask(method, {"_meta": meta}))["result"]
        assert answer.get("params", answer.get("seen", {})).get("_meta", {}) == kept
    assert recorded.calls() == []


@pytest.mark.parametrize("method", sorted(params.CLIENT_NOTICES))
async def test_a_notice_reaches_the_server_without_a_member_that_it_does_not_have(
    recorded, tmp_path, method
):
    ran = tmp_path / "ran"
    options = {"ran": str(ran), "whole": True}
    given = dict.fromkeys(params.MEMBERS[method], "x")
    if method == "notifications/cancelled":
        options["silent"] = ["ping"]
    async with gateway(recorded, settings(options=options)) as client:
        if method == "notifications/cancelled":
            client.send("ping", id="x")
        client.send(method, {**given, SURPLUS: 1, "_meta": dict.fromkeys(META - META_OF_MCP, 1)})
        await client.ask("prompts/list")
    name, _space, sent = ran.read_text().strip().partition(" ")
    assert (name, json.loads(sent)) == (method, given)


# --- guard_server ---------------------------------------------------------------------------------


class Guarded:
    """The guard of a server, which asks for an approval of each request."""

    def __init__(self, scene: Any, *, rounds: tuple[str, ...] = ("*",)) -> None:
        self.scene = scene
        self.runs = 0
        scene.log.decide = lambda _call: Decision.require_approval()
        receiver = CallReceiver(scene.audience, scene.domain.trust, scene.new_store())
        self.requests = RequestGuard(
            scene.guard,
            receiver,
            agent="mcp-server",
            server="s",
            lists_for_all=True,
            rounds=rounds,
        )

    async def ask(self, method: str, given: dict[str, Any], revision: str) -> str | None:
        """Send a request with a proof, and return the reason code; None for one that has run."""
        meta = {**meta_of(revision).get("_meta", {}), **given.get("_meta", {})}

        async def prove() -> Any:
            return prove_call(self.scene.audience, method, {**given, "_meta": meta})

        async def describe(_name: str, _listed: object) -> ToolDescription:
            return ToolDescription("Says.", {"type": "object"})

        async def run() -> Any:
            self.runs += 1
            return {}

        proved = await self.scene.within(prove)
        try:
            await self.requests.answer(method, proved, describe, run, revision=revision)
        except RefusedRequestError as error:
            self.waiting = error.request_id
            return error.code
        return None


def of_guard_server(method: str) -> dict[str, Any]:
    return BASES.get(method, dict.fromkeys(sorted(BY_METHOD[method]), "a"))


@pytest.mark.parametrize(
    ("method", "revision"),
    sorted(key for key in REQUESTS if not messages.is_open(key[0])),
    ids=str,
)
async def test_an_approval_of_a_guarded_server_covers_each_member(make, method, revision):
    server, base = Guarded(make("sdk")), of_guard_server(method)
    tried: list[dict[str, Any]] = [
        {**base, member: VALUES.get(member, "other")}
        for member in sorted(REQUESTS[method, revision] | ROUND | {SURPLUS})
    ]
    tried += [
        {**base, "_meta": {key: {"to": "mallory"}}}
        for key in sorted(META)
        if not key.startswith("dev.agentguard/") and "client" not in key
    ]
    for number, changed in enumerate(tried):
        assert await server.ask(method, base, revision) == "approval.pending"
        server.scene.approve(server.waiting)
        assert await server.ask(method, changed, revision) is not None, changed
        assert server.runs == number
        assert await server.ask(method, base, revision) is None


@pytest.mark.parametrize("method", sorted(key for key in params.MEMBERS if messages.is_open(key)))
async def test_an_open_method_of_a_guarded_server_takes_no_other_member(make, method):
    server = Guarded(make("sdk"))
    for member in sorted(params.MEMBERS[method]):
        assert await server.ask(method, {member: "a"}, MODERN) is None
    for member in sorted(ROUND | {SURPLUS}):
        assert await server.ask(method, {member: "a"}, MODERN) == "arguments.invalid"
    assert await server.ask(method, {"task": {}}, MODERN) == "tool.unguarded"


@pytest.mark.parametrize("kind", ["sdk", "fastmcp"])
async def test_what_a_guarded_server_hands_on_has_no_key_of_meta_that_nobody_decides_on(make, kind):
    scene = make(kind)
    scene.log.decide = lambda _call: Decision.allow()
    seen: list[Any] = []

    async def look(ctx: Any, call_next: Any) -> Any:
        seen.append((ctx.method, dict(ctx.params or {}).get("_meta", {}), dict(ctx.meta or {})))
        return await call_next(ctx)

    low(scene.server).middleware.append(look)
    meta = meta_of(MODERN)["_meta"] | dict.fromkeys(META - META_OF_MCP - {"fastmcp"}, "x")
    await exchange(scene.server, {"_meta": {**meta, "progressToken": 3}}, "tools/list")

    async def prove() -> Any:
        return prove_call(scene.audience, "tools/call", {"name": "look", "_meta": meta})

    assert code_of(await exchange(scene.server, await scene.within(prove))) is None
    (_list, listed, listed_meta), (_call, called, called_meta) = seen
    assert listed == {**meta_of(MODERN)["_meta"], "progressToken": 3}
    assert SURPLUS not in listed_meta
    assert "progress_token" in listed_meta
    beside = scene.log.policy_inputs[-1]["args"]["$mcp"]["_meta"]
    assert {key for key in called if key not in META_OF_MCP} == beside.keys()
    assert not any(key.startswith("dev.agentguard/") for key in (*called, *called_meta))
