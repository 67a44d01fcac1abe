"""Guarded calls through a guard server: what an application sees, and what the log has."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agentguard import (
    ApprovalPending,
    ConfigError,
    DelegationError,
    Denied,
    Guard,
    SecretError,
    ServerError,
    adapters,
    current_delegation,
    idempotency_key,
    secret,
)
from agentguard.adapters import Arguments, CallOptions, CallSite, Invocation
from agentguard.delegation import access_token
from agentguard.delegation.context import running_call


def note(guard, ran):
    @guard.tool(name="note")
    def note(text):
        ran.append(text)
        return f"noted {text}"

    return note


def test_an_allowed_call_runs_and_is_on_record(place):
    ran: list[str] = []
    guard = place.connect()
    agent = guard.new_agent("clerk")
    assert agent.call(note(guard, ran), "x") == "noted x"
    guard.close()
    assert ran == ["x"]
    (call,), (outcome,) = place.calls(), place.outcomes()
    assert (call.tool, call.decision, call.agent, outcome.status) == (
        "note",
        "allow",
        agent.id,
        "ok",
    )
    assert call.client is not None
    assert call.client.isolation == "same-user"
    assert place.verify().ok


def test_a_flush_makes_the_outcomes_durable(place):
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), note(guard, [])
    for text in "abc":
        agent.call(tool, text)
        guard.flush()
        assert len(place.outcomes()) == len(place.calls())
    place.stop()
    with pytest.raises(ServerError) as caught:
        guard.flush()
    assert caught.value.code == "server.unreachable"


def test_a_client_hears_how_the_server_s_user_asks_the_policy_about_a_tool_without_a_rule(
    place, caplog
):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    assert agent.call(note(guard, []), "x") == "noted x"
    assert not caplog.records
    with pytest.raises(Denied):
        agent.call(guard.tool(name="drop")(lambda text: text), "x")
    line, _, command = caplog.messages[-1].rpartition(" once more, as the guard server's user: ")
    assert "allows this call of drop" in line
    show, _, evaluate = command.partition(" | ")
    program = ("-m", "agentguard.cli")
    shown = place.programs.run(*program, *show.split()[1:], cwd=place.folder).stdout
    (place.folder / "call.json").write_text(shown)
    words = evaluate.replace(" -", " call.json").split()[1:]
    asked = place.programs.run(*program, *words, cwd=place.folder)
    assert asked.returncode == 1
    assert asked.stdout.startswith("deny [policy.denied]")


def test_a_denied_call_does_not_run_and_is_on_record(place):
    ran: list[str] = []
    guard = place.connect()
    tool = guard.tool(name="drop")(ran.append)
    with pytest.raises(Denied) as caught:
        guard.new_agent("clerk").call(tool, "x")
    assert caught.value.code == "policy.denied"
    assert ran == []
    assert [call.decision for call in place.calls()] == ["deny"]


def test_async_calls_at_once(place):
    ran: list[str] = []
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), note(guard, ran)

    async def many() -> list[str]:
        return await asyncio.gather(*(agent.acall(tool, str(n)) for n in range(40)))

    assert asyncio.run(many()) == [f"noted {n}" for n in range(40)]
    guard.close()
    assert sorted(ran) == sorted(map(str, range(40)))
    assert place.verify().ok
    assert place.verify().in_doubt == ()


def test_calls_of_many_threads(place):
    ran: list[str] = []
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), note(guard, ran)
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda n: agent.call(tool, str(n)), range(100)))
    assert results == [f"noted {n}" for n in range(100)]
    guard.close()
    assert place.verify().in_doubt == ()


def test_an_exception_of_the_tool_is_raised_and_recorded(place):
    guard = place.connect()

    @guard.tool(name="note")
    def fails(text):
        raise LookupError(text)

    with pytest.raises(LookupError, match="x"):
        guard.new_agent("clerk").call(fails, "x")
    guard.close()
    (outcome,) = place.outcomes()
    assert outcome.status == "error"
    assert outcome.predicate["error_type"] == "builtins.LookupError"


def test_facts_that_the_application_looks_up(place):
    guard = place.connect()
    seen: list[Any] = []

    def facts(arguments):
        seen.append((dict(arguments), arguments.agent, arguments.principal))
        return {"balance": {"rich": 500, "poor": 5}[arguments["account"]]}

    @guard.tool(name="balance", facts=facts, gives=["balance"])
    def balance(account):
        return account

    agent = guard.new_agent("clerk")
    assert agent.call(balance, "rich") == "rich"
    with pytest.raises(Denied):
        agent.call(balance, "poor")
    assert seen[0] == ({"account": "rich"}, "clerk", "agent:clerk")
    with pytest.raises(Denied) as caught:
        agent.call(balance, "nobody's")
    assert caught.value.code == "facts.failed"
    assert "KeyError" in caught.value.reason
    assert "Traceback" not in place.said()  # the client's log has the traceback


def test_facts_that_are_too_large_deny_and_the_reason_says_how_much_is_taken(place):
    guard = place.connect()
    facts = {"balance": 500, "more": "x" * 200_000}
    gives = ["balance", "more"]
    tool = guard.tool(name="balance", facts=lambda _: facts, gives=gives)(lambda: "rich")
    agent = guard.new_agent("clerk")
    assert agent.call(tool) == "rich"
    facts |= {f"more {at}": "x" * 200_000 for at in range(11)}
    with pytest.raises(Denied) as caught:
        agent.call(tool)
    assert caught.value.code == "frame.too_large"
    assert "the guard server takes 2097152 at most" in str(caught.value)


def test_a_delegation_and_the_hop_to_a_sub_agent(place):
    guard = place.connect()
    clerk, helper = guard.new_agent("clerk"), guard.new_agent("helper")
    seen: list[Any] = []

    @guard.tool(name="add", requires=["read"])
    def inner(text):
        return text

    @guard.tool(name="note")
    def outer(text):
        delegation = current_delegation()
        assert delegation is not None
        seen.append((delegation.principal, idempotency_key()))
        return helper.call(inner, text)

    with guard.delegate("user:alice", scope=["read"]):
        assert clerk.call(outer, "x") == "x"
    guard.close()
    outer_call, inner_call = place.calls()
    assert seen == [("user:alice", outer_call.invocation_id)]
    assert inner_call.inside == outer_call.invocation_id
    assert inner_call.principal == "user:alice"
    assert place.verify().ok


def test_a_delegation_lends_no_more_than_it_has(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    tool = guard.tool(name="note", requires=["pay"])(lambda: "paid")
    with guard.delegate("user:alice", scope=["read"]), pytest.raises(Denied) as caught:
        agent.call(tool)
    assert caught.value.code == "scope.exceeded"
    with guard.delegate("user:alice", scope=["pay"]):
        assert agent.call(tool) == "paid"
    with pytest.raises(DelegationError) as refused:
        guard.delegate("user:alice", scope=["everything"])
    assert refused.value.code == "scope.exceeded"


def test_a_stored_delegation_is_taken_up_by_another_client(place):
    stored = place.connect().delegate("user:alice", scope=["read"]).dumps()
    other = place.connect()
    tool = other.tool(name="note")(lambda: "ok")
    with other.resume(stored):
        assert other.new_agent("helper").call(tool) == "ok"


def test_a_call_that_a_person_approves(place):
    asked: list[Any] = []
    guard = place.connect(on_request=asked.append)
    agent = guard.new_agent("clerk")
    tool = guard.tool(name="pay")(lambda cents: f"paid {cents}")
    with pytest.raises(ApprovalPending) as pending:
        agent.call(tool, 5)
    assert asked == [pending.value.request] == guard.approvals.pending()
    with pytest.raises(ApprovalPending):
        agent.call(tool, 5)
    assert len(asked) == 1
    guard.approvals.vouch(asked[0], "approve", principal="user:bob")
    assert agent.call(tool, 5) == "paid 5"
    with pytest.raises(ApprovalPending):  # one approval, one call
        agent.call(tool, 5)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_program_that_waits_for_an_answer_asks_seldom(place, is_async):
    guard = place.connect()
    agent, tool = guard.new_agent("clerk"), guard.tool(name="pay")(lambda cents: f"paid {cents}")
    with pytest.raises(ApprovalPending) as pending:
        agent.call(tool, 5)
    request, inbox = pending.value.request, guard.approvals

    def is_over(timeout: float) -> bool:
        if is_async:
            return asyncio.run(inbox.await_(request, timeout=timeout))
        return inbox.wait(request, timeout=timeout)

    before = place.status()["requests"]
    assert not is_over(0.8)  # each look is three requests
    assert place.status()["requests"] - before < 30
    later = threading.Timer(0.2, inbox.vouch, (request, "approve"), {"principal": "user:bob"})
    later.start()
    assert is_over(20)  # the twin: an answer ends the wait
    later.join()


def test_a_rejected_call(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    tool = guard.tool(name="pay")(lambda cents: f"paid {cents}")
    with pytest.raises(ApprovalPending) as pending:
        agent.call(tool, 5)
    guard.approvals.vouch(pending.value.request, "reject", principal="user:bob", note="no")
    with pytest.raises(Denied) as caught:
        agent.call(tool, 5)
    assert caught.value.code == "approval.rejected"


def test_an_unknown_agent_is_refused(place):
    guard = place.connect()
    with pytest.raises(ConfigError) as caught:
        guard.new_agent("stranger")
    assert caught.value.code == "agent.unknown"
    assert guard.new_agent("clerk").name == "clerk"


def test_an_access_token_of_a_delegation(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    with guard.delegate("user:alice", scope=["read"]):
        issued = agent.access_token()
    verified = access_token.verify(issued.token, issued.chain, guard.trust, at=int(time.time()))
    assert verified.chain.principal == "user:alice"
    assert verified.isolation == "same-user"
    with pytest.raises(Denied) as caught:
        agent.access_token()
    assert caught.value.code == "delegation.missing"


def test_a_program_names_the_server(place):
    guard = Guard.connect(place.url)
    place.guards.append(guard)
    assert guard.new_agent("clerk").call(guard.tool(name="note")(lambda: "ok")) == "ok"


def test_the_log_is_out_of_reach(place):
    guard = place.connect()
    with pytest.raises(ConfigError) as caught:
        guard.reader()
    assert caught.value.code == "server.remote"
    with pytest.raises(ConfigError):
        guard.verify()


def test_a_tool_stays_what_it_was_at_the_first_call(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    assert agent.call(guard.tool(name="note", requires=["read"])(lambda text: text), "x") == "x"
    changed = guard.tool(name="note")(lambda text: text)  # needs no scope any more
    for one in (guard, place.connect()):
        with pytest.raises(Denied) as caught:
            one.new_agent("clerk").call(changed, "x")
        assert caught.value.code == "tool.changed"
    accept(place, "clerk", "note")
    assert agent.call(changed, "x") == "x"
    place.stop()
    place.start()  # the pin is durable
    with pytest.raises(Denied) as caught:
        agent.call(guard.tool(name="note", requires=["pay"])(lambda text: text), "x")
    assert caught.value.code == "tool.changed"
    assert agent.call(changed, "x") == "x"


def test_an_edit_of_the_servers_configuration_changes_no_tool(place):
    guard = place.connect()
    agent, note = guard.new_agent("clerk"), guard.tool(name="note")(lambda text: text)
    assert agent.call(note, "x") == "x"
    place.stop()
    configuration = place.folder / "agentguard.toml"
    text = configuration.read_text("utf-8")
    configuration.write_text(f'{text}\n[tools.note]\nrequires = ["read"]\n', "utf-8")
    place.start()
    other = place.connect()
    for one, tool in (
        (agent, note),
        (agent, guard.tool(name="note")(lambda text: text)),
        (other.new_agent("clerk"), other.tool(name="note")(lambda text: text)),
        (other.new_agent("clerk"), guard.tool(name="note")(lambda text: text)),
    ):
        assert one.call(tool, "x") == "x"
    assert other.tool(name="note")(lambda text: text).spec.requires == ("read",)
    changed = guard.tool(name="note", requires=["read"])(lambda text: text)  # by the program
    with pytest.raises(Denied) as caught:
        agent.call(changed, "x")
    assert caught.value.code == "tool.changed"


def test_a_secret_is_released_to_the_running_tool_and_is_on_record(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    tool = guard.tool(name="note")(lambda: f"with {secret('TOKEN')}")
    other = guard.tool(name="add")(lambda: secret("TOKEN"))
    assert agent.call(tool) == "with of no use to anybody else"
    with pytest.raises(SecretError) as caught:
        agent.call(other)
    assert caught.value.code == "secret.refused"
    guard.close()
    (release,) = [one for one in place.entries() if one.kind == "secret"]
    assert release.members["name"] == "TOKEN"
    files = [path for path in (place.folder / "state").rglob("*") if path.is_file()]
    assert any(b"TOKEN" in path.read_bytes() for path in files)
    assert not any(b"of no use" in path.read_bytes() for path in files)
    assert place.verify().ok


@pytest.mark.parametrize("shows", [False, True])
def test_a_model_of_a_client_sees_a_secret_only_if_the_server_s_configuration_says_so(
    founded, shows
):
    path = founded.folder / "agentguard.toml"
    said = f"[agents.clerk]\nconceals_secrets = {str(not shows).lower()}"
    path.write_text(path.read_text("utf-8").replace("[agents.clerk]", said), "utf-8")
    founded.start()
    guard = founded.connect()
    agent, spec = guard.new_agent("clerk"), guard.tool(name="note")(lambda: None).spec
    invocation = Invocation.bind(spec, lambda: Arguments.of({}), CallSite("c"))
    options = CallOptions(conceals=True)
    shown = adapters.run(agent, invocation, lambda: f"with {secret('TOKEN')}", options)
    assert shown == ("with of no use to anybody else" if shows else "with [a secret was here]")


def test_a_secret_outlives_no_call(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    kept: list[Any] = []
    agent.call(guard.tool(name="note")(lambda: kept.append(running_call())))
    with pytest.raises(SecretError) as caught:
        kept[0].releases.release("TOKEN")
    assert caught.value.code == "secret.refused"
    link, request_id = guard._parts._link, kept[0].releases._request_id
    with pytest.raises(SecretError) as caught:
        link.request({"op": "secret", "request_id": request_id, "name": "TOKEN"})
    assert caught.value.code == "secret.refused"


def test_agents_that_nobody_holds_are_released(place):
    guard = place.connect()
    tool = guard.tool(name="note")(lambda: "ok")
    for _ in range(1_100):  # more than the server's limit of one client
        assert guard.new_agent("clerk").name == "clerk"
    assert guard.new_agent("clerk").call(tool) == "ok"


def test_agents_that_are_held_have_a_limit(place):
    guard = place.connect()
    with pytest.raises(ServerError) as caught:
        assert [guard.new_agent("clerk") for _ in range(1_100)] == []
    assert caught.value.code == "server.busy"


def test_equal_tools_are_kept_once(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")

    def noting():
        return guard.tool(name="note")(lambda: "ok")

    names = {guard._parts.tools.name(noting().spec) for _ in range(3)}
    assert len(names) == 1
    assert agent.call(noting()) == "ok"


def test_a_delegation_that_the_server_has_forgotten_is_taken_up_again(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    tool = guard.tool(name="note", requires=["read"])(lambda: "ok")
    lent = guard.delegate("user:alice", scope=["read"])
    for _ in range(4_100):  # more than the server keeps of one client
        guard.delegate("user:alice", scope=["read"])
    with lent:
        assert agent.call(tool) == "ok"


def test_a_policy_reads_whose_word_the_facts_are(place):
    guard = place.connect()
    agent = guard.new_agent("clerk")
    with pytest.raises(Denied) as caught:
        agent.call(
            guard.tool(name="trusted", facts=lambda _given: {"x": 1}, gives=["x"])(lambda: "ran")
        )
    assert caught.value.reason == "the client says so itself"
    plain = guard.tool(name="trusted")(lambda: "ran")
    accept(place, "clerk", "trusted")
    assert agent.call(plain) == "ran"


def accept(place, agent, tool):
    words = ("-m", "agentguard.cli", "server", "accept", agent, tool)
    assert place.programs.run(*words, cwd=place.folder).returncode == 0
