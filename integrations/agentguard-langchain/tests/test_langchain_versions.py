"""The versions of LangChain and LangGraph that the adapter runs on.

How a range is read stands in tests/unit/test_frameworks.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from langchain_mcp_adapters.tools import load_mcp_tools
from packaging.requirements import Requirement

from agentguard import ConfigError
from agentguard_langchain import mcp_origin
from agentguard_langchain.binding import origin_of

FOLDER = Path(__file__).parents[1]
LOOKING = """
import json, sys
said = []
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    try:
        import agentguard_langchain
    except Exception as error:
        said.append([getattr(error, "code", repr(error)), str(error)])
    sys.path.remove(folder)
    assert not {"langchain", "langchain_core", "langgraph"} & sys.modules.keys()
    for name in [name for name in sys.modules if name.startswith("agentguard_langchain")]:
        del sys.modules[name]
print(json.dumps(said))
"""
"""Says how the adapter's import fails beside each of these folders of distributions."""
NEEDED = {
    "langchain": "langchain<2,>=1.3.18",
    "langchain-core": "langchain-core<2,>=1.6.13",
    "langgraph": "langgraph<2,>=1.2.18",
    "langchain-mcp-adapters": "langchain-mcp-adapters<0.4,>=0.3",
    "mcp": "mcp<2,>=1.24",
}


def installed(folder, name, version):
    """Make a folder in which ``name`` is installed in this version."""
    made = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    return folder


def unsupported(name, version):
    return (
        f"agentguard-langchain needs {NEEDED[name]}, and {name} {version} is installed: install a "
        f"version that it runs on (pip install '{NEEDED[name]}')"
    )


def test_the_adapter_looks_before_it_imports_a_framework(tmp_path):
    """In an interpreter of its own, which has imported no framework yet."""
    wrong = [
        ("langchain", "1.3.17"),
        ("langchain", "2.0"),
        ("langchain-core", "1.6.12"),
        ("langgraph", "1.2.17"),
    ]
    folders = [installed(tmp_path / f"{name}-{version}", name, version) for name, version in wrong]
    command = [sys.executable, "-c", LOOKING, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        ["framework.unsupported", unsupported(*one)] for one in wrong
    ]


@pytest.fixture
def _looks_anew():
    """The adapter looks once for what tools of MCP servers need."""
    mcp_origin.require_mcp.cache_clear()
    yield
    mcp_origin.require_mcp.cache_clear()


@pytest.mark.usefixtures("_looks_anew")
@pytest.mark.parametrize(("name", "version"), [("langchain-mcp-adapters", "0.2"), ("mcp", "2.0")])
def test_a_tool_of_an_mcp_server_asks_for_the_versions_that_name_the_server(
    tmp_path, monkeypatch, name, version
):
    monkeypatch.syspath_prepend(installed(tmp_path, name, version))
    with pytest.raises(ConfigError) as refused:
        origin_of(load_mcp_tools)
    assert (refused.value.code, str(refused.value)) == (
        "framework.unsupported",
        unsupported(name, version),
    )


@pytest.mark.usefixtures("_looks_anew")
def test_what_is_installed_runs():
    """The twin."""
    assert origin_of(load_mcp_tools) == "langchain_mcp_adapters.tools:load_mcp_tools"


def test_what_is_installed_of_the_adapter_asks_for_what_its_project_does():
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text("utf-8"))["project"]
    installed = [Requirement(one) for one in requires("agentguard-langchain") or ()]
    written = map(Requirement, project["dependencies"])
    plain = {str(one) for one in installed if one.marker is None}
    assert plain == {str(one) for one in written}
    mcp = {str(Requirement(one)) for one in project["optional-dependencies"]["mcp"]}
    assert {str(one).partition(";")[0] for one in installed if "mcp" in str(one.marker)} == mcp
    assert set(NEEDED.values()) <= plain | mcp
