"""Each parameter of ``agentguard_mcp`` that grants, limits or names somebody, left empty."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from call_scene import AUDIENCE, CallScene
from empty_parameters import Case, parameters, require_nothing

import agentguard_mcp
from agentguard_mcp import guard_transport
from agentguard_mcp.request_guard import RequestGuard

FOUND = sorted({*parameters(agentguard_mcp)})


def guarded(scene: CallScene, agent: str) -> RequestGuard:
    """Return what ``guard_server`` puts before a server, which takes the SDK 2."""
    return RequestGuard(scene.guard, scene.receiver, agent=agent, server="pay", lists_for_all=True)


@pytest.mark.parametrize(("where", "name"), FOUND)
def test_an_empty_value_of_a_parameter_names_nobody(tmp_path, where, name):
    scene = CallScene(tmp_path)
    cases: dict[tuple[str, str], Case] = {
        ("guard_server", "agent"): (lambda: guarded(scene, ""), "agent.unknown"),
        ("guard_transport", "audience"): (
            lambda: guard_transport(nullcontext(), ""),
            "config.invalid",
        ),
    }
    require_nothing(cases[where, name])


def test_the_twins_are_taken(tmp_path):
    scene = CallScene(tmp_path)
    assert guarded(scene, "payer")
    assert guard_transport(nullcontext(), AUDIENCE)
