"""The spans of guarded calls, as an SDK exports them. Agents' runs are in test_telemetry_runs.py,
metrics in test_telemetry_metrics.py.
"""

from __future__ import annotations

import asyncio
import json
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import pytest
from exported import Place, ids, traceparent
from opentelemetry import context, trace
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.trace import StatusCode

from agentguard import ApprovalPending, Denied, adapters, telemetry
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard.audit import merkle
from agentguard.identity.credential import agent_alias


def rfc3339(seconds):
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def test_an_allowed_call_is_one_span_that_says_who_what_and_where_the_evidence_is(
    place: Place, spans
):
    assert place.call() == "pushed fix"
    span = spans.one("execute_tool push")
    assert spans.tree() == ["execute_tool push"]
    index, call = place.recorded()
    predicate = call.predicate
    attributes = dict(span.attributes)
    origin, size, root = attributes.pop("agentguard.audit.checkpoint").split(" ")
    assert attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "push",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.call.id": "push#1",
        "agentguard.actor": agent_alias(place.agent.id),
        "gen_ai.agent.name": "reviewer",
        "agentguard.agent.id": place.agent.id,
        "agentguard.agent.type": "code-agent",
        "agentguard.principal.id": "agent:reviewer",
        "agentguard.delegation.chain": "agent:reviewer",
        "agentguard.delegation.depth": 0,
        "agentguard.invocation.id": predicate["invocation_id"],
        "agentguard.invocation.sha256": call.invocation_sha256,
        "agentguard.policy.decision": "allow",
        "agentguard.policy.digest": call.policy_sha256,
        "agentguard.audit.index": index,
        "agentguard.outcome.status": "ok",
    }
    assert predicate["traceparent"] == traceparent(span)
    assert span.status.status_code is StatusCode.UNSET
    assert [event.name for event in span.events] == ["policy.decision"]
    with closing(place.guard.reader()) as reader:  # a checkpoint of the log, with the entry in it
        bodies = [body for _index, body in reader.entries()][: int(size)]
    tree = merkle.CompactRange()
    for body in bodies:
        tree.append(merkle.leaf_hash(body))
    assert (origin, root) == (place.guard.trust.log, b64encode(tree.root()).decode())
    assert int(size) > index


def test_a_denial_is_an_error_with_its_reason_code(place, spans):
    with pytest.raises(Denied):
        place.call("main")
    span = spans.one("execute_tool push")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "denied: policy.denied"
    assert span.attributes["error.type"] == "policy.denied"
    assert span.attributes["agentguard.failure"] == "denied"
    assert span.attributes["agentguard.policy.decision"] == "deny"
    assert span.attributes["agentguard.audit.index"] == place.recorded()[0]
    assert "agentguard.outcome.status" not in span.attributes
    (event,) = span.events
    assert dict(event.attributes) == {
        "agentguard.policy.decision": "deny",
        "agentguard.policy.code": "policy.denied",
        "agentguard.policy.digest": place.recorded()[1].policy_sha256,
    }


def test_a_call_without_authority_is_an_error_as_well(place, spans):
    with pytest.raises(Denied):
        place.guard.new_agent("tester").call(place.push, branch="fix")
    span = spans.one("execute_tool push")
    assert span.attributes["error.type"] == "delegation.missing"
    assert span.attributes["agentguard.agent.type"] == "test-agent"


def test_what_a_tool_raises_is_an_error_of_its_type_alone(place, spans):
    def fail(_branch):
        raise LookupError("the text may tell secrets")

    place.does = fail
    with pytest.raises(LookupError):
        place.call()
    span = spans.one("execute_tool push")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "tool error: LookupError"
    assert span.attributes["error.type"] == "LookupError"
    assert span.attributes["agentguard.failure"] == "tool_error"
    assert span.attributes["agentguard.policy.decision"] == "allow"
    assert span.attributes["agentguard.outcome.status"] == "error"
    assert [event.name for event in span.events] == ["policy.decision"]


def test_what_a_tool_was_denied_inside_is_the_tools_error(place, spans):
    other = place.guard.new_agent("tester")
    place.does = lambda _branch: other.call(place.push, branch="fix")
    with pytest.raises(Denied):
        place.call()
    inner, outer = spans.named("execute_tool push")
    assert inner.attributes["error.type"] == "delegation.missing"
    assert outer.attributes["error.type"] == "agentguard.call.decision.Denied"
    failures = [span.attributes["agentguard.failure"] for span in (inner, outer)]
    assert failures == ["denied", "tool_error"]
    assert inner.parent.span_id == outer.context.span_id


