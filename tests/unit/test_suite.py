"""The suite itself: what ``scripts/test`` leaves out is counted, and a slow test has its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
LEFT_OUT = "left out: slow tests (1), *scripts/test --all runs them"


@pytest.fixture
def sample(pytester):
    """A folder with a slow test and a quick one, under the conftest.py of this repository."""
    pytester.makeconftest((ROOT / "conftest.py").read_text())
    pytester.makeini(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\n"
        # as in pyproject.toml; what a plugin imports here first would be imported once more later
        "addopts = -p no:langsmith_plugin -p no:schemathesis -p no:socket -p no:anyio\n"
        f"pythonpath = {ROOT / 'tests' / 'support'}\n"
        "markers =\n    slow(reason)\n    server\n"
    )
    pytester.makepyfile(
        "import pytest\n\n"
        "@pytest.mark.slow('a reason')\ndef test_slow(): ...\n\n"
        "def test_quick(): ...\n\n"
        "def test_of_a_server(opa): ...\n\n"
        "@pytest.fixture\ndef opa(): ...\n"
    )
    return pytester


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """As a user runs the tests, whoever runs these."""
    monkeypatch.delenv("AGENTGUARD_ROUNDS", raising=False)


def test_the_last_lines_say_what_was_left_out(sample):
    ran = sample.runpytest_inprocess("-m", "not slow")
    assert ran.parseoutcomes()["passed"] == 2
    ran.stdout.fnmatch_lines([LEFT_OUT])


@pytest.mark.slow("starts pytest, and a worker of pytest-xdist, in processes of their own")
def test_the_last_lines_say_what_the_workers_left_out(sample):
    ran = sample.runpytest_subprocess("-m", "not slow", "--numprocesses", "1")
    assert ran.parseoutcomes()["passed"] == 2
    ran.stdout.fnmatch_lines([LEFT_OUT])


def test_a_quick_test_that_was_not_asked_for_is_not_counted_as_slow(sample):
    ran = sample.runpytest_inprocess("-m", "not slow", "-k", "not of_a_server")
    assert ran.parseoutcomes()["passed"] == 1
    ran.stdout.fnmatch_lines([LEFT_OUT])


def test_where_rounds_alone_are_left_out_no_slow_test_is_counted(sample):
    ran = sample.runpytest_inprocess()
    assert ran.parseoutcomes() == {"passed": 3}
    ran.stdout.fnmatch_lines(["left out: most rounds*"])


def test_where_nothing_is_left_out_nothing_is_said(sample, monkeypatch):
    monkeypatch.setenv("AGENTGUARD_ROUNDS", "full")
    ran = sample.runpytest_inprocess()
    assert ran.parseoutcomes() == {"passed": 3}
    ran.stdout.no_fnmatch_line("left out:*--all runs them")


def test_a_part_of_ci_takes_the_tests_of_servers_or_the_others(sample):
    assert sample.runpytest_inprocess("-m", "server").parseoutcomes()["passed"] == 1
    assert sample.runpytest_inprocess("-m", "not server").parseoutcomes()["passed"] == 2


def test_a_slow_test_without_a_reason_ends_the_run(sample):
    sample.makepyfile(test_more="import pytest\n\n@pytest.mark.slow\ndef test_slow(): ...\n")
    ran = sample.runpytest_inprocess()
    assert ran.ret == pytest.ExitCode.USAGE_ERROR
    assert "slow needs a reason" in str(ran.errlines + ran.outlines)
