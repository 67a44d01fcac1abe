"""Export traces from Jaeger's query API into one file: what ``scripts/jaeger-export`` runs.

The file has the form of Jaeger's own answers, and is what ``agentguard audit verify --against`` and
``scripts/waterfall`` take. Jaeger cuts an answer off at a number of traces and does not say so, nor
which it left out; so a time of which that many come is asked for again in halves.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from agentguard.cli.terminal import files, times
from agentguard.cli.terminal.options import FORCE, OUTPUT, Argument, Option, command, trace_id
from agentguard.errors import StorageError

_TIMEOUT: Final = 60.0  # seconds, of one question with its whole answer
_LONGEST: Final = 64 * 1024 * 1024  # bytes of one answer, as audit verify --against takes them
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# A proxy is for what is elsewhere.
_DIRECTLY: Final = dict.fromkeys(("all://127.0.0.1", "all://[::1]", "all://localhost"))

Trace = dict[str, Any]


class ExportError(Exception):
    """The traces can't be had; says why."""


class Period(NamedTuple):
    """A period of time, in microseconds since the epoch; both ends belong to it."""

    start: int
    end: int

    def halves(self) -> tuple[Period, Period]:
        """Return its earlier and its later half; raises ExportError for a single microsecond.

        They share the middle: a span that began within that microsecond is in the later half.
        """
        if self.end - self.start <= 1:
            raise ExportError("as many traces as --limit began in one microsecond: raise it")
        middle = (self.start + self.end) // 2
        return Period(self.start, middle), Period(middle, self.end)


def traces_of(
    jaeger: httpx.Client, service: str, whole: Period, limit: int
) -> Iterator[tuple[list[Trace], Period]]:
    """Yield the traces that have spans of a service in a period, part by part of the period.

    A trace comes with every part that it has spans in. Raises ExportError.
    """
    pending = [whole]
    while pending:
        period = pending.pop()
        found = ask_for_traces(
            jaeger,
            "/api/traces",
            {"service": service, "start": period.start, "end": period.end, "limit": limit},
        )
        if len(found) < limit:
            yield found, period
        else:
            pending += reversed(period.halves())


def ask(jaeger: httpx.Client, path: str, query: dict[str, str | int]) -> list[Any]:
    """Ask for traces, or names; raises ExportError for all but a whole answer.

    It has to be there within _LONGEST and _TIMEOUT, and is asked for as it is: what is packed may
    unpack to any size.
    """
    ends, data = time.monotonic() + _TIMEOUT, bytearray()
    headers = {"Accept-Encoding": "identity"}
    try:
        with jaeger.stream("GET", path, params=query, headers=headers) as answer:
            for part in answer.iter_raw():
                data += part
                if len(data) > _LONGEST:
                    problem = f"{_LONGEST >> 20} MiB: ask for fewer traces at once with --limit"
                    raise ExportError(f"{answer.url} answers with more than {problem}")
                if time.monotonic() > ends:
                    problem = f"{_TIMEOUT:g} s: ask for a shorter time, or fewer at once"
                    raise ExportError(f"{answer.url} goes on answering for more than {problem}")
    except httpx.HTTPError as error:
        raise ExportError(f"{jaeger.base_url} does not answer: {error!r}") from error
    try:
        said = json.loads(data)
        failed, found = said.get("errors"), said.get("data")
    except (ValueError, AttributeError, RecursionError):
        said = failed = found = None
    if answer.status_code == httpx.codes.OK and said_nothing(said):
        return []
    if answer.status_code != httpx.codes.OK or failed or not isinstance(found, list):
        what = failed or repr(bytes(data[:200]))
        raise ExportError(f"{answer.url} answers {answer.status_code} and no traces: {what}")
    return found


def said_nothing(said: Any) -> bool:
    """Whether an answer is that of a Jaeger that has nothing: its null stands for an empty list."""
    match said:
        case {"data": None, "total": 0, "errors": None}:
            return True
    return False


def ask_for_traces(jaeger: httpx.Client, path: str, query: dict[str, str | int]) -> list[Trace]:
    """Ask for traces; raises ExportError."""
    found = ask(jaeger, path, query)
    if not all(map(is_trace, found)):
        raise ExportError(f"{jaeger.base_url} answers with what is no trace of Jaeger's")
    return found


