"""Mistakes: members of an approval or an obligation that the guard does not know.

An approval with ``role`` in the place of ``roles`` denies each call (``policy.malformed``), so it
is refused before the first one. An object that a rule builds in another way is judged at the call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentguard.policy.document import MEMBERS, slips_in
from agentguard.policy.rego.requirements import values
from agentguard.policy.rego.syntax_tree import Names, Reader


def mistakes(readers: list[Reader], query: Names) -> Iterator[str]:
    """Yield a sentence for each unknown name in an object of the queried package's outputs."""
    for reader in readers:
        for tree in reader.rules:
            path = reader.path_of(tree.head["refr"])
            if path[:-1] == query and path[-1] in MEMBERS:
                for key, span in (item for value in values(tree) for item in _keys(value)):
                    yield from (f"{reader.at(span)}: {it}" for it in slips_in(path[-1], [key]))


def _keys(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the constant keys of an object, or of the objects in a set or an array."""
    match value:
        case {"Object": {"fields": [*fields]}}:
            for _span, key, _value in fields:
                match key:
                    case {"String": {"value": str(name), "span": span}}:
                        yield name, span
        case {"Set": {"items": [*items]}} | {"Array": {"items": [*items]}}:
            for item in items:
                yield from _keys(item)
