"""The screen: columns and colours for people, JSON for scripts, the one line of an error.

A command says what it shows. Here is seen to it that text from outside steers no screen and can't
look like agentguard's own words: it is shown as ``visible.py`` says, and in a sheet it stands
behind a bar. How it is cut into rows stands in ``layout.py``. No command's logic lives here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Final

import typer
from rich.text import Text

from agentguard import visible
from agentguard.audit.entry import Receipt
from agentguard.cli.terminal import layout

_NOTE: Final = "    | "
"""Before the note of a row of a table."""

_LINES: Final = 400
"""Lines of JSON of which a call that is to be approved shows all."""

_FIRST: Final = 300
_LAST: Final = 50
"""Lines of JSON that are shown of more."""

_NAME: Final = re.compile(r' *"(?:[^"\\]|\\.)*": ')
"""How a line of JSON begins that has a member of an object."""

_WIDEST: Final = 24
"""Terminal cells up to which a column is aligned; a longer cell shifts its row."""

_MEASURED: Final = 500
"""Rows that a table's columns are measured by; more than these are printed as they come."""

_EVERY: Final = 256
"""Steps of a counter between two looks at the screen, which cost more than a step does."""

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
    layout.flow(sys.stdout, _joined(parts))


def own(text: Text) -> None:
    """Print a line in which there is nothing from outside: no bar stands before what goes on."""
    layout.rows(sys.stdout, Text(""), text, "", by_itself=True)


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
    layout.flow(sys.stderr, _joined((styled("warn", "warn: "), message)))


def error(code: str, message: str) -> None:
    """Print an error as one line on stderr."""
    said = "; ".join(filter(None, message.split("\n")))
    layout.flow(sys.stderr, _joined((styled("fail", f"error [{code}]: "), said)))


def count(number: int, one: str, more: str) -> str:
    """Write a number of things."""
    return f"{number:,} {one if number == 1 else more}"


def command(text: str) -> Text:
    """Return an escaped command, which is never cut: a line is copied as it stands.

    Nothing from outside may stand in it but what the user has typed.
    """
    return Text(visible.written_out(text), no_wrap=True)


def styled(kind: str, text: str) -> Text:
    """Return escaped text in the colour of a decision, an outcome or a finding."""
    return Text(_sentence(text), style=_STYLES.get(kind, "bold"))


def value(data: object) -> Text:
    """Return a JSON value as it is shown, on one line; a text of it is quoted."""
    return Text(visible.shortened_text(visible.visible_json(data)))


def barred(text: str) -> Text:
    """Return text from outside that stands first in a row of a table: behind a bar."""
    return Text(f"| {_short(text)}")


def columns(names: Sequence[str], rows: Iterable[Row]) -> None:
    """Print rows below the names of their columns, as wide as they are.

    A cell longer than most shifts what follows it in its own row; put such columns last, and
    nothing from outside first. A row's note stands below it, behind a bar; a row without cells is a
    line of its own.
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
        own(_aligned(heads, self._widths))

    def print(self, rows: Iterable[Row]) -> None:
        """Print rows."""
        for cells, note in rows:
            if cells:
                layout.flow(sys.stdout, _aligned((_text(cell) for cell in cells), self._widths))
            if note and cells:
                head = "      " if _text(note).no_wrap else _NOTE
                layout.rows(sys.stdout, Text(head), _text(note), _NOTE)
            elif note:
                line(note)


def item(head: str | Text, text: str | Text) -> None:
    """Print text after its head, which is agentguard's own; the rows below stand behind a bar."""
    first = head if isinstance(head, Text) else Text(head)
    layout.rows(sys.stdout, first, _text(text), f"{'| ':>{max(first.cell_len, 2)}}")


def sheet(rows: Iterable[tuple[str, str | Text]]) -> None:
    """Print names and what belongs to them, in two columns: the right one behind a bar."""
    written = [(Text(_short(name), style="bold"), value) for name, value in rows]
    width = max((name.cell_len for name, _ in written), default=0)
    for name, value in written:
        body = _text(value)
        bar = "   " if body.no_wrap else " | "  # a command is agentguard's own
        head = Text("").join((name, Text(" " * (width - name.cell_len) + bar)))
        layout.rows(sys.stdout, head, body, f"{'| ':>{width + 3}}")


def size(data: object) -> str:
    """Return how many characters ``document`` shows of a JSON value, without its indentation."""
    lines = visible.visible_json(data, indent=2).split("\n")
    return count(sum(len(text.lstrip(" ")) for text in lines), "character", "characters")


def document(data: object, *, whole: bool) -> bool:
    """Print a JSON value on lines of its own, each behind a bar; return whether all of it is shown.

    Unless it is to be shown ``whole``, the middle of a long text is left out, and that of many
    lines; how much that is stands there.
    """
    lines = visible.visible_json(data, indent=2).split("\n")
    out = range(0) if whole or len(lines) <= _LINES else range(_FIRST, len(lines) - _LAST)
    for number, text in enumerate(lines):
        if number not in out:
            _json_line(text if whole else _member(text))
        elif number == out.start:
            own(Text(f"... {count(len(out), 'line is', 'lines are')} left out here"))
    return not out and (whole or all(_member(text) == text for text in lines))


def _member(text: str) -> str:
    """Return a line of JSON with its value shortened: what is said of it stands after its name."""
    name = _NAME.match(text)
    at = name.end() if name and name.end() < visible.LONG else len(text) - len(text.lstrip(" "))
    return text[:at] + visible.shortened_text(text[at:])


def _json_line(text: str) -> None:
    body = text.lstrip(" ")
    indentation = min(len(text) - len(body), layout.width(sys.stdout, layout.PIPE_WIDTH) // 3)
    head = layout.BAR + " " * indentation
    layout.rows(sys.stdout, Text(head), Text(body), f"{head}    ")  # where no member of it begins


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
    console = None if quiet else layout.console(sys.stderr)
    if console is None or not console.is_terminal:
        yield lambda _number: None
        return
    from agentguard.cli.terminal import progress  # noqa: PLC0415  it is slow, and few commands count

    with progress.shown(what, total, console) as show:
        yield lambda number: show(number) if number % _EVERY == 0 else None


def _aligned(cells: Iterable[Text], widths: Iterable[int]) -> Text:
    pairs = zip(cells, widths, strict=True)
    made = Text("").join(padded(cell, min(width, _WIDEST)) for cell, width in pairs)
    made.rstrip()
    return made


def padded(cell: Text, width: int) -> Text:
    """Return a cell with spaces after it, two at the least."""
    return Text("").join((cell, Text(" " * (max(width - cell.cell_len, 0) + 2))))


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(_short(cell))


def _short(text: str) -> str:
    return visible.shortened_text(visible.visible_text(text))


def _joined(parts: Iterable[str | Text]) -> Text:
    return Text("").join(
        part if isinstance(part, Text) else Text(_sentence(part)) for part in parts
    )


def _sentence(text: str) -> str:
    """Return a part of a line as it is shown; a space at its end joins it to the next part."""
    before, after = (" " if end == " " else "" for end in (text[:1], text[1:][-1:]))
    return f"{before}{_short(text.strip(' '))}{after}"
