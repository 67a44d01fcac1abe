"""Draw a trace, as Jaeger's query API returns it, as a waterfall: what ``scripts/waterfall`` runs.

A row is a span: its name below its caller's, its bar on the trace's time, and beside the bar who
acted, for whom, through whom, what was decided, whether people approved, and where in the log it
stands. Of one JSON it is always the same picture; what it says is the trace's word, escaped.
"""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from rich.cells import cell_len

from agentguard.cli.terminal import files
from agentguard.cli.terminal.options import FORCE, OUTPUT, PATH, Argument, Option, command
from agentguard.errors import StorageError
from agentguard.identity.credential import agent_alias
from agentguard.visible import shortened_text, visible_text

_LONGEST: Final = 64 * 1024 * 1024  # bytes, as audit verify --against takes them
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = 253_402_300_800_000_000 - 1  # microseconds since then, to the end of the year 9999

# Pixels.
_WIDTH: Final = 1280
_MARGIN: Final = 16
_HEAD: Final = 84
_ROW: Final = 52
_LINE: Final = 15
_INDENT: Final = 14
_BARS: Final = 344  # where the bars begin
_SPAN: Final = 400  # how wide the whole time is
_WORDS: Final = 764  # where the identity begins
_CELL: Final = 6.9  # a character, somewhat more than most monospaced fonts have at 11 px
_THINNEST: Final = 3

_ID: Final = 8
"""Characters of an approval's id that tell it from others well enough."""

_FONT: Final = """
  text { font: 11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre; }
  .title { font-size: 15px; font-weight: 600; }
  .name { font-weight: 600; }"""
# What is coloured, and its colours on light paper and on dark.
_COLOURS: Final = (
    ("text", "fill", "#1f2328", "#e6edf3"),
    (".paper", "fill", "#ffffff", "#0d1117"),
    (".faint", "fill", "#59636e", "#9198a1"),
    (".rule", "stroke", "#d1d9e0", "#3d444d"),
    (".event", "fill", "#ffffff", "#0d1117"),
    (".event", "stroke", "#1f2328", "#e6edf3"),
    (".plain", "fill", "#54718f", "#8fb3d9"),
    (".allow", "fill", "#1a7f37", "#3fb950"),
    (".deny", "fill", "#c11f2b", "#ff7b72"),
    (".wait", "fill", "#8a5a00", "#d8a531"),
)


class DrawingError(Exception):
    """There is nothing to draw a picture of; says why."""


@dataclass(slots=True)
class Span:
    """A span: times in microseconds since the epoch, and what it says of itself."""

    span_id: str
    parent: str | None
    name: str
    service: str
    start: int
    duration: int
    tags: Mapping[str, str]
    events: Sequence[tuple[int, Mapping[str, str]]]
    children: list[Span] = field(default_factory=list)

    @property
    def end(self) -> int:
        """When it ended."""
        return self.start + self.duration

    def said(self, name: str) -> str:
        """Return an attribute of agentguard's, or nothing."""
        return self.tags.get(f"agentguard.{name}", "")


# --- from the answer to spans -------------------------------------------------------------------


def choose(answer: Any, trace_id: str | None) -> dict[str, Any]:
    """Return the trace that is meant; raises DrawingError where that is not one."""
    try:
        traces = {trace["traceID"]: trace for trace in answer["data"]}
        spans = {name: len(trace["spans"]) for name, trace in traces.items()}
    except (KeyError, TypeError):
        raise DrawingError("expected traces as Jaeger's query API returns them") from None
    if not traces:
        raise DrawingError("there is no trace in it: export a time in which there are some")
    if trace_id is None and len(traces) == 1:
        (trace_id,) = traces
    if trace_id not in traces:
        listed = ", ".join(f"{name} ({many})" for name, many in spans.items())
        raise DrawingError(
            f"name one with --trace, of these (spans): {shortened_text(visible_text(listed), 2000)}"
        )
    found: dict[str, Any] = traces[trace_id]
    return found


def spans_of(trace: dict[str, Any]) -> list[Span]:
    """Read a trace's spans; raises DrawingError."""
    try:
        return [_span(span, trace["processes"]) for span in trace["spans"]]
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DrawingError(f"a span is not as Jaeger's query API has it: {error!r}") from error


