"""The versions of LangChain and LangGraph that the adapter runs on.

How a range is read stands in tests/unit/test_frameworks.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

FOLDER = Path(__file__).parents[1]
IMPORTING = """
import sys
try:
    import agentguard_langchain
finally:
    assert not {"langchain", "langchain_core", "langgraph"} & sys.modules.keys()
"""
MCP_TOOL = """
from agentguard_langchain.binding import origin_of
from langchain_mcp_adapters.tools import load_mcp_tools
origin_of(load_mcp_tools)
"""
NEEDED = {
    "langchain": "langchain<2,>=1.5",
    "langchain-core": "langchain-core<2,>=1.8",
    "langgraph": "langgraph<2,>=1.2",
    "langchain-mcp-adapters": "langchain-mcp-adapters<0.4,>=0.3",
    "mcp": "mcp<2,>=1.24",
}


def last_line(folder, name, version, program):
    """What a program says last where ``name`` is there in this version."""
    made = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    made.mkdir()
    (made / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


@pytest.mark.parametrize(
    ("name", "version"),
    [("langchain", "1.4.9"), ("langchain", "2.0"), ("langchain-core", "1.7"), ("langgraph", "1.1")],
)
def test_the_adapter_looks_before_it_imports_a_framework(tmp_path, name, version):
    code, said = last_line(tmp_path, name, version, IMPORTING)
    assert code == 1
    assert said == (
        f"agentguard.errors.ConfigError: agentguard-langchain needs {NEEDED[name]}, and {name} "
        f"{version} is installed: install a version that it runs on (pip install '{NEEDED[name]}')"
    )


@pytest.mark.parametrize(("name", "version"), [("langchain-mcp-adapters", "0.2"), ("mcp", "2.0")])
def test_a_tool_of_an_mcp_server_asks_for_the_versions_that_name_the_server(
    tmp_path, name, version
):
    code, said = last_line(tmp_path, name, version, MCP_TOOL)
    assert (code, f"needs {NEEDED[name]}, and {name} {version} is installed" in said) == (1, True)


def test_what_is_installed_runs():
    """The twin."""
    done = subprocess.run([sys.executable, "-c", MCP_TOOL], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_is_installed_of_the_adapter_asks_for_what_its_project_does():
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text("utf-8"))["project"]
    installed = [Requirement(one) for one in requires("agentguard-langchain") or ()]
    written = map(Requirement, project["dependencies"])
    plain = {str(one) for one in installed if one.marker is None}
    assert plain == {str(one) for one in written}
    mcp = {str(Requirement(one)) for one in project["optional-dependencies"]["mcp"]}
    assert {str(one).partition(";")[0] for one in installed if "mcp" in str(one.marker)} == mcp
    assert set(NEEDED.values()) <= plain | mcp
