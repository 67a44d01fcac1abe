"""The screen: columns and colours for people, JSON for scripts, the one line of an error.

A command says what it shows; that nothing from outside is taken for markup or for a control
sequence is seen to here. No command's logic lives here.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import IO, Final

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from agentguard.audit.entry import Receipt
from agentguard.cli.text import printable

_PIPE_WIDTH: Final = 160
_LONG: Final = 4000
"""Characters of one value that are shown; ``--json`` gives the whole."""

_WIDEST: Final = 24
"""Terminal cells up to which a column is aligned; a longer cell shifts its row."""

_MEASURED: Final = 500
"""Rows that a table's columns are measured by; more than these are printed as they come."""

_EVERY: Final = 256
"""Steps of a counter between two looks at the screen, which cost more than a step does."""

_NARROWEST: Final = 20
"""Terminal cells that text has beside its head, however narrow the terminal is."""

Row = tuple[Sequence[str | Text], str | Text]
"""The cells of a row, and a note to be printed below it, or nothing."""

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
    "resolved": "cyan",
    "damaged": "bold red",
}


def line(*parts: str | Text) -> None:
    """Print one line; a plain string is escaped, a ``Text`` is made by ``styled``."""
    _console(sys.stdout).print(_joined(parts), soft_wrap=True)


def recorded(said: str, members: Mapping[str, object], place: Receipt, *, json: bool) -> None:
    """Print what was done, and where it is on record."""
    if json:
        json_line({**members, "shard": place.shard, "index": place.index})
    else:
        line(f"{said} (entry {place.index} in shard {place.shard})")


def confirmed(question: str) -> bool:
    """Ask on the terminal; raises ``typer.BadParameter`` where nobody is there to answer."""
    try:
        return typer.confirm(question, err=True)  # stdout is the answer's
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        typer.echo(err=True)  # the question's line is not ended yet
        message = "nobody is there to be asked: nothing was done; --yes answers the question"
        raise typer.BadParameter(message) from None


def warn(message: str) -> None:
    """Print a warning on stderr, where it disturbs no script."""
    _console(sys.stderr).print(_joined((styled("warn", "warn: "), message)), soft_wrap=True)


def error(code: str, message: str) -> None:
    """Print an error as one line on stderr."""
    said = "; ".join(message.splitlines())
    _console(sys.stderr).print(_joined((styled("fail", f"error [{code}]: "), said)), soft_wrap=True)


def count(number: int, one: str, more: str) -> str:
    """Write a number of things."""
    return f"{number:,} {one if number == 1 else more}"


def command(text: str) -> Text:
    """Return an escaped command, which is never wrapped: a line is copied as it stands."""
    return Text(printable(text, _LONG), no_wrap=True)


def styled(kind: str, text: str) -> Text:
    """Return escaped text in the colour of a decision, an outcome or a finding."""
    return Text(printable(text, _LONG), style=_STYLES.get(kind, "bold"))


def columns(names: Sequence[str], rows: Iterable[Row]) -> None:
    """Print rows below the names of their columns, as wide as they are: no cell is ever broken.

    A cell longer than most shifts what follows it in its own row; put such columns last. A row's
    note stands below it, indented; a row without cells is a line of its own.
    """
    coming = iter(rows)
    first = list(islice(coming, _MEASURED))
    table = Table(names, first)
    table.print(chain(first, coming))


class Table:
    """Columns below their names, which are printed at once; rows may come later, and more.

    They are as wide as the names and the cells of the rows in ``like``.
    """

    def __init__(self, names: Sequence[str], like: Iterable[Row]) -> None:
        heads = tuple(Text(name, style="bold") for name in names)
        shown = [heads, *([_text(cell) for cell in cells] for cells, _note in like if cells)]
        self._widths = [max(cells[at].cell_len for cells in shown) for at in range(len(names))]
        _console(sys.stdout).print(_aligned(heads, self._widths), soft_wrap=True)

    def print(self, rows: Iterable[Row]) -> None:
        """Print rows."""
        console = _console(sys.stdout)
        for cells, note in rows:
            if cells:
                line = _aligned((_text(cell) for cell in cells), self._widths)
                console.print(line, soft_wrap=True)
            if note:
                item("      " if cells else "", note)


def item(head: str | Text, text: str | Text) -> None:
    """Print text after its head, wrapped between words; the lines below are indented alike."""
    console, first, body = _console(sys.stdout), _text(head), _text(text)
    indent = " " * first.cell_len
    room = max(console.width - len(indent), _NARROWEST)
    lines = [body.plain]
    if not body.no_wrap:
        lines = textwrap.wrap(body.plain, room, break_long_words=False, break_on_hyphens=False)
    for number, said in enumerate(lines or [""]):
        begun = first if number == 0 else Text(indent)
        console.print(Text("").join((begun, Text(said, style=body.style))), soft_wrap=True)


def sheet(rows: Iterable[tuple[str, str | Text]]) -> None:
    """Print names and what belongs to them, in two columns."""
    written = [(Text(printable(name), style="bold"), value) for name, value in rows]
    width = max((name.cell_len for name, _ in written), default=0)
    for name, value in written:
        item(_padded(name, width), value)


def json_line(value: object) -> None:
    """Print one JSON value on one line, in ASCII: it is harmless on a terminal, too."""
    sys.stdout.write(json.dumps(value, ensure_ascii=True) + "\n")


@contextmanager
def counter(
    what: str, total: int | None = None, *, quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows a growing number on stderr, where that is a terminal.

    With a ``total`` it is shown as a bar; ``quiet``, not at all.
    """
    console = _console(sys.stderr)
    if quiet or not console.is_terminal:
        yield lambda _number: None
        return
    columns: list[ProgressColumn] = [
        SpinnerColumn() if total is None else BarColumn(),
        TextColumn("{task.description} {task.completed:,.0f}"),
        _Rate(),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(what, total=total)

        def show(number: int) -> None:
            if number % _EVERY == 0:
                shown.update(task, completed=number)

        yield show


class _Rate(ProgressColumn):
    """How many steps a counter makes in a second."""

    def render(self, task: Task) -> Text:
        """Return the rate, nothing while it is unknown."""
        return Text(f"{task.speed:,.0f}/s" if task.speed is not None else "")


def _console(stream: IO[str]) -> Console:
    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


def _aligned(cells: Iterable[Text], widths: Iterable[int]) -> Text:
    pairs = zip(cells, widths, strict=True)
    made = Text("").join(_padded(cell, min(width, _WIDEST)) for cell, width in pairs)
    made.rstrip()
    return made


def _padded(cell: Text, width: int) -> Text:
    return Text("").join((cell, Text(" " * (max(width - cell.cell_len, 0) + 2))))


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(printable(cell, _LONG))


def _joined(parts: Iterable[str | Text]) -> Text:
    return Text("").join(_text(part) for part in parts)
