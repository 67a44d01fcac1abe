"""The state of a guard that forks, verified from outside, and the calls in it."""

from __future__ import annotations

from typing import Any

from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.domain import keystore
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.signing.canonical import loads_object
from agentguard.store.reader import StoredLog


def verified(place: Any, *, in_doubt: bool = False) -> Report:
    """Verify the log; ``in_doubt``: some process was killed, and its last calls may be so."""
    reader = StoredLog.of(place.config.state)
    try:
        trust = keystore.load_trust(place.config.state)
        report = examine(reader, trust, anchor=place.config.anchor)
    finally:
        reader.close()
    assert report.problems == ()
    assert report.anchored
    assert in_doubt or list(report.in_doubt) == []
    return report


def calls(place: Any) -> list[tuple[str, str]]:
    """The agent's URI and the argument of every call on record."""
    reader = StoredLog.of(place.config.state)
    try:
        found = []
        for stored in reader.stored():
            parsed = parse_entry(stored.body)
            if isinstance(parsed, CallEntry):
                (kept,) = [
                    loads_object(attachment.data)
                    for attachment in stored.attachments
                    if attachment.role == "arguments"
                ]
                found.append((parsed.agent, str(kept["text"])))
        return found
    finally:
        reader.close()