def test_a_call_that_waits_is_no_error_and_goes_on_in_its_trace(place, spans):
    tracer = trace.get_tracer("an application")
    with tracer.start_as_current_span("the request"):
        request = place.ask()
    waiting = spans.one("execute_tool push")
    assert request.traceparent == traceparent(waiting)
    assert waiting.status.status_code is StatusCode.UNSET
    assert waiting.attributes["agentguard.approval.status"] == "pending"
    assert waiting.attributes["agentguard.approval.id"] == request.request_id
    assert waiting.attributes["agentguard.policy.decision"] == "approval"
    ((index, _entry),) = place.entries("request")
    assert waiting.attributes["agentguard.audit.index"] == index
    assert [event.name for event in waiting.events] == ["policy.decision", "approval.requested"]

    answered = place.guard.approvals.approve(request, place.bob)
    with tracer.start_as_current_span("another request") as another:
        assert place.call("release") == "pushed release"
    _, resumed = spans.named("execute_tool push")
    assert resumed.context.trace_id == waiting.context.trace_id
    assert resumed.parent.span_id == waiting.context.span_id
    links = {link.attributes["agentguard.link"]: link.context.span_id for link in resumed.links}
    assert links == {
        "paused": waiting.context.span_id,
        "caller": another.get_span_context().span_id,
    }
    assert resumed.attributes["agentguard.approval.status"] == "approved"
    assert resumed.attributes["agentguard.approval.id"] == request.request_id
    decided_at = rfc3339(answered.approval.not_before)
    assert resumed.attributes["agentguard.approval.approver"] == "user:bob"
    assert resumed.attributes["agentguard.approval.decided_at"] == decided_at
    assert "agentguard.approval.approver" not in waiting.attributes
    (asked,) = (event for event in waiting.events if event.name == "approval.requested")
    assert asked.attributes["agentguard.approval.expires_at"] == rfc3339(request.expires_at)
    decided = [event for event in resumed.events if event.name == "approval.decided"]
    assert [dict(event.attributes) for event in decided] == [
        {
            "agentguard.approval.id": request.request_id,
            "agentguard.approval.status": "approved",
            "agentguard.approval.approver": "user:bob",
            "agentguard.approval.method": "ed25519",
            "agentguard.approval.answer.id": answered.approval.approval_id,
            "agentguard.approval.decided_at": decided_at,
        }
    ]
    assert place.recorded()[1].predicate["traceparent"].split("-")[1] == (
        f"{waiting.context.trace_id:032x}"
    )


def test_within_the_trace_that_has_waited_a_resumed_call_stays_where_it_is_made(
    place: Place, spans
):
    tracer = trace.get_tracer("an application")
    with tracer.start_as_current_span("the run") as run:
        request = place.ask()
        place.guard.approvals.approve(request, place.bob)
        place.call("release")
    waiting, resumed = spans.named("execute_tool push")
    assert resumed.parent.span_id == run.get_span_context().span_id
    assert [link.context.span_id for link in resumed.links] == [waiting.context.span_id]


def test_a_rejection_is_an_error(place, spans):
    place.guard.approvals.reject(place.ask(), place.bob)
    with pytest.raises(Denied):
        place.call("release")
    _, refused = spans.named("execute_tool push")
    assert refused.attributes["error.type"] == "approval.rejected"
    assert refused.attributes["agentguard.approval.status"] == "rejected"
    assert refused.attributes["agentguard.approval.approver"] == "user:bob"
    assert refused.attributes["agentguard.approval.decided_at"].endswith("Z")
    assert refused.attributes["agentguard.failure"] == "rejected"
    assert refused.status.description == "rejected: approval.rejected"
    assert refused.status.status_code is StatusCode.ERROR


def test_an_evaluation_has_a_span_only_where_people_are_asked(place, spans):
    at = place.bound
    assert adapters.evaluate(place.agent, at("fix")).allowed
    assert adapters.evaluate(place.agent, at("main")).outcome == "deny"
    assert spans.all() == []
    with pytest.raises(ApprovalPending) as pending:
        adapters.evaluate(place.agent, at("release"))
    waiting = spans.one("execute_tool push")
    assert waiting.attributes["agentguard.approval.status"] == "pending"
    assert pending.value.request.traceparent == traceparent(waiting)
    assert [event.name for event in waiting.events] == ["policy.decision", "approval.requested"]
    with pytest.raises(ApprovalPending):
        adapters.evaluate(place.agent, at("release"))  # which asks nobody anew
    assert len(spans.all()) == 1
    place.guard.approvals.approve(pending.value.request, place.bob)
    assert adapters.run(place.agent, at("release"), lambda: "pushed") == "pushed"
    assert spans.all()[-1].parent.span_id == ids(waiting)[1]


