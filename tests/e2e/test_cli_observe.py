"""A policy that is only observed, as people see it: at the start, in the log, in the evidence."""

from __future__ import annotations

import pytest

CALLS = r"""
import logging, sys
from agentguard import Guard

logging.basicConfig(format="%(levelname)s %(message)s")
with Guard.open("agentguard.toml") as guard:
    @guard.tool(requires=["files:read"])
    def read_file(path: str) -> str:
        return path

    assistant = guard.new_agent("assistant")
    for path in sys.argv[1:]:
        print(assistant.call(read_file, path))
"""
WARNING = "the policy is only observed ([policy] mode = "


@pytest.fixture
def observed(begun):
    begun.allow_unlisted()
    toml = begun.folder / "agentguard.toml"
    toml.write_text(toml.read_text().replace("[policy]\n", '[policy]\nmode = "observe"\n'))
    ran = begun.python("-c", CALLS, "README.md", ".ssh/id")
    assert (ran.returncode, ran.stdout) == (0, "README.md\n.ssh/id\n")
    assert f"WARNING agentguard.toml: {WARNING}" in ran.stderr
    return begun


def calls_of(project, *args: str) -> list[dict]:
    listed = project.lines("audit", "list", *args)
    return [row for row in listed if row["kind"] == "call"]


def test_nobody_takes_an_observed_call_for_one_that_was_authorised(observed, tmp_path):
    allowed, denied = calls_of(observed)
    assert (allowed["decision"], allowed["enforced"]) == ("allow", False)
    assert (denied["decision"], denied["enforced"], denied["outcome"]) == ("deny", False, "ok")
    assert calls_of(observed, "--decision", "observe") == [allowed, denied]
    assert calls_of(observed, "--decision", "deny") == []
    table = observed.run("audit", "list").stdout
    assert "would allow" in table
    assert "would deny" in table

    shown = observed.run("audit", "show", denied["invocation_id"])
    assert shown.returncode == 0
    assert "NOT ENFORCED: would deny [policy.denied]" in shown.stdout
    assert "no policy has authorised it" in shown.stdout
    told = observed.json("audit", "show", denied["invocation_id"])
    assert (told["decision"], told["mode"], told["enforced"]) == ("deny", "observe", False)
    assert told["problems"] == []

    proof, trust = tmp_path / "call.evidence", tmp_path / "trust.json"
    assert observed.run("trust", "export", "-o", trust).returncode == 0
    assert observed.run("evidence", "make", denied["invocation_id"], "-o", proof).returncode == 0
    report = observed.run("evidence", "verify", proof, "--trust", trust)
    assert report.returncode == 0, report.stderr
    assert "NOT ENFORCED: would deny [policy.denied]" in report.stdout
    assert "no policy has authorised it" in report.stdout
    read = observed.json("evidence", "verify", proof, "--trust", trust)
    assert (read["decision"], read["mode"], read["enforced"]) == ("deny", "observe", False)


def test_verify_doctor_and_check_warn_of_it(observed):
    verified = observed.run("audit", "verify")
    assert verified.returncode == 0
    assert "NOT ENFORCED: 2 calls ran while the policy was only observed" in verified.stdout
    assert observed.json("audit", "verify")["observed"] == 2
    doctor = observed.json("doctor")
    assert [c["status"] for c in doctor["checks"] if WARNING in c["what"]] == ["warn"]
    checked = observed.run("policy", "check")
    assert (checked.returncode, WARNING in checked.stderr) == (0, True)

    toml = observed.folder / "agentguard.toml"
    toml.write_text(toml.read_text().replace('mode = "observe"\n', ""))
    enforced = observed.python("-c", CALLS, "README.md", ".ssh/id")
    assert (enforced.returncode, enforced.stdout) == (1, "README.md\n")
    assert WARNING not in enforced.stderr
    assert not [c for c in observed.json("doctor")["checks"] if WARNING in c["what"]]
    assert WARNING not in observed.run("policy", "check").stderr
    assert [row["enforced"] for row in calls_of(observed)] == [False, False, True, True]
    assert observed.json("audit", "verify")["observed"] == 2


def test_a_call_that_died_in_its_tool_is_in_doubt_as_any_other(observed):
    died = observed.python("-c", CALLS.replace("return path", "import os; os._exit(0)"), ".ssh/id")
    assert died.returncode == 0
    (doubtful,) = calls_of(observed, "--in-doubt")
    assert (doubtful["decision"], doubtful["enforced"]) == ("deny", False)
    assert observed.json("audit", "verify")["in_doubt"] == [doubtful["invocation_id"]]
    resolved = observed.run("resolve", doubtful["invocation_id"], "--not-ran", "--note", "looked")
    assert resolved.returncode == 0, resolved.stderr
    assert observed.json("audit", "verify")["in_doubt"] == []
