"""The files of ``audit verify --against``: checkpoints of the log that somebody else has kept.

Signed notes and evidence carry the log key's signature. The spans of a trace store carry
checkpoints without one (``agentguard.audit.checkpoint``, as ``Checkpoint.line`` writes it): that
the log said so is the store's word. How a log is held against them stands in ``audit/verify.py``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from agentguard.audit import checkpoint, statements
from agentguard.audit.checkpoint import Checkpoint, WitnessedCheckpoint
from agentguard.audit.evidence_file import EvidenceFile
from agentguard.cli.terminal import files, screen
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.telemetry import names

_LONGEST: Final = 64 * 1024 * 1024  # bytes; some 25,000 spans
_NAMED: Final = 3
_HEX: Final = re.compile(r"[0-9a-f]{1,32}")
_NOTE: Final = re.compile(rb"(?:[^\n]+\n)+\n(?:\xe2\x80\x94 [^\n]*\n)+")
"""A text without empty lines, an empty line, and signature lines (C2SP signed-note)."""


class Witness(NamedTuple):
    """The checkpoints of one file that are of the log, and in words what nobody vouches for."""

    kept: tuple[WitnessedCheckpoint, ...]
    unchecked: tuple[str, ...] = ()


def read(path: Path, trust: TrustDocument) -> Witness:
    """Return the checkpoints in a file that are of the log of ``trust``, signed by a key of it.

    Those of traces are unsigned, and may be of other logs as well, as long as one is of this log.
    Raises ``DecodeError`` or ``VerificationError``, which name the file, and ``StorageError``.
    """
    data = files.read(path, _LONGEST)
    try:
        if data.lstrip().startswith(b"{"):
            value = canonical.loads(data, limit=_LONGEST)
            if isinstance(value, dict) and "data" in value:
                return _reported(value, trust, path)
        return Witness(tuple(_verified(note, trust) for note in _notes(data)))
    except DecodeError as error:
        message = f"{path} holds neither signed checkpoints, evidence nor traces: {error}"
        raise DecodeError(message, code=error.code) from error
    except AgentguardError as error:
        message = f"{path} can't vouch for this log: {error}"
        raise VerificationError(message, code=error.code) from error


# --- signed -------------------------------------------------------------------------------------


def _verified(note: bytes, trust: TrustDocument) -> WitnessedCheckpoint:
    origin = checkpoint.parse(note).checkpoint.origin
    trust.shard_of(origin)
    return WitnessedCheckpoint(statements.check_checkpoint(note, trust, origin)[0])


def _notes(data: bytes) -> Iterator[bytes]:
    if data.startswith(b"{"):
        # one shard's entries stand under one checkpoint, which is there once for each
        yield from dict.fromkeys(held.proof.note for held in EvidenceFile.loads(data).entries)
        return
    place = 0
    while place < len(data):
        found = _NOTE.match(data, place)
        if found is None:
            raise DecodeError("expected a signed note at its end", code="note.malformed")
        yield found[0]
        place = found.end()
    if place == 0:
        raise DecodeError("it is empty", code="note.malformed")


# --- reported by a trace store ------------------------------------------------------------------


def _reported(answer: dict[str, JSON], trust: TrustDocument, path: Path) -> Witness:
    """Take the checkpoints out of an answer of Jaeger's query API."""
    kept: dict[Checkpoint, WitnessedCheckpoint] = {}
    others: Counter[str] = Counter()
    for point, where in _carried(answer):
        try:
            trust.shard_of(point.origin)
        except VerificationError:
            others[point.origin] += 1
            continue
        whose = f"the trace store's unsigned checkpoint ({where})"
        kept.setdefault(point, WitnessedCheckpoint(point, whose))
    strangers = _strangers(others)
    if not kept:
        why = f"{strangers}, none is of {trust.log}"
        raise VerificationError(
            why if others else f"no span has {names.CHECKPOINT}", code="checkpoint.origin"
        )
    number = screen.count(len(kept), "checkpoint", "checkpoints")
    unsigned = f"who wrote the {number} in {path}: they are as reported by the trace store"
    return Witness((*kept.values(),), (unsigned, *([f"{strangers}, in {path}"] if others else [])))


def _strangers(others: Counter[str]) -> str:
    """Say which other logs there are checkpoints of."""
    named = [*sorted(others)[:_NAMED], *(["others"] if len(others) > _NAMED else [])]
    spans = screen.count(others.total(), "span has", "spans have")
    return f"{spans} checkpoints of {', '.join(named)}"


def _carried(answer: dict[str, JSON]) -> Iterator[tuple[Checkpoint, str]]:
    """Yield each checkpoint that a span carries, and which span that is."""
    match answer:
        case {"data": [*traces]} if not answer.get("errors"):
            pass
        case {"data": _, "errors": [*errors]}:
            raise _malformed(f"the trace store answered with errors: {canonical.dumps(errors)!r}")
        case _:
            raise _malformed("data is no list of traces")
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
                raise _malformed(f"a tag of {where} has no key, or no text as its value")


def _point(line: str, where: str) -> Checkpoint:
    try:
        point = checkpoint.parse_line(line)
    except DecodeError as error:
        message = f"the {names.CHECKPOINT} of {where} is {error}"
        raise DecodeError(message, code=error.code) from error
    if point.size == 0:
        raise _malformed(f"the {names.CHECKPOINT} of {where} is of a log without entries")
    return point


def _malformed(problem: str) -> DecodeError:
    return DecodeError(problem, code="trace.malformed")