def _span(span: dict[str, Any], processes: dict[str, Any]) -> Span:
    ours = [one for one in span["references"] if one["traceID"] == span["traceID"]]
    # Of a caller that the span has a link to as well, Jaeger returns the link alone.
    callers = sorted(ours, key=lambda one: one["refType"] != "CHILD_OF")
    start, duration = int(span["startTime"]), max(int(span["duration"]), 0)
    if not 0 <= start <= start + duration <= _LATEST:
        raise ValueError("its times are no times from 1970 to 9999")
    return Span(
        str(span["spanID"]),
        next((str(one["spanID"]) for one in callers), None),
        str(span["operationName"]),
        str(processes[span["processID"]]["serviceName"]),
        start,
        duration,
        _read(span["tags"]),
        [(int(event["timestamp"]), _read(event["fields"])) for event in span["logs"]],
    )


def _read(tags: list[dict[str, Any]]) -> dict[str, str]:
    return {str(tag["key"]): str(tag["value"]) for tag in tags}


def tree(spans: Iterable[Span]) -> Iterator[tuple[int, Span]]:
    """Yield each span once, below its caller and after its elder siblings, with its depth.

    Where the caller is not there, or a span is said to be called by its own descendants, it stands
    at the top.
    """
    ordered = sorted(spans, key=lambda span: (span.start, -span.duration, span.span_id))
    known = {span.span_id: span for span in reversed(ordered)}
    tops: list[Span] = []
    for span in ordered:
        caller = known.get(span.parent) if span.parent is not None else None
        (tops if caller is None or caller is span else caller.children).append(span)
    drawn: set[int] = set()
    for top in [*tops, *ordered]:
        pending = [(0, top)]
        while pending:
            depth, span = pending.pop()
            if id(span) not in drawn:
                drawn.add(id(span))
                yield depth, span
                pending += [(depth + 1, child) for child in reversed(span.children)]


# --- from spans to a picture --------------------------------------------------------------------


def draw(trace: dict[str, Any]) -> str:
    """Return the picture of a trace, an SVG; raises DrawingError."""
    rows = [*tree(spans_of(trace))]
    if not rows:
        raise DrawingError("the trace has no spans")
    began = min(span.start for _, span in rows)
    total = max(max(span.end for _, span in rows) - began, 1)
    height = _HEAD + _ROW * len(rows) + _MARGIN
    title = f"trace {trace['traceID']}"
    services = ", ".join(sorted({span.service for _, span in rows}))
    at = _EPOCH + timedelta(microseconds=began)
    about = f"{services}: {len(rows)} spans in {_time(total)}, from {at:%Y-%m-%d %H:%M:%S} UTC"
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{_escaped(title)}</title>",
        f"<style>{_FONT}{_colours(2)}",
        f"  @media (prefers-color-scheme: dark) {{{_colours(3)}\n  }}\n</style>",
        f'<rect class="paper" width="{_WIDTH}" height="{height}"/>',
        _text(_MARGIN, 28, title, "title", _WIDTH),
        _text(_MARGIN, 46, about, "faint", _WIDTH - _MARGIN),
        *_scale(total, height),
    ]
    for number, (depth, span) in enumerate(rows):
        parts += _row(span, depth, _HEAD + _ROW * number, began, total)
    return "\n".join([*parts, "</svg>", ""])


def _colours(column: int) -> str:
    """Write the colours of a column: no variables, which not every program that draws knows."""
    return "".join(f"\n  {row[0]} {{ {row[1]}: {row[column]}; }}" for row in _COLOURS)


