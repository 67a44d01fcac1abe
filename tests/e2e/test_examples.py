"""The examples that need no framework, run as a reader runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def output_of(example, folder):
    """Run an example in an empty folder, with warnings as errors; return its lines."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / example)],
        cwd=folder,
        env={**os.environ, "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert list(folder.iterdir()) == []
    return ran.stdout.splitlines()


def test_plain_function(tmp_path):
    assert output_of("plain_function.py", tmp_path) == [
        "allowed: 42000 cents to rent",
        "denied:  more than 50000 cents at once [policy.denied]",
        "refused: transfer is guarded: run it with agent.call(transfer, ...)",
    ]


def test_idempotency(tmp_path):
    assert output_of("idempotency.py", tmp_path) == [
        "paid 4200 cents",
        "paid 4200 cents",
        "payments: 2, each under the id of its call in the log",
        "outside of a call there is no key",
    ]


def test_delegation(tmp_path):
    assert output_of("delegation.py", tmp_path) == [
        "user:alice lends pr:write repo:read through service:forge for issue-17",
        "coder: read_issue: discounts are wrong",
        "coder: open_pr: opened",
        (
            "coder: read_secret: DENIED: agent coder, acting for user:alice, lacks the scope "
            "secret:read [scope.exceeded]"
        ),
        "tester: read_issue: discounts are wrong",
        (
            "tester: open_pr: DENIED: agent tester, acting for user:alice, lacks the scope "
            "pr:write [scope.exceeded]"
        ),
        "resumed: coder: read_issue: discounts are wrong",
        (
            "revoked: coder: read_issue: DENIED: her delegation was revoked: whatever goes back to "
            "it is denied [delegation.revoked]"
        ),
        "the log verifies: True",
    ]


def test_custom_policy(tmp_path):
    lines = output_of("custom_policy/main.py", tmp_path)
    allowed = [line for line in lines if "denied" not in line]
    denied = [line.partition(": denied, ")[::2] for line in lines if "denied" in line]
    assert allowed == [
        "support-bot, 4900 cents of A-1: 4900 cents of A-1 refunded",
        "billing-bot, 9900 cents of A-1: 9900 cents of A-1 refunded",
    ]
    assert denied == [
        (
            "support-bot, 9900 cents of A-1",
            "support-bot may refund up to 5000 cents [policy.denied]",
        ),
        ("billing-bot, 9900 cents of A-2", "the order was never paid [policy.denied]"),
        (
            "billing-bot, 9900 cents of A-3",
            "the look-up of facts failed (KeyError) [facts.failed]",
        ),
        ("intern-bot, 1 cents of A-1", "no rule of the policy allows this call [policy.denied]"),
    ]
