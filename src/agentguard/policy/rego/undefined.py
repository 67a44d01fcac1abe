"""Undefined values: which values every input has, which a body needs, and which may be missing.

In Rego an expression with an undefined operand is undefined. The embedded engine and an OPA server
differ about such expressions in a negation (``negation.py``) and in the head of a rule
(``rule_heads.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

from agentguard.policy.rego.syntax_tree import Name, Names, Reader, RuleTree, name_of, objects

ALWAYS: Final = frozenset(
    {
        ("input",),
        ("input", "agent"),
        *(("input", "agent", name) for name in ("id", "name", "type", "instance", "roles")),
        *(("input", name) for name in ("action", "resource", "task_id", "args", "delegation")),
        ("input", "tool"),
        *(("input", "tool", name) for name in ("name", "schema_sha256")),
    }
)
"""The values of every input (policy-document.md, Input)."""

CLOSED: Final = ("ArrayCompr", "SetCompr", "ObjectCompr")
"""Expressions that are defined even where their parts are undefined."""

_EMPTY: Final = (("max",), ("min",))
"""Builtins that are undefined for an empty collection; every other one has a value, or fails."""


@dataclass(frozen=True, slots=True)
class Presence:
    """The paths of a policy's rules, of the rules that may be undefined, and of its functions."""

    rules: AbstractSet[Names]
    optional: AbstractSet[Names]
    functions: AbstractSet[Names]

    @classmethod
    def of(cls, readers: list[Reader]) -> Presence:
        """Read the policy that consists of these modules."""
        rules = [rule for reader in readers for rule in reader.module.rules]
        paths = {rule.path for rule in rules}
        return cls(
            paths,
            paths - set(_defined(readers)),
            {rule.path for rule in rules if rule.function},
        )

    def missing(
        self, reader: Reader, expressions: list[Any], defined: AbstractSet[Names]
    ) -> Iterator[Name]:
        """Yield the names in expressions that may be undefined; no name of ``defined`` may be."""
        todo = list(expressions)
        while todo:
            node = todo.pop(0)
            match node:
                case {"Var": _} | {"RefDot": _} | {"RefBrack": _}:
                    name = name_of(node)
                    if name.path and self._may_be_undefined(reader, name, defined):
                        yield name
                    todo += name.computed
                case {"Call": {"fcn": function}}:
                    name = name_of(function)
                    callee = reader.reference(name, call=True)
                    if callee.definition in self.functions or callee.path in _EMPTY:
                        yield name
                    todo += below(node)
                case dict():
                    if not any(closed in node for closed in CLOSED):
                        todo += below(node)

    def _may_be_undefined(self, reader: Reader, name: Name, defined: AbstractSet[Names]) -> bool:
        reference = reader.reference(name, call=False)
        path = reference.path
        if name.whole and path in defined:
            return False
        if not name.whole or path[0] == "input":
            return True
        if reference.absolute or len(name.path) == 1:
            # Variables and values of data.json are defined; a member of a rule may be undefined.
            parents = (path[:length] for length in range(len(path)))
            return path in self.optional or not self.rules.isdisjoint(parents)
        return True


def _defined(readers: Iterable[Reader]) -> Iterator[Names]:
    """Yield the paths of the rules that are always defined.

    These are rules with a default, constants, and partial sets and objects.
    """
    for reader in readers:
        for tree in reader.rules:
            constant = tree.form == "Compr" and not _conditions(tree)
            keyed = name_of(tree.head["refr"]).computed
            if tree.is_default or tree.form == "Set" or constant or keyed:
                yield reader.path_of(tree.head["refr"])


def _conditions(tree: RuleTree) -> bool:
    """Tell whether a rule has a body, or a value that is not a literal."""
    names = ("Var", "RefDot", "RefBrack", "Call")
    assigned = objects(tree.head.get("assign"))
    computed = any(name in node for node in assigned for name in names)
    return bool(tree.rule.get("bodies")) or computed


def required_names(reader: Reader, statements: Iterable[Mapping[str, Any]]) -> set[Names]:
    """Return the names that must be defined for all of a body's statements to hold."""
    return {name for statement in statements for name in _required_names(reader, statement)}


def _required_names(reader: Reader, statement: Mapping[str, Any]) -> Iterator[Names]:
    match statement["literal"]:
        case {"Expr": {"expr": {"Membership": _} as expression}}:
            todo = below(expression)
        case {"Expr": {"expr": expression}}:
            todo = [expression]
        case {"SomeIn": {"collection": expression}} | {"Every": {"domain": expression}}:
            todo = [expression]
        case _:
            return
    while todo:
        node = todo.pop()
        match node:
            case {"Var": _} | {"RefDot": _} | {"RefBrack": _}:
                path = reader.reference(name := name_of(node), call=False).path
                if name.path:
                    yield from (path[:length] for length in range(1, len(path) + 1))
            case {"Membership": _}:  # false, and not undefined, where an operand is undefined
                continue
        todo += below(node)


def below(node: Any) -> list[Any]:
    """Return the operands of a call, an operator or a literal, or the computed parts of a name."""
    match node:
        case {"Var": _} | {"RefDot": _} | {"RefBrack": _}:
            return list(name_of(node).computed)
        case {"Call": {"params": [*parameters]}}:
            return list(parameters)
        case {"Membership": {"key": key, "value": value, "collection": collection}}:
            return [part for part in (key, value, collection) if part]
        case dict():
            ((kind, inner),) = list(node.items())[:1]
            if kind in CLOSED or not isinstance(inner, dict):
                return []
            return [part for part in _parts(inner) if isinstance(part, dict)]
    return []


def _parts(inner: Mapping[str, Any]) -> Iterator[Any]:
    for value in inner.values():
        todo = list(value) if isinstance(value, list) else [value]
        while todo:
            part = todo.pop(0)
            if isinstance(part, list):
                todo = [*part, *todo]
            elif isinstance(part, dict):
                yield part
