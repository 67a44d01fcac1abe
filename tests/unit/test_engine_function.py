"""A Python function as the policy: its decisions, and everything that is not one."""

from __future__ import annotations

import functools
import json

import pytest

from agentguard import Denied, Guard
from agentguard.call.decision import Decision, Requirement
from agentguard.errors import ConfigError, PolicyError
from agentguard.policy.document import decide
from agentguard.policy.function import FunctionEngine
from agentguard.signing import canonical

REQUIREMENT = Requirement("two people", ("bob",), ("lead", "owner"), 2, 60, allow_self=True)


def allow_everything(document):
    return Decision.allow()


@pytest.mark.parametrize(
    "decision",
    [
        Decision.allow(),
        Decision.deny("not on a Friday", "nor on main"),
        Decision.require_approval(),
        Decision.require_approval(REQUIREMENT, Requirement("another")),
    ],
)
def test_a_decision_survives_the_way_through_the_document(decision):
    answer = FunctionEngine(lambda document: decision).evaluate(b"{}")
    read = decide(json.loads(json.dumps(answer)))

    assert read.outcome == decision.outcome
    assert sorted(read.reasons) == sorted(decision.reasons)
    assert read.requirements == decision.requirements


def test_a_deny_without_a_reason_still_denies():
    assert decide(FunctionEngine(lambda _: Decision.deny()).evaluate(b"{}")).outcome == "deny"


def test_the_function_gets_the_input_and_its_answer_follows_it():
    def on_branches(document):
        main = document["branch"] == "main"
        return Decision.deny("main is closed") if main else Decision.allow()

    engine = FunctionEngine(on_branches)

    assert decide(engine.evaluate(b'{"branch": "agent/fix"}')).allowed
    assert decide(engine.evaluate(b'{"branch": "main"}')).reasons == ("main is closed",)


def test_what_a_function_does_to_its_input_is_gone_in_the_next_call():
    seen = []

    def scribble(document):
        seen.append(document["args"].pop("a", None))
        return Decision.allow()

    engine = FunctionEngine(scribble)
    for _ in range(2):
        engine.evaluate(b'{"args": {"a": 1}}')

    assert seen == [1, 1]


def test_an_exception_is_an_error_that_does_not_repeat_its_message(caplog):
    def fail(document):
        raise ValueError(document["secret"])

    with pytest.raises(PolicyError, match="raised ValueError") as failure:
        FunctionEngine(fail).evaluate(b'{"secret": "hunter2"}')

    (record,) = caplog.records  # its author finds the traceback there
    assert (record.name, record.levelname) == ("agentguard", "ERROR")
    assert "fail" in record.getMessage()
    assert 'raise ValueError(document["secret"])' in caplog.text

    assert failure.value.code == "policy.error"
    assert "hunter2" not in str(failure.value)
    assert isinstance(failure.value.__cause__, ValueError)


def test_an_interrupt_passes_through():
    def interrupted(document):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FunctionEngine(interrupted).evaluate(b"{}")


@pytest.mark.parametrize("answer", [True, None, {"allow": True}, "allow", Decision])
def test_only_a_decision_counts(answer):
    with pytest.raises(PolicyError, match=r"returned a \w+: return Decision\.allow\(\)") as failure:
        FunctionEngine(lambda _: answer).evaluate(b"{}")
    assert failure.value.code == "policy.error"


FORGED = [
    Decision("Allow"),  # type: ignore[arg-type]
    Decision("allow", "policy.denied"),
    Decision("deny", "storage.failed", ("the log can't be written",)),
    Decision("deny", "budget.exceeded", ("too much",)),
    Decision("deny", "", ("too much",)),
    Decision.refusal("not mine to say", code="clock.skew"),
    Decision.failure("facts.failed", "not mine to say", ValueError()),
    Decision("approval", "approval.granted", (), (REQUIREMENT,)),
]
CONDITIONAL = [
    Decision("allow", requirements=(REQUIREMENT,)),
    Decision("allow", "", ("once somebody has looked at it",)),
    Decision("allow", "", ("must be approved",), (REQUIREMENT,)),
]


