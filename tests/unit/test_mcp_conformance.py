"""The comparison of ``scripts/mcp-conformance``: what passes without a guard, and not with one."""

from __future__ import annotations

import mcp_conformance

ALONE = {
    "polling": [("begins", "SUCCESS"), ("resumes", "SUCCESS"), ("event", "INFO")],
    "tools": [("listed", "SUCCESS"), ("listed", "SUCCESS"), ("broken", "FAILURE")],
}


def missing(other, excused=frozenset()):
    return mcp_conformance.missing(ALONE, other, excused)


def test_the_same_checks_miss_nothing():
    assert missing(ALONE) == []
    assert missing({**ALONE, "more": [("new", "FAILURE")]}) == []


def test_a_check_is_missed_by_its_name_and_not_by_its_number():
    swapped = [("begins", "SUCCESS"), ("other", "SUCCESS"), ("resumes", "INFO")]
    assert missing({**ALONE, "polling": swapped}) == [("polling", "resumes")]


def test_a_check_that_passes_twice_has_to_pass_twice():
    once = [("listed", "SUCCESS"), ("listed", "FAILURE")]
    assert missing({**ALONE, "tools": once}) == [("tools", "listed")]


def test_a_scenario_that_did_not_run_is_missed_whole():
    assert missing({"tools": ALONE["tools"]}) == [("polling", "begins"), ("polling", "resumes")]


def test_a_check_that_does_not_apply_is_excused_in_its_scenario_alone():
    other = {**ALONE, "polling": [("begins", "SUCCESS")]}
    assert missing(other, frozenset({("polling", "resumes")})) == []
    assert missing(other, frozenset({("tools", "resumes")})) == [("polling", "resumes")]
