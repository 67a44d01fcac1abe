"""Text of models and tools on the screens of the log: never where agentguard's own words stand."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator

import pyte
import pytest
from click.testing import CliRunner

from agentguard.cli.commands import app
from agentguard.cli.terminal import screen
from agentguard.errors import AgentguardError

BEGUN = re.compile(
    r"[a-z ]{0,12} *\| |[0-9]+  |(ok|warn|fail) +|nothing in the log matches|error \[[a-z.]+\]: "
)
"""How a row begins that has text of a call: behind a bar, or with agentguard's own words."""

FOREIGN = "\u0416"  # a letter that agentguard never says
POLICY = """package agent.authz
default allow := false
denied if startswith(input.args.text, "no")
allow if not denied
deny_reasons contains text if {
    text := input.args.text
    denied
}
"""
CALLS = r"""
from agentguard import Denied, Guard

ZH = "\u0416"
texts = [
    f"{ZH}{' ' * pad}{ZH}\u2028{ZH}\x85tool | {ZH}\r\n{ZH}\t{ZH * 90} {ZH}\x1b[2J\x1b[H{ZH}"
    for pad in (1, 18, 60, 76, 150)
]
with Guard.open("agentguard.toml") as guard:
    assistant = guard.new_agent("assistant")
    kinds = [type(f"{ZH * 50}{ZH}", (Exception,), {})]

    @guard.tool(name=texts[1][:200], resource="x:{text}")
    def one(text: str) -> str:
        return text

    @guard.tool(name=ZH * 300)
    def two(text: str) -> str:
        raise kinds[0](text)

    for tool in (one, two):
        for text in (*texts, "no " + texts[0], *(["x" * 9000 + ZH] if tool is one else [])):
            try:
                assistant.call(tool, text)
            except (Denied, kinds[0]):
                pass
"""


@pytest.fixture
def calls(project, monkeypatch):
    """The ids of calls whose texts draw rows of their own, in a log of this folder."""
    assert project.run("init").returncode == 0
    (project.folder / "policies" / "authz.rego").write_text(POLICY)
    called = project.python("-c", CALLS)
    assert called.returncode == 0, called.stderr
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("HOME", str(project.home))
    rows = project.lines("audit", "list")
    return [row["invocation_id"] for row in rows if row["kind"] == "call"]


WIDE = pytest.param(80, marks=pytest.mark.slow("draws each screen once more, in its other width"))


@pytest.mark.parametrize("width", [20, WIDE])
def test_no_cell_at_the_left_edge_holds_text_of_a_call(calls, width):
    assert len(calls) == 13
    look(calls, width)


def look(calls: list[str], width: int) -> None:
    drawn = 0
    for command in (
        ["audit", "list", "--last", "0"],
        ["audit", "tail", "--no-follow", "--last", "99"],
        *(["audit", "show", call] for call in (calls[1], calls[5], calls[6], calls[-1])),
        ["resolve", calls[0], "--ran", "--note", f"{FOREIGN * 90} {' ' * width}{FOREIGN}"],
        ["audit", "list", "--tool", f"{FOREIGN * width}{' ' * width}{FOREIGN}"],
        ["agents", "show", f"{FOREIGN * width}\u2028{FOREIGN}"],
        ["doctor"],
    ):
        ran = CliRunner().invoke(app, command, env={"COLUMNS": str(width)})
        output = ran.output
        if isinstance(ran.exception, AgentguardError):
            with capture(width) as stream:
                screen.error(ran.exception.code, str(ran.exception))
            output += stream.getvalue()
        for row in rows(output, width):
            drawn += FOREIGN in row
            assert FOREIGN not in row[:4], (command, row)
            assert FOREIGN not in row or BEGUN.match(row), (command, row)
    assert drawn > 100


@contextlib.contextmanager
def capture(width: int) -> Iterator[io.StringIO]:
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as stream:
        patch.setenv("COLUMNS", str(width))
        yield stream


def rows(output: str, width: int) -> list[str]:
    terminal = pyte.Screen(width, len(output) * 2 // width + output.count("\n") + 2)
    terminal.set_mode(pyte.modes.LNM)
    pyte.Stream(terminal).feed(output)
    return [row.rstrip() for row in terminal.display]
