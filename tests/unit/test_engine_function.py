"""A Python function as the policy: its decisions, and everything that is not one."""

from __future__ import annotations

import functools
import json

import pytest

from agentguard import canonical
from agentguard.decision import Decision, Requirement
from agentguard.engines.function import FunctionEngine
from agentguard.errors import ConfigError, PolicyError
from agentguard.policy import decide

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


def test_an_exception_is_an_error_that_does_not_repeat_its_message():
    def fail(document):
        raise ValueError(document["secret"])

    with pytest.raises(PolicyError, match="raised ValueError") as failure:
        FunctionEngine(fail).evaluate(b'{"secret": "hunter2"}')

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
    with pytest.raises(PolicyError, match="returned a") as failure:
        FunctionEngine(lambda _: answer).evaluate(b"{}")
    assert failure.value.code == "policy.error"


def test_an_outcome_that_does_not_exist_denies():
    unknown = Decision("Allow")  # type: ignore[arg-type]

    assert decide(FunctionEngine(lambda _: unknown).evaluate(b"{}")).outcome == "deny"


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


@pytest.mark.parametrize("function", [dict, eval("lambda _: None")])  # noqa: S307  a function without a file
def test_without_a_source_file_there_is_no_digest(function):
    engine = FunctionEngine(function)

    assert engine.policy_sha256 is None
    assert engine.policy_files == {}
