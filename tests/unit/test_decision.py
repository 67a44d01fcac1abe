"""The exceptions that steer a call survive a process boundary whole."""

from __future__ import annotations

import pickle

import pytest

from agentguard import ApprovalPending, ApprovalRequest, Decision, Denied, Requirement


@pytest.mark.parametrize(
    "error",
    [
        Denied(Decision.deny("no merges")),
        ApprovalPending(ApprovalRequest("merge_pr", "ab" * 32, (Requirement("a person"),))),
    ],
)
def test_a_pickled_refusal_is_the_same_refusal(error):
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301  made one line above
    assert type(copied) is type(error)
    assert (str(copied), copied.code, vars(copied)) == (str(error), error.code, vars(error))
