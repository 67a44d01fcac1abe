"""Prints for people (columns, colours), for scripts (JSON), and errors of one line.

Text from outside can neither control the terminal nor look like agentguard's own words: this module
escapes each character by the rules of ``visible.py``, and prints the text of a sheet after a bar.
``layout.py`` cuts lines into rows. The logic of a command is in the module of the command.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Final

import click
from rich.text import Text

from agentguard import visible
from agentguard.audit.entry import LogPlace
from agentguard.cli.terminal import layout

_NOTE: Final = "    | "
"""The beginning of a note below a row of a table."""

_LINES: Final = 400
"""How many lines of JSON are printed without a gap."""

_FIRST: Final = 300
_LAST: Final = 50
"""How many lines are printed before and after the gap of a longer JSON value."""

_NAME: Final = re.compile(r' *"(?:[^"\\]|\\.)*": ')
"""The name of an object's member at the beginning of a line of JSON."""

_WIDEST: Final = 24
"""The largest width of an aligned column in terminal cells; a longer cell shifts its row."""

_MEASURED: Final = 500
"""How many rows decide the widths of columns; later rows are printed as they come."""

_EVERY: Final = 256
"""How many steps of a counter pass between two updates of the screen."""

Row = tuple[Sequence[str | Text], str | Text]
"""The cells of a row, and the note below the row (empty for none)."""

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
    """Print one line. Plain strings are escaped; pass a ``Text`` from ``styled``."""
    layout.flow(sys.stdout, _joined(parts))


def own_words(text: Text) -> None:
    """Print a line of agentguard's own words, all rows without a bar."""
    layout.rows(sys.stdout, Text(""), text, "", by_itself=True)


def recorded(summary: str, members: Mapping[str, object], place: LogPlace, *, json: bool) -> None:
    """Print the result of a command that writes to the log, and the place of the entry."""
    if json:
        json_line({**members, "index": place.index})
    else:
        line(f"{summary} (entry {place.index})")


def confirmed(question: str) -> bool:
    """Ask a question on the terminal; raises ``click.BadParameter`` without a terminal."""
    try:
        return click.confirm(question, err=True)  # stdout is for the result of the command
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo(err=True)  # ends the line of the question
        message = (
            "the question needs a terminal, and nothing was done: run the command in a terminal, "
            "or with --yes"
        )
        raise click.BadParameter(message) from None


def warn(message: str) -> None:
    """Print a warning on stderr, where it disturbs no script."""
    layout.flow(sys.stderr, _joined((styled("warn", "warn: "), message)))


def error(code: str, message: str) -> None:
    """Print an error as one line on stderr."""
    summary = "; ".join(filter(None, message.split("\n")))
    layout.flow(sys.stderr, _joined((styled("fail", f"error [{code}]: "), summary)))


def count(number: int, one: str, more: str) -> str:
    """Return a number with its noun, as in ``1 call`` or ``2 calls``."""
    return f"{number:,} {one if number == 1 else more}"


def command(text: str) -> Text:
    """Return an escaped command that is never cut into rows, so that a user can copy the line.

    The command must hold no text from outside, except what the user has typed.
    """
    return Text(visible.written_out(text), no_wrap=True)


def styled(kind: str, text: str) -> Text:
    """Return escaped text in the colour of a decision, an outcome or a finding."""
    return Text(_sentence(text), style=_STYLES.get(kind, "bold"))


def value(data: object) -> Text:
    """Return a JSON value on one line, with quoted strings, shortened and escaped."""
    return Text(visible.shortened_text(visible.visible_json(data)))


def barred(text: str) -> Text:
    """Return text from outside for the first cell of a row: after a bar."""
    return Text(f"| {_short(text)}")


def indented(depth: int, text: str) -> Text:
    """Return text from outside for a cell that agentguard indents by ``depth`` steps."""
    return Text("  " * depth + _short(text.strip(" ")))


def columns(names: Sequence[str], rows: Iterable[Row]) -> None:
    """Print rows in columns below the names of the columns.

    A very long cell shifts the cells after it, so put columns with such cells last. Put no text
    from outside into the first column. A row's note is printed below the row, after a bar; the note
    of a row without cells is printed as a line.
    """
    remaining = iter(rows)
    first = list(islice(remaining, _MEASURED))
    table = Table(names, first)
    table.print(chain(first, remaining))


