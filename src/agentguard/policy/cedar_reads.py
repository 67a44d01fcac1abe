"""Which members of the policy's input Cedar policies read, and mistakes: names that no input has.

In a Cedar request, ``principal`` is the input's ``agent``, and ``context`` has the members other
than ``agent``, ``action`` and ``resource``. A misspelt ``has`` is false without an error, and so is
``principal in`` a misspelt type. The checks read Cedar's own JSON form of the policies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from agentguard.call import vocabulary
from agentguard.call.vocabulary import Path

ENTITIES: Final = ("Agent", "Role", "Action", "Resource")
"""The types of the entities in a request."""

_VARIABLES: Final[Mapping[str, Path]] = {
    "principal": ("agent",),
    "action": ("action",),
    "resource": ("resource",),
    "context": (),
}


_TAGS: Final = ("hasTag", "getTag")
"""The methods for tags, which no entity of a request has: ``hasTag`` is always false."""


def mistakes(policy: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each name of the policy that no request has."""
    for path, variable in dict.fromkeys(_reads(policy["conditions"])):
        problem = _outside(path, variable) or vocabulary.slip(path)
        if problem is not None:
            yield _in_cedar(problem)
    for kind in _TAGS:
        if any(kind in node for node in _objects(policy["conditions"])):
            yield f"{kind}: nothing in a request has tags; write has, and read an attribute"
    for name in sorted(_types(policy)):
        if name not in ENTITIES:
            types = ", ".join(ENTITIES)
            yield f"no request has an entity of the type {name}; the types are {types}"


def reads(policy: Mapping[str, Any]) -> set[Path]:
    """Return the paths below ``input`` that a policy reads."""
    return {path for path, _variable in _reads(policy["conditions"])}


def _outside(path: Path, variable: str) -> str | None:
    """Return why the context lacks a member that stands in a variable of its own."""
    if variable != "context" or not path:
        return None
    for name, root in _VARIABLES.items():
        if path[:1] == root:
            return f"no input has context.{path[0]}; did you mean {name}?"
    return None


def _in_cedar(problem: str) -> str:
    """Return a message about the input in the words of Cedar."""
    for variable, path in _VARIABLES.items():
        if path:
            problem = problem.replace(f"input.{path[0]}", variable)
    return problem.replace("input.", "context.")


def _reads(tree: object) -> Iterator[tuple[Path, str]]:
    for node in _objects(tree):
        for kind in (".", "has", *_TAGS):
            if isinstance(member := node.get(kind), dict):
                name = member["right"].get("Value") if kind in _TAGS else member["attr"]
                below = (name,) if isinstance(name, str) else ()
                for path, variable in _values(member["left"]):
                    yield (*path, *below), variable


def _objects(tree: object) -> Iterator[Mapping[str, Any]]:
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo += node.values()
        elif isinstance(node, list):
            todo += node


def _values(node: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Yield the paths of the values that an expression may have, with their variables."""
    match node:
        case {"Var": str(name)}:
            yield _VARIABLES[name], name
        case {".": {"left": left, "attr": name}}:
            yield from (((*path, name), variable) for path, variable in _values(left))
        case {"if-then-else": {"then": one, "else": other}}:
            yield from _values(one)
            yield from _values(other)


def _types(tree: object) -> set[str]:
    """Return the types of all entities in a policy."""
    found: set[str] = set()
    for node in _objects(tree):
        match node:
            case {"type": str(name), "id": str()} | {"entity_type": str(name)}:
                found.add(name)
    return found