def test_the_tools_own_spans_and_the_facts_are_inside(place: Place, spans):
    tracer = trace.get_tracer("an application")

    def look_up(_arguments):
        with tracer.start_as_current_span("SELECT"):
            return {}

    @place.guard.tool(facts=look_up, gives=[])
    def fetch() -> str:
        with tracer.start_as_current_span("GET"):
            return place.call()

    place.agent.call(fetch)
    assert spans.tree() == ["execute_tool fetch", "  SELECT", "  GET", "    execute_tool push"]
    assert not trace.get_current_span().get_span_context().is_valid


async def test_async_calls_each_have_their_own(place: Place, spans):
    tracer = trace.get_tracer("an application")

    async def look_up(_arguments):
        with tracer.start_as_current_span("SELECT"):
            await asyncio.sleep(0)
            return {}

    @place.guard.tool(facts=look_up, gives=[])
    async def fetch(name: str) -> str:
        with tracer.start_as_current_span(f"GET {name}"):
            await asyncio.sleep(0.01)
            return await place.agent.acall(place.push, branch=name)  # in a worker thread

    with tracer.start_as_current_span("the request") as request:
        names = [f"b{n}" for n in range(5)]
        await asyncio.gather(*(place.agent.acall(fetch, name) for name in names))
        assert trace.get_current_span() is request
    assert {span.context.trace_id for span in spans.all()} == {spans.all()[0].context.trace_id}
    by_id = {span.context.span_id: span for span in spans.all()}
    got = [span for span in spans.all() if span.name.startswith("GET")]
    assert {by_id[span.parent.span_id].name for span in got} == {"execute_tool fetch"}
    assert len({span.parent.span_id for span in got}) == 5
    pushed = spans.named("execute_tool push")
    assert {by_id[span.parent.span_id].name for span in pushed} == {f"GET {n}" for n in names}
    selected = spans.named("SELECT")
    assert {by_id[span.parent.span_id].name for span in selected} == {"execute_tool fetch"}


async def test_a_call_that_is_cancelled_ends_its_span(place: Place, spans):
    begun = asyncio.Event()

    @place.guard.tool
    async def wait() -> None:
        begun.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(place.agent.acall(wait))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    span = spans.one("execute_tool wait")
    assert span.attributes["error.type"].endswith("CancelledError")
    assert span.attributes["agentguard.outcome.status"] == "unknown"


async def test_a_coroutine_that_is_closed_elsewhere_ends_its_span(place: Place, spans, caplog):
    @place.guard.tool
    async def wait() -> None:
        await asyncio.sleep(60)

    calling: Any = place.agent.acall(wait)
    calling.send(None)
    while spans.all() == [] and calling.cr_await is not None and not _sleeps(calling):
        await asyncio.sleep(0.01)
        calling.send(None)
    thread = threading.Thread(target=calling.close)
    thread.start()
    thread.join()
    assert spans.one("execute_tool wait").attributes["agentguard.outcome.status"] == "unknown"
    assert "detach" not in caplog.text


def _sleeps(coroutine):
    while coroutine is not None:
        if getattr(coroutine, "__qualname__", "") == "sleep":
            return True
        coroutine = getattr(coroutine, "cr_await", None)
    return False


def test_in_threads_a_call_is_where_its_context_is(place, spans):
    tracer = trace.get_tracer("an application")

    def work(name):
        with tracer.start_as_current_span(name):
            place.call(name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [f"t{n}" for n in range(32)]))
    by_id = {span.context.span_id: span.name for span in spans.all()}
    parents = [by_id[span.parent.span_id] for span in spans.named("execute_tool push")]
    assert sorted(parents) == sorted(f"t{n}" for n in range(32))


