"""Reads the engine's syntax tree into rules, and into the names that each rule refers to.

Names are resolved as Rego resolves them: an import and a name of the rule's own package become a
path below ``data``. This module judges no rule and no name: the checks of ``gate.py`` do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeAlias

Names: TypeAlias = tuple[str, ...]
"""The names of a reference: ``("data", "agent", "authz", "allow")``, ``("count",)``."""

_ROOTS: Final = frozenset({"data", "input"})


class Span(NamedTuple):
    """A place in a module's text: the line and the column, and the bytes from start to end."""

    line: int
    col: int
    start: int
    end: int


def span_or_object(members: dict[str, Any]) -> Span | dict[str, Any]:
    """Read an object of the engine's tree: the ``object_hook`` of ``json.loads``.

    A third of the objects are spans. A walk of the tree does not enter a ``Span``.
    """
    return Span(**members) if "line" in members else members


@dataclass(frozen=True, slots=True)
class Reference:
    """A name in a rule's head or body.

    ``path`` is the resolved constant part; for a builtin, ``path`` is the name of the builtin.
    ``definition`` is the path of the rule or function that the policy defines under this name, if
    there is one. ``at`` is ``file:line:column``. ``whole`` means that no computed part follows the
    path. ``absolute`` means that the name begins with ``data``, ``input`` or an import.
    """

    path: Names
    definition: Names
    at: str
    call: bool
    whole: bool
    absolute: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """One definition of a rule or function; several may share a ``path``."""

    package: Names
    path: Names
    at: str
    function: bool
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class Module:
    """One parsed file."""

    package: Names
    rules: tuple[Rule, ...]


class RuleTree:
    """The tree of one definition of a rule or function.

    ``rule`` is the definition without its kind, and ``head`` the rule's head; the head of a
    ``default`` is the rule itself. ``form`` is the head's form: ``Compr``, ``Set`` or ``Func``.
    """

    def __init__(self, node: Mapping[str, Any]) -> None:
        ((kind, rule),) = node.items()
        self.rule: Mapping[str, Any] = rule
        self.is_default = kind == "Default"
        self.form: str
        self.head: Mapping[str, Any]
        if self.is_default:
            self.form, self.head = ("Func" if rule["args"] else "Compr"), rule
        else:
            ((self.form, self.head),) = rule["head"].items()
        # All the checks share this walk: a walk for each check takes most of the time of a load.
        self._parts = [(name, part) for part in objects(node) if (name := _kind(part))]

    def parts(self, *kinds: str) -> Iterator[Mapping[str, Any]]:
        """Yield the definition's objects of these kinds, such as ``{"Call": {...}}``.

        A body, ``{"stmts": [...]}``, has the kind ``stmts``. The last part of the text comes first.
        """
        return (part for kind, part in self._parts if kind in kinds)


def _kind(node: Mapping[str, Any]) -> str | None:
    if len(node) == 1:
        return next(iter(node))
    return "stmts" if "stmts" in node else None


