"""The names that an application and an adapter may use, and the page on how to write an adapter."""

from __future__ import annotations

import asyncio
import re
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import pytest

import agentguard
from agentguard import Decision, adapters
from agentguard.testing import AdapterTests, RecordedGuard

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "adapters.md"


def page_namespace() -> dict[str, Any]:
    """Run the code of the page, block by block, and return the names that it defines."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == 3
    namespace: dict[str, Any] = {"__name__": "toy_adapter"}
    for block in blocks:
        exec(block, namespace)  # noqa: S102
    return namespace


TOY = page_namespace()
Tool, GuardedTool = TOY["Tool"], TOY["GuardedTool"]


TestThePage = TOY["TestTools"]
"""The kit, inherited as the page says."""


def test_the_page_runs_the_kit():
    assert issubclass(TestThePage, AdapterTests)
    assert TestThePage.acall is not AdapterTests.acall


@pytest.mark.parametrize(
    ("decision", "answer"),
    [
        (Decision.allow(), "read a.txt"),
        (
            Decision.deny("not today"),
            "Denied: read was not run. Reason: not today [policy.denied]",
        ),
        (Decision.require_approval(), "Not now: read was not run. It waits for an approval"),
    ],
    ids=lambda value: getattr(value, "outcome", None),
)
def test_a_model_gets_the_result_or_why_there_is_none(decision, answer):
    recorded = RecordedGuard.make()
    recorded.decide = lambda _input: decision
    with recorded.guard:
        tool = GuardedTool(Tool("read", lambda path: f"read {path}"), recorded.guard.new_agent("a"))
        assert tool.answer(path="a.txt").startswith(answer)


def test_the_toy_s_async_way_is_guarded():
    recorded = RecordedGuard.make()

    async def fetch(url):
        return f"fetched {url}"

    with recorded.guard:
        tool = GuardedTool(Tool("fetch", fetch), recorded.guard.new_agent("a"))
        assert asyncio.run(tool.arun(url="x")) == "fetched x"
        assert [call.tool for call in recorded.calls()] == ["fetch"]


def test_the_page_names_each_name_once_in_its_tables():
    rows = re.findall(r"^\| (`.*?) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    elsewhere = {"ArgumentsError", "Verdict"}  # a table names each beside what raises or returns it
    assert sorted(named) == sorted({*adapters.__all__} - elsewhere)
    for name in elsewhere:
        assert f"`{name}`" in PAGE.read_text("utf-8")


@pytest.mark.parametrize("code", ["approval.altered", "approval.expired", "engine.unreachable"])
def test_a_model_is_not_told_to_give_up_a_call_that_is_decided_anew(code):
    decision = Decision.refusal("make the call again to ask anew", code=code)
    assert adapters.may_call_again(decision)
    assert adapters.denial_text("pay", decision).startswith("Not now: pay was not run.")
    assert "Do not retry" not in adapters.denial_text("pay", decision)


def test_a_context_variable_has_its_value_within_the_block_alone():
    variable = ContextVar("variable", default="outside")

    def fail():
        with adapters.assigned(variable, "inside"):
            raise KeyError(variable.get())

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert variable.get() == "outside"


def test_a_coroutine_that_is_closed_in_another_context_ends_and_changes_nothing_there():
    variable = ContextVar("variable", default="outside")

    async def work():
        with adapters.assigned(variable, "inside"):
            await asyncio.sleep(0)

    working = work()
    copy_context().run(working.send, None)
    working.close()
    assert variable.get() == "outside"


def test_an_application_has_few_names():
    assert agentguard.__all__ == [
        "Agent",
        "AgentguardError",
        "ApprovalError",
        "ApprovalPending",
        "ApprovalRequest",
        "AsyncTool",
        "ConfigError",
        "Decision",
        "Delegation",
        "DelegationError",
        "Denied",
        "Ed25519Signer",
        "Evaluation",
        "Evidence",
        "FactsInput",
        "Guard",
        "IssuedToken",
        "PolicyError",
        "ProofError",
        "ReceiverLog",
        "Report",
        "RequestEndedError",
        "RequestStatus",
        "Requirement",
        "SecretError",
        "ServerError",
        "StorageError",
        "Tool",
        "TrustDocument",
        "UnguardedCallError",
        "VerificationError",
        "current_delegation",
        "idempotency_key",
        "secret",
        "verify_evaluation",
        "verify_evidence",
    ]


def test_an_agent_has_what_a_user_types():
    public = [name for name in vars(agentguard.Agent) if not name.startswith("_")]
    assert sorted(public) == [
        "aauthorize",
        "acall",
        "access_token",
        "alias",
        "approvals",
        "authorize",
        "call",
        "delegation",
        "id",
        "name",
        "take_up",
        "under",
    ]