def require_known(jaeger: httpx.Client, service: str) -> None:
    """Raise ExportError for a service of which Jaeger has never had a span."""
    known = ask(jaeger, "/api/services", {})
    if not known:
        problem = "there are no traces yet: Jaeger has had none of any service"
        raise ExportError(f"{problem} at {jaeger.base_url}")
    if service not in known:
        listed = ", ".join(sorted(map(str, known))) or "none"
        raise ExportError(f"{jaeger.base_url} knows no service {service}; it knows: {listed}")


def is_trace(found: Any) -> bool:
    """Whether it has the members of a trace by which it is told from others, and put in order."""
    match found:
        case {"traceID": str(), "spans": [*spans]}:
            return all(
                isinstance(span, dict) and isinstance(span.get("startTime"), int) for span in spans
            )
    return False


def begin(trace: Trace) -> tuple[int, str]:
    """Return by what traces are ordered: when the first span began, and the id."""
    return min((span["startTime"] for span in trace["spans"]), default=0), trace["traceID"]


@contextmanager
def progress(whole: Period) -> Iterator[Any]:
    """Show on a terminal how much of the time is done, and how many traces there are."""
    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=whole.end - whole.start)

        def done(period: Period, traces: int) -> None:
            told = counted(traces, "trace")
            bar.update(task, advance=period.end - period.start, description=told)

        yield done


def counted(number: int, one: str) -> str:
    """Return a number of things in words."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def microseconds(moment: datetime) -> int:
    """Return a time as Jaeger's API has it."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def collect(jaeger: httpx.Client, service: str, whole: Period, limit: int) -> list[Trace]:
    """Return the traces that have spans of a service in a period, once each, the oldest first."""
    held: dict[str, Trace] = {}
    with progress(whole) as done:
        for found, period in traces_of(jaeger, service, whole, limit):
            for trace in found:
                before = held.get(trace["traceID"])
                if before is None or len(before["spans"]) < len(trace["spans"]):
                    held[trace["traceID"]] = trace  # it may have grown meanwhile
            done(period, len(held))
    return sorted(held.values(), key=begin)


@command(
    Argument("service", "SERVICE", "The service.name of the traces.", required=False),
    Option("--trace ID", "One trace, of any time.", type=trace_id),
    Option(
        "--url URL",
        "Where Jaeger's query API is.",
        envvar="AGENTGUARD_JAEGER_QUERY_URL",
        default="http://127.0.0.1:16686",
        show_default=True,
    ),
    Option(
        "--since TIME",
        "Spans from a time on, as audit list takes them.",
        default="1h",
        show_default=True,
    ),
    Option("--until TIME", "Up to a time; by default now."),
    Option(
        "--limit N",
        "Traces to ask for at once.",
        type=click.IntRange(min=2),
        default=200,
        show_default=True,
    ),
    OUTPUT,
    FORCE,
)
def export(
    *,
    service: str | None,
    trace: str | None,
    url: str,
    since: str,
    until: str | None,
    limit: int,
    output: Path | None,
    force: bool,
) -> None:
    """Export the traces of a service from Jaeger, as JSON."""
    if (service is None) is (trace is None):
        raise click.BadParameter("name a service, or a trace with --trace")
    now = datetime.now(UTC)
    whole = Period(
        microseconds(times.moment(since, now)),
        microseconds(times.moment(until, now) if until is not None else now),
    )
    if whole.start >= whole.end:
        raise click.BadParameter("--since is not before --until")
    with (
        files.new(output, force=force) as file,
        httpx.Client(base_url=url, timeout=_TIMEOUT, mounts=_DIRECTLY) as jaeger,
    ):
        found = (
            ask_for_traces(jaeger, f"/api/traces/{trace}", {})
            if trace is not None
            else collect(jaeger, service or "", whole, limit)
        )
        if service is not None and not found:
            require_known(jaeger, service)
        answer = {"data": found, "total": len(found), "limit": 0, "offset": 0, "errors": None}
        file.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
    spans = sum(len(trace["spans"]) for trace in found)
    say(f"{counted(len(found), 'trace')} with {counted(spans, 'span')}")


def say(text: str) -> None:
    """Tell the person who waits."""
    print(f"scripts/jaeger-export: {text}", file=sys.stderr)


if __name__ == "__main__":
    try:
        export(prog_name="scripts/jaeger-export")
    except (ExportError, StorageError) as error:
        say(str(error))
        sys.exit(1)