def test_for_whom_and_through_whom_stands_on_each(place: Place, spans):
    tester = place.guard.new_agent("tester")
    place.does = lambda branch: tester.call(place.check, branch)

    @place.guard.tool
    def check(branch: str) -> str:
        return f"checked {branch}"

    place.check = check
    lends: dict[str, Any] = {"via": "service:orchestrator", "task_id": "task_1"}
    with place.guard.delegate("user:alice", scope=["pr:write"], **lends):
        place.call()
    inner, outer = spans.all()
    assert spans.tree() == ["execute_tool push", "  execute_tool check"]
    assert outer.attributes["agentguard.principal.id"] == "user:alice"
    assert outer.attributes["user.id"] == "user:alice"
    assert outer.attributes["agentguard.delegation.chain"] == (
        "user:alice>service:orchestrator>agent:reviewer"
    )
    assert outer.attributes["agentguard.delegation.depth"] == 2
    assert inner.attributes["agentguard.delegation.chain"] == (
        "user:alice>service:orchestrator>agent:reviewer>agent:tester"
    )
    assert inner.attributes["agentguard.task.id"] == outer.attributes["agentguard.task.id"]
    assert inner.attributes["agentguard.task.id"] == "task_1"


def test_where_so_configured_people_are_named_by_digests(spans):
    place = Place(telemetry={"hash_users": True})
    with place.guard.delegate("user:alice", scope=["pr:write"]):
        request = place.ask()
        place.guard.approvals.approve(request, place.bob)
        place.call("release")
    for span in spans.all():
        assert "alice" not in span.to_json()
        assert "bob" not in span.to_json()
        assert span.attributes["user.id"].startswith("user:sha256:")
        chain = span.attributes["agentguard.delegation.chain"]
        assert chain == f"{span.attributes['user.id']}>spiffe://acme.example>agent:reviewer"
    assert len({span.attributes["user.id"] for span in spans.all()}) == 1


def test_arguments_and_results_are_there_only_by_opt_in_and_redacted(spans):
    Place().call("fix")
    told = spans.one("execute_tool push")
    assert "gen_ai.tool.call.arguments" not in told.attributes
    assert "gen_ai.tool.call.result" not in told.attributes
    spans.forget()
    Place(telemetry={"arguments": True, "results": True}).call("fix")
    told = spans.one("execute_tool push")
    assert json.loads(told.attributes["gen_ai.tool.call.arguments"]) == {"branch": "fix"}
    assert json.loads(told.attributes["gen_ai.tool.call.result"]) == "pushed fix"
    spans.forget()
    redacted = {"push": ["/args/branch", "/result"]}
    Place(telemetry={"arguments": True, "results": True}, redact=redacted).call("fix")
    assert '"fix' not in spans.one("execute_tool push").to_json()
    assert "pushed fix" not in spans.one("execute_tool push").to_json()


class Codec:
    def dumps(self, result):
        return json.dumps(result).encode()

    def loads(self, data):
        return json.loads(data)


def at(place, branch="fix"):
    def bind():
        return Arguments.of({"branch": branch})

    return Invocation.bind(place.push.spec, bind, CallSite("call_1", thread="t"))


def test_a_call_whose_result_is_handed_out_again_says_of_which(place, spans):
    for _ in range(2):
        assert (
            adapters.run(place.agent, at(place), lambda: "pushed", CallOptions(Codec())) == "pushed"
        )
    first, again = spans.all()
    assert again.attributes["agentguard.outcome.status"] == "not_run"
    assert (
        again.attributes["agentguard.outcome.replay_of"]
        == (first.attributes["agentguard.invocation.id"])
    )
    assert again.status.status_code is StatusCode.UNSET


def test_a_call_in_doubt_is_refused_and_says_so(place, spans):
    def cut():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapters.run(place.agent, at(place), cut, CallOptions(Codec()))
    with pytest.raises(Denied):
        adapters.run(place.agent, at(place), lambda: "pushed", CallOptions(Codec()))
    first, again = spans.all()
    assert first.attributes["agentguard.outcome.status"] == "unknown"
    assert first.attributes["error.type"] == "KeyboardInterrupt"
    assert again.attributes["error.type"] == "journal.cut_short"


class PauseError(Exception):
    """A framework's way to pause."""


def test_a_tool_that_pauses_is_no_error(place, spans):
    def pause():
        raise PauseError

    with pytest.raises(PauseError):
        adapters.run(place.agent, at(place), pause, CallOptions(Codec(), suspends=(PauseError,)))
    span = spans.one("execute_tool push")
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in span.attributes
    assert span.attributes["agentguard.outcome.status"] == "suspended"


