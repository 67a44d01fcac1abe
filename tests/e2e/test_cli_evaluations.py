"""Evaluations in the commands that read the log, beside the calls."""

from __future__ import annotations

import json

import pytest

CALLS = """
from agentguard import Guard

with Guard.open("agentguard.toml") as guard:
    agent = guard.new_agent("assistant")

    @guard.tool(requires=["files:read"], resource="file:{path}")
    def read_file(path: str) -> str:
        return "clear"

    @guard.tool
    def drop(path: str) -> str:
        return "dropped"

    print(agent.authorize(read_file, "README.md").entry)
    print(agent.authorize(drop, "README.md").entry)
    print(agent.call(read_file, "README.md"))
"""


@pytest.fixture
def asked(begun):
    """A project with two evaluations and one call; the places of the evaluations."""
    called = begun.allow_unlisted().python("-c", CALLS)
    assert called.returncode == 0, called.stderr
    *places, said = called.stdout.split()
    assert said == "clear"
    return begun, places


def test_evaluations_are_listed_shown_exported_and_verified(asked):
    project, (allowed, denied) = asked
    rows = project.lines("audit", "list", "--kind", "evaluation")
    assert [(row["tool"], row["decision"], row["invocation_id"]) for row in rows] == [
        ("read_file", "allow", None),
        ("drop", "deny", None),
    ]
    assert [str(row["index"]) for row in rows] == [allowed, denied]
    assert project.lines("audit", "list", "--kind", "evaluation", "--tool", "drop") == rows[1:]
    assert len(project.lines("audit", "list", "--kind", "call")) == 1
    listed = project.run("audit", "list").stdout
    assert listed.count("evaluation") == 2
    shown = project.run("audit", "show", allowed)
    assert shown.returncode == 0
    for text in ("file:README.md", "a call that nobody made", "allow", "use audit verify"):
        assert text in shown.stdout
    assert "deny [policy.denied]" in project.run("audit", "show", denied).stdout
    exported = project.run("audit", "export", "--kind", "evaluation").stdout
    assert len(exported.splitlines()) == 2
    verified = project.run("audit", "verify")
    assert verified.returncode == 0, verified.stdout


def test_an_evaluation_has_no_evidence_of_a_call(asked):
    project, (allowed, _denied) = asked
    refused = project.run("evidence", "make", allowed, "-o", "none.json")
    assert refused.returncode != 0
    assert "is of the kind evaluation, and no call's" in refused.stderr
    (call,) = project.lines("audit", "list", "--kind", "call")
    made = project.run("evidence", "make", call["invocation_id"], "-o", "call.json")
    assert made.returncode == 0, made.stderr


def test_the_statement_in_the_entry_is_that_of_the_evaluation(asked):
    project, (allowed, _denied) = asked
    entry = json.loads(project.run("audit", "show", allowed, "--json").stdout)
    assert entry["kind"] == "evaluation"
    assert len(entry["statement"]["signatures"]) == 1
