"""Each option of each command that takes a value refuses an empty text, but for two."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import commands
import pytest

from agentguard.cli.commands import Deferred, app
from agentguard.cli.terminal.options import MAY_BE_EMPTY


def options(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield each option that takes a value, with the words of its command."""
    command = command.resolve() if isinstance(command, Deferred) else command
    for name, inner in getattr(command, "commands", {}).items():
        yield from options(inner, (*words, name))
    for one in command.params:
        if one.param_type_name == "option" and not one.is_flag:
            yield " ".join((*words, one.opts[0])), one


OPTIONS = dict(options(app))
REFUSING = {where: one for where, one in OPTIONS.items() if one.name not in MAY_BE_EMPTY}


@pytest.mark.parametrize("where", sorted(REFUSING))
def test_an_empty_option_is_refused(where):
    option, context = REFUSING[where], click.Context(app)
    for empty in ("", [""], ["x", ""]):
        with pytest.raises(click.BadParameter, match="names nothing"):
            option.process_value(context, empty)


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
