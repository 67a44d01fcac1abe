"""What a program's log says of refused calls, and what a model is told instead.

The names in a line may be hostile, and so may a handler of the log: neither changes what is decided
or on record, and no line is forged.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest
from recorded_calls import allow_all, records

from agentguard import Decision, DelegationError, Denied, Guard, PolicyError, adapters
from agentguard.call.reason_codes import CODES, NOUNS, UNKNOWN, responsibility_for
from agentguard.policy.document import NO_RULE

DECISIONS = "agentguard.decisions"
NEUTRAL = "the application is not able to make this call"


class Panic(BaseException):
    """What native code raises that has panicked: no ``Exception``."""


def lines(caplog, logger=DECISIONS):
    return [record.getMessage() for record in caplog.records if record.name == logger]


def guard_of(decide: Any, **tables: Any) -> Any:
    return Guard.ephemeral(decide, config=tables)


def small(call):
    return Decision.allow() if call["args"]["cents"] < 10 else Decision.deny("a secret limit")


@pytest.fixture
def quiet():
    """The lines are switched off."""
    logging.getLogger(DECISIONS).setLevel(logging.CRITICAL)
    yield
    logging.getLogger(DECISIONS).setLevel(logging.NOTSET)


def make(agent, tool, *, sync, **arguments):
    if sync:
        return agent.call(tool, **arguments)
    return asyncio.run(agent.acall(tool, **arguments))


@pytest.mark.parametrize("sync", [True, False])
def test_each_refused_call_is_one_line_without_arguments_and_reasons(caplog, sync):
    caplog.set_level(logging.DEBUG)
    with guard_of(small) as guard:

        @guard.tool
        def pay(cents):
            return cents

        agent = guard.new_agent("payer")
        assert make(agent, pay, sync=sync, cents=1) == 1
        assert lines(caplog) == []
        with pytest.raises(Denied, match="a secret limit"):
            make(agent, pay, sync=sync, cents=4711)
        last = records(guard, "call")[-1]
    (record,) = [one for one in caplog.records if one.name == DECISIONS]
    invocation = record.invocation
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"denied code=policy.denied agent=payer principal=agent:payer tool=pay "
        f"invocation={invocation}"
    )
    assert (record.code, record.agent, record.principal, record.tool) == (
        "policy.denied",
        "payer",
        "agent:payer",
        "pay",
    )
    assert re.fullmatch("[0-9a-f]{32}", invocation)
    assert last["code"] == "policy.denied"
    assert "4711" not in caplog.text
    assert "secret" not in caplog.text
    assert lines(caplog, "agentguard") == []  # the agent's matter


def test_a_refusal_inside_of_a_tool_is_one_line(caplog):
    with guard_of(
        lambda call: Decision.allow() if call["action"] == "outer" else Decision.deny()
    ) as guard:

        @guard.tool
        def inner(): ...

        @guard.tool
        def outer():
            agent.call(inner)

        agent = guard.new_agent("a")
        with pytest.raises(Denied):
            agent.call(outer)
    (line,) = lines(caplog)
    assert "tool=inner" in line


def test_an_evaluation_is_no_denial(caplog):
    with guard_of(lambda _call: Decision.deny("no")) as guard:
        tool = guard.tool(name="pay")(lambda: None)
        invocation = adapters.Invocation.bind(
            tool.spec, lambda: adapters.Arguments.of({}, declared=()), adapters.CallSite("1")
        )
        assert not adapters.evaluate(guard.new_agent("a"), invocation).allowed
    assert lines(caplog) == []


def test_what_is_not_on_record_has_no_invocation(caplog):
    guard = guard_of(allow_all)

    @guard.tool
    def pay(): ...

    agent = guard.new_agent("a")
    guard.close()
    with pytest.raises(Denied):
        agent.call(pay)
    (line,) = lines(caplog)
    assert line.endswith("tool=pay invocation=-")
    (remedy,) = lines(caplog, "agentguard")
    assert remedy.endswith(f"[storage.closed]. For the developer: {CODES['storage.closed'].remedy}")


@pytest.mark.parametrize("sync", [True, False])
def test_what_a_developer_mends_is_logged_with_the_remedy(caplog, sync):
    with guard_of(allow_all, agents={"a": {"max_scope": []}}) as guard:

        @guard.tool
        def pay(): ...

        with pytest.raises(Denied) as denied:
            make(guard.new_agent("a"), pay, sync=sync)
    assert denied.value.reason.endswith(CODES["delegation.missing"].remedy)
    assert lines(caplog, "agentguard") == [
        (
            "pay was not run: agent a acts only under a delegation, and none is in force "
            f"[delegation.missing]. For the developer: {CODES['delegation.missing'].remedy}"
        )
    ]


def test_the_lines_can_be_switched_off_and_the_remedies_stay(caplog, quiet):
    with guard_of(allow_all, agents={"a": {}}) as guard:

        @guard.tool
        def pay(): ...

        with pytest.raises(Denied):
            guard.new_agent("a").call(pay)
    assert lines(caplog) == []
    assert len(lines(caplog, "agentguard")) == 1


def test_a_tool_without_a_rule_is_told_once(caplog, tmp_path):
    policy = tmp_path / "authz.rego"
    policy.write_text(
        'package agent.authz\n\ndefault allow := false\n\nallow if input.action == "b"\n'
    )
    with guard_of(policy) as guard:
        agent = guard.new_agent("x")
        for name in ("a", "a", "b", "c"):
            tool = guard.tool(name=name)(lambda name=name: name)
            if name == "b":
                assert agent.call(tool) == "b"
            else:
                with pytest.raises(Denied, match=NO_RULE):
                    agent.call(tool)
    said = lines(caplog, "agentguard")
    assert [line.partition(" by ")[0] for line in said] == [
        "no rule of the policy (authz.rego) allows this call of a",
        "no rule of the policy (authz.rego) allows this call of c",
    ]
    assert said[0].endswith("agentguard policy eval INPUT.json --policy POLICY")


# --- hostile names ------------------------------------------------------------------------------

HOSTILE = [
    "pay\ndenied code=policy.allowed agent=root",
    "pay\r\x1b[2Kok",
    "pay invocation=00000000000000000000000000000000",
    'pay" invocation="0',
    "pay\u202etxt",
    "pay\u2028x",
    "p" * 2048,  # the longest name that a tool may have
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_forges_a_line_or_a_field(caplog, name):
    with guard_of(
        lambda _call: Decision.deny(NO_RULE), agents={"a": {"authority": "own"}}
    ) as guard:

        @guard.tool(name=name)
        def pay(): ...

        with pytest.raises(Denied):
            guard.new_agent("a").call(pay)
    (record,) = [one for one in caplog.records if one.name == DECISIONS]
    for text in (*lines(caplog), *lines(caplog, "agentguard"), record.tool):
        assert text.isprintable()
        assert len(text) < 1000
    fields = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', record.getMessage())
    assert [field for field, _value in fields] == [
        "code",
        "agent",
        "principal",
        "tool",
        "invocation",
    ]
    assert dict(fields)["invocation"] == record.invocation


@pytest.mark.parametrize("subject", ["user:al\nice", "user:al ice", "user:\x1b[2J"])
def test_no_principal_has_a_name_that_could_forge_one(subject):
    with guard_of(allow_all) as guard:
        with pytest.raises(DelegationError, match="principal") as refused:
            guard.delegate(subject, scope=["x"])
        guard.delegate("user:alice", scope=["x"])
    assert str(refused.value).isprintable()


# --- hostile handlers ---------------------------------------------------------------------------


class Raising(logging.Handler):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def handle(self, record):
        raise self.error


@pytest.fixture
def handle():
    added = []

    def add(handler, logger="agentguard"):
        logging.getLogger(logger).addHandler(handler)
        added.append((handler, logger))

    yield add
    for handler, logger in added:
        logging.getLogger(logger).removeHandler(handler)


@pytest.mark.parametrize("logger", ["agentguard", DECISIONS])
@pytest.mark.parametrize("error", [ValueError("full"), Panic("native")])
@pytest.mark.parametrize("sync", [True, False])
def test_a_handler_that_raises_changes_no_decision(handle, logger, error, sync):
    handle(Raising(error), logger)
    ran = []
    with guard_of(small, agents={"a": {"authority": "own"}, "b": {}}) as guard:

        @guard.tool
        def pay(cents):
            ran.append(cents)

        with pytest.raises(Denied, match="a secret limit"):
            make(guard.new_agent("a"), pay, sync=sync, cents=4711)
        with pytest.raises(Denied, match=r"\[delegation.missing\]"):
            make(guard.new_agent("b"), pay, sync=sync, cents=1)
        make(guard.new_agent("a"), pay, sync=sync, cents=1)
        codes = [entry["code"] for entry in records(guard, "call")]
    assert codes == ["policy.denied", "delegation.missing", ""]
    assert ran == [1]


def test_a_handler_that_raises_while_a_failure_is_logged_changes_no_decision(handle):
    handle(Raising(ValueError("full")))

    def fail(_call):
        raise PolicyError("no answer")

    def look_up(_call):
        raise ValueError("down")

    with guard_of(fail) as guard:

        @guard.tool(facts=look_up, gives=[])
        def pay(): ...

        with pytest.raises(Denied) as denied:
            guard.new_agent("a").call(pay)
        assert records(guard, "call")[-1]["code"] == denied.value.code == "facts.failed"


def test_a_handler_that_makes_a_refused_call_is_not_called_for_that_one(handle):
    handled = []
    with guard_of(lambda _call: Decision.deny("no")) as guard:

        @guard.tool
        def send(): ...

        agent = guard.new_agent("a")

        class Calling(logging.Handler):
            def emit(self, record):
                handled.append(record.getMessage())
                with pytest.raises(Denied):
                    agent.call(send)

        handle(Calling(), DECISIONS)
        with pytest.raises(Denied):
            agent.call(send)
        assert len(handled) == 1
        assert len(records(guard, "call")) == 2


# --- what a model is told -----------------------------------------------------------------------

SECRETS = "see /srv/acme/agentguard.toml: [agents.x] and package agent.authz"
MENDED = sorted(code for code in CODES if responsibility_for(code).party != "agent")
OTHERS = [f"{noun}.anything" for noun in NOUNS] + ["brand.new", "invalid_scope"]


@pytest.mark.parametrize("code", [*MENDED, *OTHERS])
def test_a_model_is_told_nothing_that_is_for_developers(code):
    decision = Decision.refusal(SECRETS, code=code)
    for shows_code in (True, False):
        text = adapters.denial_text("pay", decision, shows_code=shows_code)
        assert text.startswith(f"{'Not now' if decision.may_pass_later else 'Denied'}: pay was not")
        for part in (*SECRETS.split(), responsibility_for(code).remedy):
            assert part in ("and", "see") or part not in text
        assert len(text) < 200


@pytest.mark.parametrize("code", sorted(CODES.keys() - MENDED))
def test_a_model_is_told_the_reason_that_is_for_agents(code):
    decision = Decision.refusal("it is over the limit", code=code)
    assert "Reason: it is over the limit" in adapters.denial_text("pay", decision)


def test_who_mends_has_a_remedy():
    for row in (*map(responsibility_for, CODES), *NOUNS.values(), UNKNOWN):
        assert (row.party == "agent") == (row.remedy == "")