class Reader:
    """Reads one module of the engine's ``get_ast_as_json``: its package, imports and rules.

    Raises ``KeyError`` or ``TypeError`` when the tree has another shape than in this version of
    the engine.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._file: str = tree["source"]["file"]
        self._text: bytes = tree["source"]["contents"].encode()
        self.package: Names = ("data", *name_of(tree["ast"]["package"]["refr"]).path)
        self.package_at = self.at(tree["ast"]["package"]["span"])
        self.imports: list[Mapping[str, Any]] = tree["ast"]["imports"]
        self._imports = dict(self._import(node) for node in self.imports)
        self.rules = [RuleTree(node) for node in tree["ast"]["rules"]]

    @cached_property
    def module(self) -> Module:
        """The rules of the module, and the names that each rule refers to."""
        return Module(self.package, tuple(self._rule(tree) for tree in self.rules))

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of the module's rules and imports, which the bodies of its rules may read."""
        return frozenset(rule.path[len(self.package)] for rule in self.module.rules) | {
            *self._imports
        }

    def leave_out(self, paths: AbstractSet[Names]) -> None:
        """Remove the rules with these paths from ``rules``; ``module`` and ``names`` keep them."""
        pairs = zip(self.module.rules, self.rules, strict=True)
        self.rules = [tree for rule, tree in pairs if rule.path not in paths]

    def parts(self, *kinds: str) -> Iterator[Mapping[str, Any]]:
        """Yield the objects of these kinds in the module's rules (``RuleTree.parts``)."""
        return (part for tree in self.rules for part in tree.parts(*kinds))

    def _import(self, node: Mapping[str, Any]) -> tuple[str, Names]:
        path = name_of(node["refr"]).path
        alias = node.get("as")
        return (self.text_of(alias) if alias else path[-1]), path

    def text_of(self, span: Span) -> str:
        """Return the source text of a span."""
        return self._text[span.start : span.end].decode()

    def at(self, span: Span) -> str:
        """Return ``file:line:column``."""
        return f"{self._file}:{span.line}:{span.col}"

    def _rule(self, tree: RuleTree) -> Rule:
        rule, head = tree.rule, tree.head
        if tree.is_default:
            body = [rule["value"]]
        else:
            # A head is {refr, args | key, assign}: each member but ``refr`` may refer to rules.
            body = [head.get("args"), head.get("key"), head.get("assign"), rule["bodies"]]
        name = name_of(head["refr"])
        local = frozenset(self.locals(tree))
        references = tuple(self._references([*body, *name.computed], local))
        path = self.path_of(head["refr"])
        return Rule(self.package, path, self.at(rule["span"]), tree.form == "Func", references)

    def path_of(self, head: Any) -> Names:
        """Return the constant part of a rule's path; ``head`` is the name in the rule's head."""
        return (*self.package, *name_of(head).path)

    def locals(self, tree: RuleTree) -> Iterator[str]:
        """Yield the variables that a rule declares: each hides a rule or import of its name."""
        yield from variables(tree.head.get("args"))
        for node in tree.parts("AssignExpr", "SomeIn", "SomeVars", "Every"):
            match node:
                case {"AssignExpr": {"op": "ColEq", "lhs": pattern}}:
                    yield from variables(pattern)
                case {"SomeIn": {"key": key, "value": value}}:
                    yield from variables([key, value])
                case {"SomeVars": {"vars": spans}}:
                    yield from (self.text_of(span) for span in spans)
                case {"Every": {"key": key, "value": value}}:
                    yield from (self.text_of(span) for span in (key, value) if span)

    def _references(self, nodes: list[Any], local: frozenset[str]) -> Iterator[Reference]:
        todo = list(nodes)
        while todo:
            node = todo.pop()
            match node:
                case list():
                    todo.extend(node)
                case {"Call": {"fcn": function, "params": parameters}}:
                    name = name_of(function)
                    yield self.reference(name, call=True)
                    todo.extend([*parameters, *name.computed])
                case {"RefDot": _} | {"RefBrack": _} | {"Var": _}:
                    name = name_of(node)
                    if name.path and name.path[0] not in local:
                        yield self.reference(name, call=False)
                    todo.extend(name.computed)
                case dict():
                    todo.extend(node.values())

    def reference(self, name: Name, *, call: bool) -> Reference:
        """Resolve a name that no variable hides."""
        root, *rest = name.path or ("",)
        absolute = root in self._imports or root in _ROOTS
        path = (*self._imports.get(root, (root,)), *rest)
        definition = path if absolute else (*self.package, *path)
        at = self.at(name.span)
        return Reference(path if call else definition, definition, at, call, name.whole, absolute)


@dataclass(frozen=True, slots=True)
class Name:
    """A name as written: the constant path, the computed nodes, and the span of the first part."""

    path: Names
    computed: tuple[Any, ...]
    span: Span

    @property
    def whole(self) -> bool:
        """Whether no part of the name is computed."""
        return not self.computed

    def __str__(self) -> str:
        return ".".join(self.path) + ("" if self.whole else "[...]")


def name_of(node: Any) -> Name:
    """Read a variable, or a reference that continues a variable by dots and brackets."""
    names: list[str] = []
    computed: list[Any] = []
    while True:
        match node:
            case {"Var": {"value": str(root), "span": span}}:
                return Name((root, *reversed(names)), tuple(computed), span)
            case {"RefDot": {"refr": inner, "field": [_, str(name)]}}:
                names.append(name)
            case {"RefBrack": {"refr": inner, "index": {"String": {"value": str(name)}}}}:
                names.append(name)
            case {"RefBrack": {"refr": inner, "index": {"RawString": {"value": str(name)}}}}:
                names.append(name)
            case {"RefBrack": {"refr": inner, "index": index}}:
                names.clear()  # the path behind a computed index is unknown before evaluation
                computed.append(index)
            case _:  # the result of a call, or a literal, has no name
                (literal,) = node.values()
                return Name((), (*computed, node), literal["span"])
        node = inner


def objects(tree: object) -> Iterator[Mapping[str, Any]]:
    """Yield every object in a part of the tree."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)


def variables(pattern: object) -> Iterator[str]:
    """Yield the names that a pattern binds."""
    for node in objects(pattern):
        match node:
            case {"Var": {"value": str(name)}} if name not in _ROOTS:
                yield name


def used_variables(expression: object) -> Iterator[tuple[str, Span]]:
    """Yield the variables, with their spans, without which an expression has no value.

    The names of called functions and the variables of comprehensions are not among them.
    """
    todo = [expression]
    while todo:
        match todo.pop():
            case {"Var": {"value": str(name), "span": span}} if name not in _ROOTS:
                yield name, span
            case dict() as node:
                hidden = ("fcn", "ArrayCompr", "SetCompr", "ObjectCompr")
                todo += [value for kind, value in node.items() if kind not in hidden]
            case list() as nodes:
                todo += nodes