@pytest.mark.parametrize("decision", FORGED, ids=repr)
def test_an_outcome_or_a_code_that_no_policy_gives_is_refused_aloud(decision):
    with pytest.raises(PolicyError, match="say why in the reasons") as failure:
        FunctionEngine(lambda _: decision).evaluate(b"{}")
    assert failure.value.code == "policy.malformed"


@pytest.mark.parametrize("decision", CONDITIONAL, ids=repr)
def test_an_allow_with_a_condition_is_no_allow(decision):
    with pytest.raises(PolicyError, match="an allow with reasons or requirements") as failure:
        FunctionEngine(lambda _: decision).evaluate(b"{}")
    assert failure.value.code == "policy.malformed"
    redacted = Decision.allow().redacted("/args/x")
    assert FunctionEngine(lambda _: redacted).evaluate(b"{}") == {
        "allow": True,
        "obligations": [{"redact": "/args/x"}],
    }


@pytest.mark.parametrize(
    ("decision", "code"),
    [
        *((decision, "policy.malformed") for decision in (*FORGED, *CONDITIONAL)),
        (Decision.deny("too much"), "policy.denied"),
        (Decision.require_approval(), "approval.unavailable"),
    ],
    ids=repr,
)
def test_a_denied_call_has_a_code_of_agentguards_whatever_the_policy_returns(decision, code):
    guard = Guard.ephemeral(lambda _: decision)
    with pytest.raises(Denied) as denied:
        guard.new_agent("a").call(guard.tool(len), "x")
    assert denied.value.code == code
    (body,) = [b for _, b in guard.reader().entries() if b'"kind":"call"' in b]
    assert json.loads(body)["code"] == code


@pytest.mark.parametrize("document", [b"", b"{", b"\xff", b'{"a": "\\ud800"}'])
def test_an_input_that_is_no_json_is_an_error(document):
    with pytest.raises(PolicyError, match="not JSON"):
        FunctionEngine(allow_everything).evaluate(document)


class Policy:
    def __call__(self, document):
        return Decision.allow()

    def method(self, document):
        return Decision.allow()


class CoroutinePolicy:
    async def __call__(self, document):
        return Decision.allow()


async def coroutine(document):
    return Decision.allow()


@pytest.mark.parametrize("function", [coroutine, CoroutinePolicy(), CoroutinePolicy().__call__])
def test_a_coroutine_function_is_refused(function):
    with pytest.raises(ConfigError, match="coroutine function"):
        FunctionEngine(function)


@pytest.mark.parametrize(
    "function",
    [
        allow_everything,
        Policy(),
        Policy().method,
        lambda _: None,
        functools.partial(allow_everything),
    ],
)
def test_the_digest_is_of_the_file_that_defines_the_function(function):
    engine = FunctionEngine(function)

    with open(__file__, "rb") as file:  # noqa: PTH123
        digest = canonical.sha256_hex(file.read())
    assert list(engine.policy_files.values()) == [digest]
    assert engine.policy_sha256 == canonical.digest(dict(engine.policy_files))
    assert all(not path.startswith("/") for path in engine.policy_files)


def test_the_digest_is_of_what_was_loaded_and_is_taken_once(monkeypatch):
    engine = FunctionEngine(allow_everything)
    digest = engine.policy_sha256
    monkeypatch.setattr(canonical, "digest", None)

    assert engine.policy_sha256 == digest
    with pytest.raises(TypeError):
        engine.policy_files["other.py"] = "0" * 64  # type: ignore[index]


@pytest.mark.parametrize("function", [dict, eval("lambda _: None")])  # noqa: S307  a function without a file
def test_without_a_source_file_there_is_no_digest(function):
    engine = FunctionEngine(function)

    assert engine.policy_sha256 is None
    assert engine.policy_files == {}
