"""Approvals in ``agentguard demo``: bob's answers, and those of a person at the terminal."""

from __future__ import annotations

import io
import json
import os
import pty
from contextlib import suppress

import pytest
from demo_runs import OneLineModel, StateEntries, at_home, play, run_agentguard
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from rich.console import Console

import agentguard_demo
from agentguard import ConfigError
from agentguard_demo import people, script, seed

# --- bob ---------------------------------------------------------------------------------------


def merging(number=1, into="main"):
    """The call of a merge by a model of its own mind."""
    args = {"repo": seed.REPOSITORY, "number": number, "into": into}
    return {"name": "merge_pr", "args": args, "id": f"merge-{number}", "type": "tool_call"}


def test_what_waits_at_the_end_is_said_and_was_not_run(tmp_path):
    run, printed = play(tmp_path / "demo", script.ScriptedModel(), bob=lambda _request: None)
    assert run.ok
    assert (run.steps[-1].tool, run.steps[-1].decision) == ("merge_pr", "approval")
    (pull,) = run.setting.forge.pull_requests()
    assert pull.merge_commit is None
    (request,) = StateEntries(run.setting.state).of("request")
    assert f"WAITS  merge_pr was not run: the request {request['request_id']} waits" in printed
    assert "evidence-" not in printed
    ran = run_agentguard(*("approvals", "list", "--json"), cwd=tmp_path / "demo")
    assert json.loads(ran.stdout)["request_id"] == request["request_id"]


def test_what_bob_rejects_is_denied_with_his_reason_and_proved(tmp_path, bob_signs_here):
    rejection = people.Answer("reject", "-- not on a Friday")
    run, printed = play(tmp_path / "demo", script.ScriptedModel(), bob=lambda _request: rejection)
    assert run.ok
    assert [step.decision for step in run.steps[-2:]] == ["approval", "deny"]
    assert run.steps[-1].reasons == ("user:bob has rejected this call: -- not on a Friday",)
    assert "merge_pr rejected by user:bob" in printed
    assert (
        "The fix is in a pull request. I was not allowed to: request_secret, trigger_ci, merge_pr"
        in (" ".join(printed.split()))
    )
    assert run.setting.forge.pull_requests()[0].merge_commit is None


def test_two_merges_at_once_are_answered_one_by_one(tmp_path, bob_signs_here):
    calls = (merging(1), merging(2))
    run, printed = play(tmp_path / "demo", OneLineModel(says="two", calls=calls))
    assert run.ok
    decisions = [(step.decision, step.args.get("number")) for step in run.steps[1:]]
    assert sorted(decisions) == [("allow", 1), ("allow", 2), ("approval", 1), ("approval", 2)]
    assert printed.count("approved by user:bob:") == 2
    # there are no pull requests; one may run yet when the other is told, as the task does
    errors, running = (printed.count(f"   ALLOW  ({status})") for status in ("error", "it runs"))
    assert errors in (1, 2)
    assert errors + running == 3


def test_a_model_that_merges_without_end_does_not_hang(tmp_path, monkeypatch, bob_signs_here):
    monkeypatch.setattr(agentguard_demo, "_MAX_PAUSES", 2)

    class Stubborn(OneLineModel):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            message = AIMessage("again", tool_calls=[merging(len(messages))])
            return ChatResult(generations=[ChatGeneration(message=message)])

    run, printed = play(tmp_path / "demo", Stubborn())
    assert run.ok
    assert printed.count("   bob $  ") == 2
    assert printed.count("   WAITS  ") == 1


def test_bobs_process_that_fails_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(people, "PASSPHRASE_VARIABLE", "ANOTHER")
    with pytest.raises(ConfigError, match=r"failed: error \[key\.passphrase\]") as raised:
        play(tmp_path / "demo", OneLineModel(calls=(merging(),)))
    assert raised.value.code == "approval.failed"


# --- a person at the terminal -------------------------------------------------------------------


@pytest.mark.slow("it plays the whole demo at a terminal")
def test_the_person_at_the_terminal_approves(tmp_path, preloaded):
    """At a terminal of its own: a word that is no answer is asked about again."""
    here, there = pty.openpty()
    arguments = ("demo", "--dir", "here", "--interactive")
    environment = at_home(tmp_path, TERM="dumb")
    process = preloaded.start(
        *("-m", "agentguard.cli", *arguments),
        cwd=tmp_path,
        env=environment,
        streams=(there, there, there),
    )
    os.close(there)
    shown = ""
    answers = [b"y\n", b"Approve\n"]
    with suppress(OSError):  # the other end is closed
        while data := os.read(here, 65536):
            shown += data.decode(errors="replace")
            if answers and shown.endswith("? "):
                os.write(here, answers.pop(0))
    os.close(here)
    assert process.wait() == 0, shown
    shown = shown.replace("\r\n", "\n")
    assert shown.count("type approve or reject; a or r will do") == 1
    assert shown.count("approve or reject exactly this call?") == 2
    assert shown.index("argument number   1") < shown.index("approve or reject")
    assert "approved by user:bob: merge_pr" in shown
    assert "   ALLOW  merged into main as" in shown


class Typed(io.StringIO):
    """What a person types at a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("r\n not today \n", people.Answer("reject", "not today")),
        ("no\n\nREJ\n\n", people.Answer("reject", "")),
        ("a\n", people.Answer("approve", "")),
        ("", None),  # the person leaves
        ("r\n", None),
        ("y\n", None),
    ],
)
def test_what_the_person_at_the_terminal_says(monkeypatch, typed, answer):
    """What the demo does then: see the tests of what waits, and of what bob rejects."""
    monkeypatch.setattr("sys.stdin", Typed(typed))
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert people.terminal_bob(Console(file=io.StringIO(), force_terminal=True))(None) == answer


def test_interactive_is_refused_without_a_terminal(tmp_path):
    ran = run_agentguard("demo", "--interactive", "--dir", "here", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error [terminal.missing]: --interactive asks a person ")
    both = run_agentguard("demo", "--interactive", "--json", "--dir", "here", cwd=tmp_path)
    assert both.returncode == 2
    assert "--json shows nothing" in " ".join(both.stderr.split())
    assert list(tmp_path.iterdir()) == []
