"""A growing number on a terminal, as a bar where it is known how far it goes."""

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
def shown(what: str, total: int | None, console: Console) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows a number, until the block ends."""
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
    """How many steps a counter makes in a second."""

    def render(self, task: Task) -> Text:
        """Return the rate, nothing while it is unknown."""
        return Text(f"{task.speed:,.0f}/s" if task.speed is not None else "")