@pytest.mark.parametrize("limit", [128, 30])
def test_what_a_tool_adds_does_not_displace_the_identity(place, monkeypatch, limit, spans):
    provider = TracerProvider(span_limits=SpanLimits(max_span_attributes=limit))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    kept = type(spans)(provider)

    def add(_branch):
        for number in range(300):
            trace.get_current_span().set_attribute(f"mine.{number}", number)

    place.does = add
    place.call()
    attributes = kept.one("execute_tool push").attributes
    assert len(attributes) == limit
    assert attributes["gen_ai.agent.name"] == "reviewer"
    assert attributes["agentguard.policy.decision"] == "allow"
    assert attributes["agentguard.audit.index"] == place.recorded()[0]
    assert attributes["gen_ai.operation.name"] == "execute_tool"


@pytest.mark.parametrize("limit", [128, 16, 12])
def test_a_limit_that_is_too_low_leaves_the_identity(place, monkeypatch, limit, spans):
    provider = TracerProvider(span_limits=SpanLimits(max_span_attributes=limit))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    kept = type(spans)(provider)
    place.call()
    attributes = kept.one("execute_tool push").attributes
    assert len(attributes) <= limit
    assert attributes["gen_ai.agent.name"] == "reviewer"
    assert attributes["agentguard.agent.id"] == place.agent.id
    assert attributes["agentguard.principal.id"].endswith("reviewer")
    assert ("gen_ai.operation.name" in attributes) is (limit == 128)


def test_without_an_sdk_the_record_names_the_span_around_it(place):
    outer = trace.NonRecordingSpan(trace.SpanContext(7, 8, is_remote=True))
    token = context.attach(trace.set_span_in_context(outer))
    try:
        place.call()
    finally:
        context.detach(token)
    assert place.recorded()[1].predicate["traceparent"] == f"00-{7:032x}-{8:016x}-00"
    place.call()
    assert place.recorded()[1].predicate["traceparent"] is None


def test_in_a_tool_span_of_somebody_else_only_the_authorization_is_added(spans):
    place = Place(telemetry={"arguments": True, "results": True})
    tracer = trace.get_tracer("an instrumentor")
    place.does = lambda branch: place.agent.call(place.check, branch)

    @place.guard.tool
    def check(branch: str) -> str:
        return branch

    place.check = check
    with tracer.start_as_current_span("push.tool") as theirs, telemetry.inside_span(theirs):
        place.call()
    assert spans.tree() == ["push.tool", "  agentguard.authorize", "  execute_tool check"]
    for name in ("push.tool", "agentguard.authorize"):
        attributes = spans.one(name).attributes
        assert attributes["gen_ai.agent.name"] == "reviewer"
        assert attributes["agentguard.policy.decision"] == "allow"
        assert attributes["agentguard.audit.checkpoint"]
    assert spans.one("push.tool").attributes["agentguard.outcome.status"] == "ok"
    for name, is_call in {"push.tool": True, "agentguard.authorize": False}.items():
        kinds = {"gen_ai.operation.name", "gen_ai.tool.name", "gen_ai.tool.type"}
        about = {"gen_ai.tool.call.arguments", "gen_ai.tool.call.id", "gen_ai.tool.call.result"}
        found = [key for key in spans.one(name).attributes if key in kinds | about]
        assert sorted(found) == (sorted(kinds | about) if is_call else [])
    calls = [found for _, found in place.entries("call")]
    assert calls[0].predicate["traceparent"] == traceparent(spans.one("push.tool"))

    spans.forget()
    started = tracer.start_as_current_span("push.tool")
    with pytest.raises(Denied), started as theirs, telemetry.inside_span(theirs):
        place.call("main")
    assert spans.one("push.tool").attributes["error.type"] == "policy.denied"
    assert spans.one("agentguard.authorize").status.status_code is StatusCode.ERROR


def test_spans_and_metrics_say_which_version_made_them_by_which_conventions(place, spans, metrics):
    place.call()
    (made,) = metrics.get_metrics_data().resource_metrics
    (counted,) = (one.scope for one in made.scope_metrics)
    for scope in (spans.one("execute_tool push").instrumentation_scope, counted):
        assert (scope.name, scope.version) == ("agentguard", metadata.version("agentguard"))
        assert scope.schema_url == "https://opentelemetry.io/schemas/1.41.0"


def test_a_workflow_is_named_as_both_versions_of_the_conventions_have_it(place, spans):
    with adapters.workflow_span("newsroom", place.agent):
        pass
    span = spans.one("invoke_workflow newsroom")
    assert span.attributes["gen_ai.operation.name"] == "invoke_workflow"
    assert span.attributes["gen_ai.workflow.name"] == "newsroom"
    assert span.attributes["gen_ai.agent.name"] == "newsroom"