class Table:
    """Prints the names of columns at once, and rows whenever they come.

    The names and the rows in ``like`` decide the widths of the columns.
    """

    def __init__(self, names: Sequence[str], like: Iterable[Row]) -> None:
        heads = tuple(Text(name, style="bold") for name in names)
        sample = [heads, *([_text(cell) for cell in cells] for cells, _note in like if cells)]
        self._widths = [max(cells[at].cell_len for cells in sample) for at in range(len(names))]
        own_words(_aligned(heads, self._widths))

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
    """Print text after a head; further rows begin with a bar.

    A plain head is escaped: the head may have a name from outside.
    """
    first = head if isinstance(head, Text) else Text(_indented(head))
    layout.rows(sys.stdout, first, _text(text), f"{'| ':>{max(first.cell_len, 2)}}")


def sheet(rows: Iterable[tuple[str, str | Text]]) -> None:
    """Print names and values in two columns, the values after a bar."""
    cells = [(Text(_short(name), style="bold"), value) for name, value in rows]
    width = max((name.cell_len for name, _ in cells), default=0)
    for name, value in cells:
        body = _text(value)
        bar = "   " if body.no_wrap else " | "  # a command is agentguard's own
        head = Text("").join((name, Text(" " * (width - name.cell_len) + bar)))
        layout.rows(sys.stdout, head, body, f"{'| ':>{width + 3}}")


def size(data: object) -> str:
    """Return the number of characters that ``document`` prints, without indentation."""
    lines = visible.visible_json(data, indent=2).split("\n")
    return count(sum(len(text.lstrip(" ")) for text in lines), "character", "characters")


def document(data: object, *, whole: bool) -> bool:
    """Print a JSON value in lines after a bar; return whether nothing was left out.

    Unless ``whole``, leave out the middle of long strings and of many lines, and print how much is
    missing there.
    """
    lines = visible.visible_json(data, indent=2).split("\n")
    out = range(0) if whole or len(lines) <= _LINES else range(_FIRST, len(lines) - _LAST)
    for number, text in enumerate(lines):
        if number not in out:
            _json_line(text if whole else _member(text))
        elif number == out.start:
            own_words(Text(f"... {count(len(out), 'line is', 'lines are')} left out here"))
    return not out and (whole or all(_member(text) == text for text in lines))


def _member(text: str) -> str:
    """Return a line of JSON with its value shortened, and the member's name in full."""
    name = _NAME.match(text)
    at = name.end() if name and name.end() < visible.LONG else len(text) - len(text.lstrip(" "))
    return text[:at] + visible.shortened_text(text[at:])


def _json_line(text: str) -> None:
    body = text.lstrip(" ")
    indentation = min(len(text) - len(body), layout.width(sys.stdout, layout.PIPE_WIDTH) // 3)
    head = layout.BAR + " " * indentation
    # A further row is indented more than the members of the object, so as not to look like one.
    layout.rows(sys.stdout, Text(head), Text(body), f"{head}    ")


def json_line(value: object) -> None:
    """Print a JSON value on one line in ASCII, which can't control a terminal."""
    sys.stdout.write(json.dumps(value, ensure_ascii=True) + "\n")


@contextmanager
def counter(
    what: str, total: int | None = None, *, quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """Yield a function that updates a counter on stderr, if stderr is a terminal.

    With a ``total``, show a progress bar; with ``quiet``, show nothing.
    """
    console = None if quiet else layout.console(sys.stderr)
    if console is None or not console.is_terminal:
        yield lambda _number: None
        return
    from agentguard.cli.terminal import progress  # noqa: PLC0415  slow, and few commands need it

    with progress.progress_counter(what, total, console) as show:
        yield lambda number: show(number) if number % _EVERY == 0 else None


def _aligned(cells: Iterable[Text], widths: Iterable[int]) -> Text:
    pairs = zip(cells, widths, strict=True)
    line_text = Text("").join(padded(cell, min(width, _WIDEST)) for cell, width in pairs)
    line_text.rstrip()
    return line_text


def padded(cell: Text, width: int) -> Text:
    """Return a cell with at least two spaces after it."""
    return Text("").join((cell, Text(" " * (max(width - cell.cell_len, 0) + 2))))


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(_short(cell))


def _short(text: str) -> str:
    return visible.shortened_text(visible.visible_text(text))


def _joined(parts: Iterable[str | Text]) -> Text:
    return Text("").join(
        part if isinstance(part, Text) else Text(_sentence(part)) for part in parts
    )


def _indented(text: str) -> str:
    """Escape and shorten a text, and keep all spaces at its beginning and end."""
    words = text.strip(" ")
    return text.replace(words, _short(words), 1) if words else text


def _sentence(text: str) -> str:
    """Escape and shorten a part of a line, and keep a space at its beginning and end."""
    before, after = (" " if end == " " else "" for end in (text[:1], text[1:][-1:]))
    return f"{before}{_short(text.strip(' '))}{after}"
