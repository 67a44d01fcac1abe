"""No secret is in what is exported: arguments, results, keys, tokens, the texts of errors.

Each is planted where it would be found in the log, and searched for in all that an exporter would
send. With the opt-ins of ``[telemetry]``, arguments and results are there, and nothing else.
"""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from agentguard import ApprovalPending, Decision, Denied, Guard, Requirement, adapters, telemetry
from agentguard.adapters import Arguments, CallSite, Invocation
from agentguard.signing.keys import Ed25519Signer

SECRETS = {
    name: f"PLANTED-{name}-{os.urandom(8).hex()}"
    for name in (
        "argument",
        "result",
        "exception",
        "facts",
        "reason",
        "requirement",
        "note",
        "resource",
        "description",
        "refused",
    )
}


def answer(document):
    args = document["args"]
    if args.get("branch") == "main":
        return Decision.deny(f"no: {args['secret']} {SECRETS['reason']}")
    if args.get("branch") == "release":
        return Decision.require_approval(Requirement(SECRETS["requirement"]))
    return Decision.allow()


@pytest.mark.parametrize("asked", [False, True])
def test_only_the_opt_in_for_reasons_lets_a_reason_out(asked, spans):
    """A reason may quote an argument, as the policy's author wrote it."""
    with Guard.ephemeral(answer, config={"telemetry": {"reasons": asked}}) as guard:
        agent = guard.new_agent("coder")

        @guard.tool
        def push(branch: str, secret: str) -> str:
            return SECRETS["result"]

        with suppress(Denied):
            agent.call(push, "main", SECRETS["argument"])
    found = {name for name, secret in SECRETS.items() if secret in exported(spans)}
    assert found == ({"argument", "reason"} if asked else set())


@pytest.fixture(params=["as it is", "by opt-in"])
def opted_in(request):
    return request.param == "by opt-in"


def exported(spans):
    """All that an exporter would send, as text."""
    found = "\n".join(span.to_json() for span in spans.all())
    return found + encode_spans(spans.all()).SerializeToString().decode("utf-8", "replace")


def test_what_is_planted_is_not_exported(opted_in, spans):
    bob = Ed25519Signer.from_seed(os.urandom(32))
    tables = {
        "approvers": {"bob": {"keys": [bob.public_key.openssh()]}},
        "telemetry": {"arguments": opted_in, "results": opted_in},
    }
    with Guard.ephemeral(answer, config=tables) as guard:
        agent = guard.new_agent("coder")
        token = _work(guard, agent, bob)
    sent = exported(spans)
    names = {span.name for span in spans.all()}
    assert {"execute_tool push", "execute_tool fail", "invoke_agent coder"} <= names
    assert {"push.tool", "agentguard.authorize"} <= names
    found = {name for name, secret in SECRETS.items() if secret in sent}
    # what is planted in an argument comes with the arguments
    assert found == ({"argument", "result", "resource", "refused"} if opted_in else set())
    assert token not in sent
    assert token.rpartition(".")[2] not in sent


def _work(guard: Guard, agent, bob):
    """Make calls that are allowed, denied, failed, approved, rejected, refused; return a token."""

    @guard.tool(
        resource="repo:{repo}",
        facts=lambda _arguments: {"secret": SECRETS["facts"]},
        gives=["secret"],
    )
    def push(branch: str, secret: str, repo: str = SECRETS["resource"]) -> str:
        return SECRETS["result"]

    push_spec = push.spec.overridden(name="push")

    @guard.tool
    def fail(secret: str) -> None:
        raise LookupError(SECRETS["exception"])

    with (
        guard.delegate("user:alice", scope=["all"]) as lent,
        adapters.agent_span(agent, conversation="t"),
    ):
        token, _chain = agent.access_token()
        agent.call(push, "fix", SECRETS["argument"])
        with suppress(Denied):
            agent.call(push, "main", SECRETS["argument"])
        with suppress(LookupError):
            agent.call(fail, SECRETS["argument"])
        for verdict in ("approve", "reject"):
            with pytest.raises(ApprovalPending) as pending:
                agent.call(push, "release", SECRETS["argument"])
            decide = getattr(guard.approvals, verdict)
            decide(pending.value.request, bob, note=SECRETS["note"])
            with suppress(Denied):
                agent.call(push, "release", SECRETS["argument"])
        tracer = trace.get_tracer("an instrumentor")
        with tracer.start_as_current_span("push.tool") as theirs, telemetry.inside_span(theirs):
            agent.call(push, "fix", SECRETS["argument"])
        refused = Invocation(
            push_spec,
            Arguments.of({"branch": "fix", "secret": SECRETS["refused"], "repo": "r"}),
            CallSite("call_1"),
            refusal=Decision.refusal(SECRETS["refused"], code="approval.rejected"),
        )
        with suppress(Denied):
            adapters.run(agent, refused, lambda: None)
    assert lent is not None
    return token


class ApiError(Exception):
    """Has a code, as other libraries' errors do; here it is a text."""

    def __init__(self, code: str) -> None:
        self.code = code


@pytest.mark.parametrize("kind", [SystemExit, ApiError])
def test_the_text_of_what_ends_an_agents_work_is_not_exported(spans, kind):
    with Guard.ephemeral(answer) as guard:
        agent = guard.new_agent("coder")

        @guard.tool
        def fail() -> None:
            raise kind(SECRETS["exception"])

        with pytest.raises(kind), adapters.agent_span(agent):
            agent.call(fail)
        with pytest.raises(kind), adapters.workflow_span("crew", agent):
            raise kind(SECRETS["exception"])
    assert SECRETS["exception"] not in exported(spans)
    for name in ("invoke_agent coder", "invoke_workflow crew"):
        span = spans.one(name)
        assert span.attributes["error.type"] == span.status.description == kind.__qualname__
    failed = spans.one("execute_tool fail")
    assert failed.status.description == f"tool error: {failed.attributes['error.type']}"


def test_the_reason_code_of_what_ends_it_is(spans):
    with Guard.ephemeral(answer) as guard:
        agent = guard.new_agent("coder")
        with pytest.raises(Denied), adapters.agent_span(agent):
            raise Denied(Decision.refusal(SECRETS["reason"], code="policy.denied"))
    assert SECRETS["reason"] not in exported(spans)
    span = spans.one("invoke_agent coder")
    assert span.attributes["error.type"] == span.status.description == "policy.denied"
