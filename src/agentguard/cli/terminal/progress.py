"""Shows a growing number on a terminal, as a bar where the total is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


@contextmanager
def progress_counter(
    what: str, total: int | None, console: Console
) -> Iterator[Callable[[int], None]]:
    """Yield a function that updates the number on the terminal, until the block ends."""
    columns: list[ProgressColumn] = [
        SpinnerColumn() if total is None else BarColumn(),
        TextColumn("{task.description} {task.completed:,.0f}"),
        _Rate(),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda number: progress.update(task, completed=number)


class _Rate(ProgressColumn):
    """The column with the steps per second."""

    def render(self, task: Task) -> Text:
        """Return the rate; an empty text while it is unknown."""
        return Text(f"{task.speed:,.0f}/s" if task.speed is not None else "")
