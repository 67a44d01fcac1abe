"""The requirements for an approval that a policy writes out in its rule ``approval``.

They show before the first call whom the policy asks for. Only an evaluation tells what is computed:
it is left out, so that a requirement never asks for more here than in a call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from agentguard.call.decision import Decision, Requirement
from agentguard.policy.document import read_requirements
from agentguard.policy.rego.syntax_tree import Names, Reader, RuleTree
from agentguard.signing.canonical import JSON

_RULE: Final = "approval"


def stated(readers: Iterable[Reader], query: Names) -> Iterator[Requirement]:
    """Yield the requirements of the rule ``approval`` of the package ``query``."""
    for reader in readers:
        for tree in reader.rules:
            if reader.path_of(tree.head["refr"]) != (*query, _RULE):
                continue
            for value in values(tree):
                requirements = read_requirements(_stated(value))
                if not isinstance(requirements, Decision):
                    yield from requirements


def values(tree: RuleTree) -> Iterator[Any]:
    """Yield the values of a rule: the item of a set, or what the rule and each body assign."""
    if tree.is_default:
        yield tree.rule["value"]
    elif tree.form == "Set":
        yield tree.head["key"]
    else:
        assigned = [part.get("assign") for part in (tree.head, *tree.rule["bodies"])]
        yield from (one["value"] for one in assigned if one)
        if tree.head.get("assign") is None:
            yield {"Bool": {"value": True}}


def _stated(node: Any) -> JSON:
    """Return the literal members of a requirement; True, the least one, where none shows."""
    with suppress(ValueError):
        match node:
            case {"Object": {"fields": [*fields]}}:
                members: dict[str, JSON] = {}
                for name, value in [(_literal(key), value) for _span, key, value in fields]:
                    with suppress(ValueError):
                        members[str(name)] = _literal(value)
                return members
        return _literal(node)
    return True


def _literal(node: Any) -> JSON:
    """Return the value of a literal; raises ``ValueError`` for what is computed."""
    match node:
        case {"String": {"value": value}} | {"RawString": {"value": value}}:
            return str(value)
        case {"Bool": {"value": bool(value)}} | {"Number": {"value": int(value)}}:
            return value
        case {"Array": {"items": [*items]}} | {"Set": {"items": [*items]}}:
            return [_literal(item) for item in items]
    raise ValueError("not a literal")
