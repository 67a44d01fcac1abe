"""The screen: tables and colours for people, JSON for scripts, the one line of an error.

A command says what it shows; that nothing from outside is taken for markup or for a control
sequence is seen to here. No command's logic lives here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from agentguard.cli.text import printable

_PIPE_WIDTH: Final = 160
_LONG: Final = 4000
"""Characters of one value that are shown; ``--json`` gives the whole."""

_STYLES: Final = {
    "allow": "green",
    "deny": "red",
    "approval": "yellow",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
    "error": "red",
    "unknown": "yellow",
    "in_doubt": "bold yellow",
    "damaged": "bold red",
}


def line(*parts: str | Text) -> None:
    """Print one line; a plain string is escaped, a ``Text`` is made by ``styled``."""
    _console(sys.stdout).print(_joined(parts), soft_wrap=True)


def warn(message: str) -> None:
    """Print a warning on stderr, where it disturbs no script."""
    _console(sys.stderr).print(_joined((styled("warn", "warn: "), message)), soft_wrap=True)


def error(code: str, message: str) -> None:
    """Print an error as one line on stderr."""
    said = "; ".join(message.splitlines())
    _console(sys.stderr).print(_joined((styled("fail", f"error [{code}]: "), said)), soft_wrap=True)


def styled(kind: str, text: str) -> Text:
    """Return escaped text in the colour of a decision, an outcome or a finding."""
    return Text(printable(text, _LONG), style=_STYLES.get(kind, "bold"))


def table(columns: Iterable[str], rows: Iterable[Iterable[str | Text]], *, title: str = "") -> None:
    """Print a table."""
    made = Table(title=Text(printable(title)) if title else None, title_justify="left")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(_text(cell) for cell in row))
    _console(sys.stdout).print(made)


def sheet(rows: Iterable[tuple[str, str | Text]]) -> None:
    """Print names and what belongs to them, in two columns."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(_text(name), _text(value))
    _console(sys.stdout).print(grid)


def json_line(value: object) -> None:
    """Print one JSON value on one line, in ASCII: it is harmless on a terminal, too."""
    sys.stdout.write(json.dumps(value, ensure_ascii=True) + "\n")


@contextmanager
def counter(what: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows a growing number on stderr, where that is a terminal."""
    console = _console(sys.stderr)
    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed}"))
    shown = Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with shown:
        task = shown.add_task(what, total=None)
        yield lambda number: shown.update(task, completed=number)


def _console(stream: IO[str]) -> Console:
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(printable(cell, _LONG))


def _joined(parts: Iterable[str | Text]) -> Text:
    return Text("").join(_text(part) for part in parts)