def _scale(total: int, height: int) -> Iterator[str]:
    """Draw the lines of the time, at its quarters."""
    for quarter in range(5):
        x = _BARS + _SPAN * quarter / 4
        yield f'<path class="rule" d="M{x:g} {_HEAD - 8}V{height - _MARGIN}"/>'
        anchor = "start" if quarter == 0 else "end" if quarter == 4 else "middle"  # noqa: PLR2004
        said = _time(total * quarter // 4) if quarter else "0"
        yield f'<text class="faint" x="{x:g}" y="{_HEAD - 14}" text-anchor="{anchor}">{said}</text>'


def _row(span: Span, depth: int, top: int, began: int, total: int) -> Iterator[str]:
    kind, middle = _kind(span), top + _ROW / 2
    yield f'<path class="rule" d="M{_MARGIN} {top}H{_WIDTH - _MARGIN}"/>'
    left = _MARGIN + _INDENT * min(depth, 12)
    yield _text(left, top + 23, span.name, "name", _BARS - left - 8)
    yield _text(left, top + 23 + _LINE, _time(span.duration), "faint", _BARS - left - 8)
    x = _BARS + _SPAN * (span.start - began) / total
    width = max(_SPAN * span.duration / total, _THINNEST)
    x = min(x, _BARS + _SPAN - width)
    yield (
        f'<rect class="{kind}" x="{x:.1f}" y="{middle - 7:g}" width="{width:.1f}" height="14" '
        f'rx="2"><title>{_escaped(_whole(span))}</title></rect>'
    )
    for at, event in span.events:
        place = _BARS + _SPAN * min(max(at - began, 0), total) / total
        yield (
            f'<circle class="event" cx="{place:.1f}" cy="{middle - 13:g}" r="2.5">'
            f"<title>{_escaped(_listed(event))}</title></circle>"
        )
    for line, (said, style) in enumerate(_identity(span, kind)):
        yield _text(_WORDS, top + 15 + _LINE * line, said, style, _WIDTH - _WORDS - _MARGIN)


def _kind(span: Span) -> str:
    """Return the style of a span, by what was decided and whether it waits for people."""
    decision, approval = span.said("policy.decision"), span.said("approval.status")
    if decision == "deny" or span.tags.get("otel.status_code") == "ERROR":
        return "deny"
    if approval == "pending" or decision not in {"", "allow"}:
        return "wait"
    return "allow" if decision else "plain"


def _identity(span: Span, kind: str) -> Iterator[tuple[str, str]]:
    """Yield up to three lines that say who acted, for whom, what was decided and what proves it."""
    agent, principal = span.said("agent.id"), span.said("principal.id")
    chain = [member.removeprefix("agent:") for member in span.said("delegation.chain").split(">")]
    if agent or principal:
        acting = agent_alias(agent) if agent else "an agent"
        yield f"{acting}{f', for {principal}' if principal else ''}", "name"
    if any(chain):
        yield " > ".join(chain), ""
    index = span.said("audit.index")
    last = [
        span.said("policy.decision"),
        span.tags.get("error.type", ""),
        _approval(span),
        f"log entry {index}" if index else "",
    ]
    if any(last):
        yield " · ".join(filter(None, last)), kind


def _approval(span: Span) -> str:
    """Say how it stands with the approval, and whose answers there are."""
    status, asked = span.said("approval.status"), span.said("approval.id")[:_ID]
    answers = [event.get("agentguard.approval.approver", "") for _, event in span.events]
    by = ", ".join(filter(None, dict.fromkeys(answers)))
    if by:
        return f"{status} by {by}"
    return f"approval {asked} {status}" if status else ""


def _whole(span: Span) -> str:
    """Return all that a span says, for whoever points at its bar."""
    return f"{span.name}, {_time(span.duration)}, {span.service}\n{_listed(span.tags)}"


def _listed(said: Mapping[str, str]) -> str:
    return "\n".join(f"{name} = {value}" for name, value in sorted(said.items()))


def _text(x: float, y: float, said: str, style: str, room: float) -> str:
    """Write a text where it has so much room; what is longer is cut, and whole in its title."""
    cells = int(room / _CELL)
    text, title = visible_text(said[: cells + 1]), ""
    if len(said) > cells or cell_len(text) > cells:
        title = f"<title>{_escaped(said)}</title>"
        while cell_len(text) >= cells:
            text = text[:-1]
        text += "…"
    return f'<text class="{style}" x="{x:g}" y="{y:g}">{title}{html.escape(text)}</text>'


def _escaped(said: str) -> str:
    return html.escape("\n".join(map(visible_text, said.split("\n"))))


def _time(microseconds: int) -> str:
    for unit, size in (("s", 1_000_000), ("ms", 1_000)):
        if microseconds >= size:
            return f"{microseconds / size:.3g} {unit}"
    return f"{microseconds} µs"


@command(
    Argument("traces", "FILE", "Traces, as Jaeger's query API returns them.", type=PATH),
    Option("--trace ID", "Which one, where there are several."),
    OUTPUT,
    FORCE,
)
def waterfall(*, traces: Path, trace: str | None, output: Path | None, force: bool) -> None:
    """Draw a trace as an SVG."""
    try:
        answer = json.loads(files.read(traces, _LONGEST))
    except (ValueError, RecursionError) as error:
        raise DrawingError(f"{traces} is not JSON: {error}") from error
    picture = draw(choose(answer, trace))
    with files.new(output, force=force) as file:
        file.write(picture.encode())


if __name__ == "__main__":
    try:
        waterfall(prog_name="scripts/waterfall")
    except (DrawingError, StorageError) as error:
        print(f"scripts/waterfall: {error}", file=sys.stderr)
        sys.exit(1)
