"""Each parameter of ``agentguard_crewai`` that grants, limits or names somebody, left empty."""

from __future__ import annotations

import inspect

import pytest
from crewai_identities import guard_with, one_of
from empty_parameters import parameters

import agentguard_crewai
from agentguard import ConfigError
from agentguard_crewai import guard_agent

NAMES = sorted(
    function
    for function in agentguard_crewai.__all__
    if function not in ("OnApproval", "resumable")  # a type, and the name of a run
    if "name" in inspect.signature(getattr(agentguard_crewai, function)).parameters
)
"""The functions with the name of an agent."""


def test_no_function_has_another_parameter_that_grants_or_names():
    assert {name for _where, name in parameters(agentguard_crewai)} <= {"agent"}
    assert NAMES == ["guard_agent"]


def test_an_empty_name_names_no_agent(native, recorded):
    guard = guard_with(recorded, "reader").guard
    with pytest.raises(ConfigError) as caught:
        guard_agent(one_of(native, "reader"), guard, name="")
    assert caught.value.code == "agent.unknown"
    assert guard_agent(one_of(native, "other"), guard, name="reader")
