"""The comparison of an embedded engine with a real OPA on one input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from two_engines import FAILED, answer

from agentguard.policy.document import Evaluated, decide
from agentguard.policy.engine import Engine


def worded_alike(value: Any) -> Any:
    """The document without the words of its reasons, which sprintf makes (KNOWN)."""
    if not isinstance(value, dict) or "deny_reasons" not in value:
        return None
    return value | {"deny_reasons": len(value["deny_reasons"])}


def evaluated(engine: Engine, document: bytes) -> object:
    found = engine.evaluate(document)
    return found.document if isinstance(found, Evaluated) else found


def require_agreement(embedded: Engine, server: Engine, document: bytes) -> str:
    ours, theirs = answer(embedded, document), answer(server, document)
    if ours != theirs and worded_alike(ours[1]) == worded_alike(theirs[1]) is not None:
        decisions = [decide(engine.evaluate(document)) for engine in (embedded, server)]
        assert [(one.outcome, one.code) for one in decisions] == [("deny", "policy.denied")] * 2
        return "deny"
    if ours != theirs:
        assert FAILED in (ours[0], theirs[0]), (document, ours, theirs)
        other = server if ours[0] == FAILED else embedded
        alone = "the server" if other is server else "the embedded engine"
        allows = (
            answer(other, document)[0] == "value" and decide(evaluated(other, document)).allowed
        )
        return f"{alone} allows what the other fails on" if allows else "one of them fails"
    if ours[0] == "value":
        decisions = [decide(engine.evaluate(document)) for engine in (embedded, server)]
        assert decisions[0] == decisions[1]
        return decisions[0].outcome
    return ours[0]


def read(path: Path) -> tuple[str, list[Any]]:
    """A policy's text, and the texts in its data."""
    if path.is_file():
        return path.read_text(), []
    modules = [p.read_text() for p in sorted(path.rglob("*.rego")) if "_test" not in p.name]
    data = [json.loads(p.read_text()) for p in sorted(path.rglob("data.json"))]
    return "\n".join(modules), sorted({*strings(data)})


def strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for one in value:
                yield from strings(one)
        case dict():
            for name, one in value.items():
                yield name
                yield from strings(one)
