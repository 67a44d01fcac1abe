"""Each option of each command that takes a value refuses an empty text, but for two."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import pytest
import typer
from typer.main import get_command

from agentguard.cli.commands import app
from agentguard.cli.lazy import MAY_BE_EMPTY, Deferred


def options(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield each option that takes a value, with the words of its command."""
    command = command.resolve() if isinstance(command, Deferred) else command
    for name, inner in getattr(command, "commands", {}).items():
        yield from options(inner, (*words, name))
    for one in command.params:
        if one.param_type_name == "option" and not one.is_flag:
            yield " ".join((*words, one.opts[0])), one


OPTIONS = dict(options(get_command(app)))
REFUSING = {where: one for where, one in OPTIONS.items() if one.name not in MAY_BE_EMPTY}


@pytest.mark.parametrize("where", sorted(REFUSING))
def test_an_empty_option_is_refused(where):
    option, context = REFUSING[where], typer.Context(get_command(app))
    for empty in ("", [""], ["x", ""]):
        with pytest.raises(typer.BadParameter, match="names nothing"):
            option.callback(context, option, empty)


def test_a_command_line_with_an_empty_option_is_a_mistake(tmp_path):
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    ran = commands.run(["audit", "list", "--principal", ""], env=env, cwd=Path(tmp_path))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "names nothing" in ran.stderr
    twin = commands.run(["audit", "list", "--principal", "user:a"], env=env, cwd=Path(tmp_path))
    assert "names nothing" not in twin.stderr


def test_so_many_options_are_asked():
    assert {"mcp run --agent", "mcp serve --principal", "token exchange --scope"} <= REFUSING.keys()
    assert {one.name for where, one in OPTIONS.items() if where not in REFUSING} == MAY_BE_EMPTY
    assert len(REFUSING) > 60, len(REFUSING)
