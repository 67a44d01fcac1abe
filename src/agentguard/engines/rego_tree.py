"""The engine's syntax tree, read into rules and the names that each of them refers to.

Names are resolved as Rego resolves them: imports and the rule's own package to a path below
``data``. Which rules and names are acceptable stands in ``rego_gate.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

Names: TypeAlias = tuple[str, ...]
"""The names of a reference: ``("data", "agent", "authz", "allow")``, ``("count",)``."""

_ROOTS: Final = frozenset({"data", "input"})


@dataclass(frozen=True, slots=True)
class Reference:
    """A name in a rule's head or body.

    ``path`` is the part known before evaluation, resolved; ``whole`` tells that nothing computed
    follows it; ``absolute`` that it was written by way of ``data`` or an import; ``at`` is
    ``file:line:column``.
    """

    path: Names
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


def read(tree: Mapping[str, Any]) -> Module:
    """Read one module of the engine's ``get_ast_as_json``.

    Raises ``KeyError`` or ``TypeError`` when the tree has another shape than this version's.
    """
    return _Reader(tree).module()


class _Reader:
    """Reads one module: knows its file, package, imports, and the names of its own rules."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._file: str = tree["source"]["file"]
        self._text: bytes = tree["source"]["contents"].encode()
        self._package: Names = ("data", *_name(tree["ast"]["package"]["refr"]).path)
        self._imports = dict(self._import(node) for node in tree["ast"]["imports"])
        self._rules = tree["ast"]["rules"]

    def module(self) -> Module:
        return Module(self._package, tuple(self._rule(node) for node in self._rules))

    def _import(self, node: Mapping[str, Any]) -> tuple[str, Names]:
        path = _name(node["refr"]).path
        alias = node.get("as")
        return (self._slice(alias) if alias else path[-1]), path

    def _slice(self, span: Mapping[str, Any]) -> str:
        return self._text[span["start"] : span["end"]].decode()

    def _at(self, span: Mapping[str, Any]) -> str:
        return f"{self._file}:{span['line']}:{span['col']}"

    def _rule(self, node: Mapping[str, Any]) -> Rule:
        ((kind, rule),) = node.items()
        if kind == "Default":
            head, body = rule, [rule["value"]]
            function = bool(rule["args"])
        else:
            ((form, head),) = rule["head"].items()
            # A head is {refr, args | key, assign}: all of it but its own name may refer to others.
            body = [head.get("args"), head.get("key"), head.get("assign"), rule["bodies"]]
            function = form == "Func"
        name = _name(head["refr"])
        local = frozenset(self._locals(rule, head.get("args")))
        references = tuple(self._references([*body, *name.computed], local))
        path, at = (*self._package, *name.path), self._at(rule["span"])
        return Rule(self._package, path, at, function, references)

    def _locals(self, rule: Mapping[str, Any], arguments: object) -> Iterator[str]:
        """Yield the variables that a rule declares; they hide rules and imports."""
        yield from _variables(arguments)
        for node in _objects(rule):
            match node:
                case {"AssignExpr": {"op": "ColEq", "lhs": pattern}}:
                    yield from _variables(pattern)
                case {"SomeIn": {"key": key, "value": value}}:
                    yield from _variables([key, value])
                case {"SomeVars": {"vars": spans}}:
                    yield from (self._slice(span) for span in spans)
                case {"Every": {"key": key, "value": value}}:
                    yield from (self._slice(span) for span in (key, value) if span)

    def _references(self, nodes: list[Any], local: frozenset[str]) -> Iterator[Reference]:
        todo = list(nodes)
        while todo:
            node = todo.pop()
            match node:
                case list():
                    todo.extend(node)
                case {"Call": {"fcn": function, "params": parameters}}:
                    name = _name(function)
                    yield self._reference(name, call=True)
                    todo.extend([*parameters, *name.computed])
                case {"RefDot": _} | {"RefBrack": _} | {"Var": _}:
                    name = _name(node)
                    if name.path and name.path[0] not in local:
                        yield self._reference(name, call=False)
                    todo.extend(name.computed)
                case dict():
                    todo.extend(node.values())

    def _reference(self, name: _Name, *, call: bool) -> Reference:
        root, *rest = name.path or ("",)
        absolute = root in self._imports or root in _ROOTS
        path = (*self._imports.get(root, (root,)), *rest)
        if not absolute and not call:
            path = (*self._package, *path)
        return Reference(path, self._at(name.span), call, name.whole, absolute)


@dataclass(frozen=True, slots=True)
class _Name:
    """A name as written: its constant path, the computed nodes in it, and where it begins."""

    path: Names
    computed: tuple[Any, ...]
    span: Mapping[str, Any]

    @property
    def whole(self) -> bool:
        return not self.computed


def _name(node: Any) -> _Name:
    names: list[str] = []
    computed: list[Any] = []
    while True:
        match node:
            case {"Var": {"value": str(root), "span": span}}:
                return _Name((root, *reversed(names)), tuple(computed), span)
            case {"RefDot": {"refr": inner, "field": [_, str(name)]}}:
                names.append(name)
            case {"RefBrack": {"refr": inner, "index": {"String": {"value": str(name)}}}}:
                names.append(name)
            case {"RefBrack": {"refr": inner, "index": {"RawString": {"value": str(name)}}}}:
                names.append(name)
            case {"RefBrack": {"refr": inner, "index": index}}:
                names.clear()  # what follows a computed index is not known before evaluation
                computed.append(index)
            case _:  # a call's result, a literal: it has no name
                (literal,) = node.values()
                return _Name((), (*computed, node), literal["span"])
        node = inner


def _objects(tree: object) -> Iterator[Mapping[str, Any]]:
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)


def _variables(pattern: object) -> Iterator[str]:
    for node in _objects(pattern):
        match node:
            case {"Var": {"value": str(name)}} if name not in _ROOTS:
                yield name
