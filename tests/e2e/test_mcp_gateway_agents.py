"""The example with a LangChain agent, a crew and ``mcp-server-git`` behind gateways, as it runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rounds import FULL

FOLDER = Path(__file__).parents[2] / "examples" / "mcp_gateway"


@pytest.mark.slow("it starts four gateways, and the server behind each of them")
@pytest.mark.skipif(not FULL, reason="it takes twenty seconds: scripts/test --all runs it")
def test_the_example_with_agents_prints_what_its_page_says(project):
    pytest.importorskip("crewai", reason="CrewAI has no release for this Python")
    # uv finds what it has fetched before, and certificates, by the variables of this process
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AGENTGUARD_")}
    ran = project.interpreter(str(FOLDER / "agents.py"), "--git", env=environment)
    if "uv failed" in ran.stderr and os.environ.get("CI") != "true":
        pytest.skip(f"mcp-server-git can't be fetched: {ran.stderr.strip()[-300:]}")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    page = (FOLDER / "README.md").read_text()
    assert lines[:5] == [line for line in page.splitlines() if line in lines[:5]]
    assert lines[5:] == [
        "in the log: crew, allow: 2",
        "in the log: langchain, allow: 1",
        "in the log: langchain, deny: 1",
        "the log verifies: True",
    ]
