"""What a type checker says of calls: mypy, strict as users set it, on a module of snippets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
PREAMBLE = """\
from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from agentguard import Agent, AsyncTool, Guard, Tool


def tools(guard: Guard) -> None:
    @guard.tool
    def bare(repo: str, branch: str = "main") -> int:
        return 1

    @guard.tool(resource="repo:{repo}")
    def given(repo: str, branch: str = "main") -> int:
        return 1

    @guard.tool
    async def abare(repo: str) -> int:
        return 1

    @guard.tool(resource="repo:{repo}")
    async def agiven(repo: str) -> int:
        return 1

    @guard.tool
    def postponed(repo: str) -> Coroutine[Any, Any, int]:
        return work()

    @guard.tool
    def anything(repo: str) -> dict[str, Any]:
        return {}
"""
NO_TOOL = 'Argument 1 to "call" of "Agent" has incompatible type "AsyncTool'
FOUND = {
    # a misspelt name of the package, though each is imported at its first use
    "from agentguard import Gaurd": 'Module "agentguard" has no attribute "Gaurd"',
    # a misspelt, a missing and a mistyped argument, each by its name
    'agent.call(bare, repo="x", brunch="y")': 'Unexpected keyword argument "brunch"',
    'agent.call(given, repo="x", brunch="y")': 'Unexpected keyword argument "brunch"',
    'agent.call(anything, ripo="x")': 'Unexpected keyword argument "ripo"',
    'agent.call(bare, branch="y")': 'Missing positional argument "repo"',
    "agent.call(given, repo=1)": 'Argument "repo" to "call" of "Agent" has incompatible type "int"',
    'await agent.acall(bare, ripo="x")': 'Unexpected keyword argument "ripo"',
    'await agent.acall(abare, ripo="x")': 'Unexpected keyword argument "ripo"',
    'await agent.acall(agiven, "x", "y")': "Too many arguments",
    # a coroutine function
    'agent.call(abare, repo="x")': NO_TOOL,
    'agent.call(agiven, "x")': NO_TOOL,
    'agent.call(postponed, "x")': NO_TOOL,
    # the result
    'result: str = agent.call(bare, "x")': 'expression has type "int", variable has type "str"',
    'result: str = await agent.acall(agiven, "x")': 'has incompatible type "AsyncTool[[str], int]"',
    # past any agent
    'bare(repo="x")': "not callable",
    'await abare(repo="x")': "not callable",
    "function: Callable[[str], int] = bare": "Incompatible types in assignment",
    # and the statement after any of them is still looked at
    'agent.call(bare, "x"); text: str = 1': 'expression has type "int", variable has type "str"',
}
FINE = [
    'one: int = agent.call(bare, repo="x", branch="y")',
    'two: int = agent.call(given, "x", branch="y")',
    'three: int = await agent.acall(bare, "x")',
    'four: int = await agent.acall(abare, repo="x")',
    'five: int = await agent.acall(agiven, "x")',
    'six: int = await agent.acall(postponed, "x")',
    'seven: dict[str, Any] = agent.call(anything, repo="x")',
    "eight: Tool[[str, str], int] = bare",
    "nine: AsyncTool[[str], int] = agiven",
]


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What mypy says of each snippet; one run for all of them."""
    folder = tmp_path_factory.mktemp("typing")
    lines = PREAMBLE.splitlines()
    lines += ["", "    async def work() -> int:", "        return 1", ""]
    snippets = {}
    for number, snippet in enumerate([*FOUND, *FINE]):
        lines += [f"    async def case_{number}(agent: Agent) -> None:", f"        {snippet}"]
        snippets[len(lines)] = snippet
    (folder / "snippets.py").write_text("\n".join(lines) + "\n")
    command: list[str] = [sys.executable, "-m", "mypy", "--config-file=", "--strict", "snippets.py"]
    run = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(SOURCE), "MYPY_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    found: dict[str, list[str]] = {snippet: [] for snippet in snippets.values()}
    for line in run.stdout.splitlines():
        if error := re.match(r"snippets\.py:(\d+): error: (.*)", line):
            found[snippets[int(error[1])]].append(error[2])
    return found


def test_each_mistake_is_found_and_named_and_what_is_right_is_left_alone(findings):
    wrong = {
        snippet: errors
        for snippet, errors in findings.items()
        if len(errors) != (snippet in FOUND) or any(FOUND[snippet] not in said for said in errors)
    }
    assert wrong == {}
    assert len(findings) == len(FOUND) + len(FINE)
