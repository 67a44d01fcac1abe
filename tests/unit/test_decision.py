"""The exceptions that steer a call survive a process boundary whole; what is kept of reasons."""

from __future__ import annotations

import copy
import pickle

import pytest

from agentguard import (
    ApprovalPending,
    ApprovalRequest,
    Decision,
    Denied,
    Requirement,
    StorageError,
)
from agentguard.call.decision import MAX_REASON, MAX_REASONS
from agentguard.cli.policy.replay import Answer

REQUEST = ApprovalRequest(
    request_id="ab" * 16,
    trust_domain="acme.example",
    call_site="cd" * 32,
    agent="spiffe://acme.example/agent/coder/x",
    agent_name="coder",
    principal="user:alice",
    actors=("agent:coder",),
    requesters=("user:alice",),
    tool="merge_pr",
    description="Merge.",
    tool_digest="ef" * 32,
    resource=None,
    task_id="task-1",
    thread="t1",
    arguments=b'{"branch":"main"}',
    unbound=(),
    salt=bytes(32),
    requirements=(Requirement("a person"),),
    policy_sha256=None,
    traceparent=None,
    requested_at=1_800_000_000,
    expires_at=1_800_003_600,
)


def test_a_request_has_its_arguments_as_values():
    assert REQUEST.args == {"branch": "main"}
    REQUEST.args["branch"] = "dev"
    assert REQUEST.args == {"branch": "main"}
    assert ApprovalRequest.loads(REQUEST.dumps()) == REQUEST


def test_a_request_says_which_id_is_meant():
    with pytest.raises(AttributeError, match="has no attribute 'id': read request_id"):
        REQUEST.id  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match=r"has no attribute 'nonsense'$"):
        REQUEST.nonsense  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(REQUEST, "id")
    assert copy.deepcopy(REQUEST) == REQUEST


def test_reasons_are_cut_to_what_an_entry_takes_and_a_replay_sees_the_same():
    decision = Decision.deny(*(f"\ud800{number}" + "x" * MAX_REASON for number in range(20)))
    cut = decision.shortened()
    kept = "x" * (MAX_REASON - 2)
    assert cut.reasons[0] == f"\\ud8000{kept}"
    assert len(cut.reasons) == MAX_REASONS
    assert Answer.of(decision).reasons == cut.reasons
    assert Decision.deny("no").shortened() == Decision.deny("no")


@pytest.mark.parametrize(
    "error",
    [
        Denied(Decision.deny("no merges")),
        ApprovalPending(REQUEST, "nobody has answered yet"),
    ],
)
def test_a_pickled_refusal_is_the_same_refusal(error):
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301  made one line above
    assert type(copied) is type(error)
    assert (str(copied), copied.code, vars(copied)) == (str(error), error.code, vars(error))


def test_an_error_of_agentguard_refuses_a_call_with_its_own_code_and_message():
    error = StorageError("the disk is full", code="storage.full")
    refusal = Decision.refusal("the disk is full", code="storage.full")
    assert Decision.of_error(error) == refusal
    assert Decision.of_exception(error, "storage.failed", "the log can't be written") == refusal


def test_any_other_exception_refuses_a_call_without_the_words_of_the_exception(caplog):
    refusal = Decision.of_exception(OSError("/secret"), "storage.failed", "no log can be written")
    assert refusal == Decision.refusal("no log can be written (OSError)", code="storage.failed")
    assert "/secret" in caplog.text  # the operator reads the exception
