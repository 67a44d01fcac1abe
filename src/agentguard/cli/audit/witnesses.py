"""Reads the files of ``audit verify --against``: checkpoints of the log that others have kept.

Signed checkpoints, as an anchor keeps one, and evidence have the signature of the log key. The
spans of a trace store have unsigned checkpoints (``Checkpoint.line`` in
``agentguard/audit/checkpoint.py``), for which only the trace store vouches. ``domain/verify.py``
compares the log with the checkpoints.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from agentguard.audit import checkpoint, inclusion
from agentguard.audit.checkpoint import Checkpoint, WitnessedCheckpoint
from agentguard.audit.evidence_file import EvidenceFile
from agentguard.cli.terminal import files, screen
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.telemetry import names

_MAX_BYTES: Final = 64 * 1024 * 1024  # bytes; some 25,000 spans
_MAX_LISTED: Final = 3
_HEX: Final = re.compile(r"[0-9a-f]{1,32}")
_NOTE: Final = re.compile(rb"(?:[^\n]+\n)+\n(?:\xe2\x80\x94 [^\n]*\n)+")
"""A text without empty lines, an empty line, and signature lines (C2SP signed-note)."""


class Witness(NamedTuple):
    """The log's checkpoints in one file, and sentences about claims that nobody has signed."""

    checkpoints: tuple[WitnessedCheckpoint, ...]
    unchecked: tuple[str, ...] = ()


def read(path: Path, trust: TrustDocument) -> Witness:
    """Return the checkpoints in a file, after their signatures are verified with ``trust``.

    Checkpoints in traces are unsigned. Some of them may be of other logs, but at least one must be
    of this log. Raises ``DecodeError`` or ``VerificationError``, which name the file, and
    ``StorageError``.
    """
    data = files.read(path, _MAX_BYTES)
    try:
        if data.lstrip().startswith(b"{"):
            value = canonical.loads(data, limit=_MAX_BYTES)
            if isinstance(value, dict) and "data" in value:
                return _from_traces(value, trust, path)
        return Witness(tuple(_verified(note, trust) for note in _notes(data)))
    except DecodeError as error:
        message = f"{path} has neither signed checkpoints nor evidence nor traces: {error}"
        raise DecodeError(message, code=error.code) from error
    except AgentguardError as error:
        message = f"{path} can't vouch for this log: {error}"
        raise VerificationError(message, code=error.code) from error


# --- signed -------------------------------------------------------------------------------------


def _verified(note: bytes, trust: TrustDocument) -> WitnessedCheckpoint:
    return WitnessedCheckpoint(inclusion.verify_checkpoint(note, trust).point)


def _notes(data: bytes) -> Iterator[bytes]:
    if data.startswith(b"{"):
        # each entry repeats the checkpoint
        yield from dict.fromkeys(
            log_entry.proof.note for log_entry in EvidenceFile.loads(data).entries
        )
        return
    position = 0
    while position < len(data):
        match = _NOTE.match(data, position)
        if match is None:
            raise DecodeError("expected a signed note at its end", code="note.malformed")
        yield match[0]
        position = match.end()
    if position == 0:
        raise DecodeError("the file is empty", code="note.malformed")


# --- reported by a trace store ------------------------------------------------------------------


def _from_traces(answer: dict[str, JSON], trust: TrustDocument, path: Path) -> Witness:
    """Return the checkpoints in an answer of Jaeger's query API."""
    witnessed: dict[Checkpoint, WitnessedCheckpoint] = {}
    others: Counter[str] = Counter()
    for point, where in _span_checkpoints(answer):
        if point.origin != trust.log:
            others[point.origin] += 1
            continue
        whose = f"the trace store's unsigned checkpoint ({where})"
        witnessed.setdefault(point, WitnessedCheckpoint(point, whose))
    strangers = _strangers(others)
    if not witnessed:
        why = f"{strangers}, and none of {trust.log}"
        raise VerificationError(
            why if others else f"no span has {names.CHECKPOINT}", code="checkpoint.origin"
        )
    number = screen.count(len(witnessed), "checkpoint", "checkpoints")
    unsigned = f"who wrote the {number} in {path}: only the trace store vouches for them"
    return Witness(
        (*witnessed.values(),), (unsigned, *([f"{strangers}, in {path}"] if others else []))
    )


def _strangers(others: Counter[str]) -> str:
    """Describe the checkpoints of other logs."""
    listed_logs = [
        *sorted(others)[:_MAX_LISTED],
        *(["others"] if len(others) > _MAX_LISTED else []),
    ]
    spans = screen.count(others.total(), "span has", "spans have")
    return f"{spans} checkpoints of {', '.join(listed_logs)}"


def _span_checkpoints(answer: dict[str, JSON]) -> Iterator[tuple[Checkpoint, str]]:
    """Yield each checkpoint in the spans, and the name of its span."""
    match answer:
        case {"data": [*traces]} if not answer.get("errors"):
            pass
        case {"data": _, "errors": [*errors]}:
            raise _malformed(f"the trace store answered with errors: {canonical.dumps(errors)!r}")
        case _:
            raise _malformed("data is not a list of traces")
    for trace in traces:
        match trace:
            case {"spans": [*spans]}:
                for span in spans:
                    yield from _of_span(span)
            case _:
                raise _malformed("a trace has no list of spans")


def _of_span(span: JSON) -> Iterator[tuple[Checkpoint, str]]:
    match span:
        case {"traceID": str(trace_id), "spanID": str(span_id), "tags": [*tags]} if (
            _HEX.fullmatch(trace_id) is not None and _HEX.fullmatch(span_id) is not None
        ):
            where = f"span {span_id} of trace {trace_id}"
        case _:
            raise _malformed("a span has no traceID and spanID in hex, or no tags")
    for tag in tags:
        match tag:
            case {"key": names.CHECKPOINT, "value": str(line)}:
                yield _point(line, where), where
            case {"key": str(key)} if key != names.CHECKPOINT:
                pass
            case _:
                raise _malformed(f"a tag of {where} has no key, or a value that is not a text")


def _point(line: str, where: str) -> Checkpoint:
    try:
        point = checkpoint.parse_line(line)
    except DecodeError as error:
        message = f"the {names.CHECKPOINT} of {where} is {error}"
        raise DecodeError(message, code=error.code) from error
    if point.size == 0:
        raise _malformed(f"the {names.CHECKPOINT} of {where} is that of an empty log")
    return point


def _malformed(problem: str) -> DecodeError:
    return DecodeError(problem, code="trace.malformed")
