"""Where the values of a policy come from: the input, or a parameter of a function.

A value is followed back through imports, variables, rules, functions, ``object.get``, and objects
and arrays that are written out. The order of values (``ordering.py``) and the names that a policy
reads (``reads.py``) are judged by the origins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from math import inf
from typing import Any, Final, NamedTuple, TypeAlias

from agentguard.policy.rego.syntax_tree import (
    Name,
    Names,
    Reader,
    RuleTree,
    Span,
    name_of,
    variables,
)

Origin: TypeAlias = Names | None
"""A path below ``input`` or below a parameter; None for another value.

A path below a parameter begins with ``PARAMETER`` and the parameter's position.
"""

ELEMENT: Final = "[...]"
"""The name of a computed member or an element. A path below ``input`` ends with it."""

PARAMETER: Final = ""


class _Binding(NamedTuple):
    """A variable, its source, the scope of its meaning, and whether it is the whole source."""

    name: str
    source: Any
    scope: Span | None
    is_exact: bool = False


class Definition:
    """One definition of a rule or function, with the meaning of its variables and parameters."""

    def __init__(self, reader: Reader, tree: RuleTree) -> None:
        self.reader: Final = reader
        self.tree: Final = tree
        self.path: Final = reader.path_of(tree.head["refr"])
        parameters = tree.head.get("args") or []
        self.is_function: Final = bool(parameters)
        self.parameters: Final[dict[str, Names]] = {
            name: (PARAMETER, str(place), *(() if "Var" in pattern else (ELEMENT,)))
            for place, pattern in enumerate(parameters)
            for name in variables(pattern)
        }
        self.locals: Final = frozenset(reader.locals(tree))
        self._scopes = [*self._spans()]
        self.bound = [*self._bindings()]

    def values(self, names: Names) -> Iterator[tuple[Any, Names]]:
        """Yield the nodes that the member at these names comes from, with the names below each."""
        head = self.tree.head
        if not name_of(head["refr"]).whole:  # of `m[k] := v`, v is the value of each member
            names = (ELEMENT,)
        if self.tree.form == "Set":
            yield head["key"], names[1:] if names else (ELEMENT,)
        elif self.tree.is_default:
            yield head["value"], names
        else:
            assigned = (part.get("assign") for part in (head, *self.tree.rule["bodies"]))
            yield from ((part["value"], names) for part in assigned if part)

    def _spans(self) -> Iterator[Span]:
        """Yield where variables have a meaning of their own: the rule's bodies come first."""
        yield from (body["span"] for body in self.tree.rule.get("bodies", []))
        for node in self.tree.parts("ArrayCompr", "SetCompr", "ObjectCompr", "Every"):
            ((kind, part),) = node.items()
            yield part["query"]["span"] if kind == "Every" else part["span"]

    def _bindings(self) -> Iterator[_Binding]:
        """Yield the variables with their sources."""
        for node in self.tree.parts("AssignExpr", "SomeIn", "Every"):
            match node:
                case {"AssignExpr": {"lhs": {"Var": {"value": str(name)}}, "rhs": source} as part}:
                    yield _Binding(name, source, self._scope(part["span"]), is_exact=True)
                case {"AssignExpr": {"lhs": pattern, "rhs": source} as part} | {
                    "SomeIn": {"value": pattern, "collection": source} as part
                }:
                    scope = self._scope(part["span"])
                    yield from (_Binding(one, source, scope) for one in variables(pattern))
                case {"Every": {"value": span, "domain": source, "query": query}}:
                    yield _Binding(self.reader.text_of(span), source, query["span"])

    def _scope(self, at: Span) -> Span | None:
        """Return the innermost scope around a place; None in the head of the rule."""
        return min((one for one in self._scopes if _holds(one, at)), key=_size, default=None)

    def binding(self, name: str, at: Span) -> _Binding | None:
        """Return what binds a variable at a place: the innermost one, as in Rego."""
        # the rule's head reads the variables of the first body
        read = self._scopes[0] if self._scopes and self._scope(at) is None else at
        around = (one for one in self.bound if one.name == name and _holds(one.scope, read))
        return min(around, key=lambda one: _size(one.scope), default=None)


class Policy:
    """The definitions of a policy, which must be free of recursion, and the origins of values.

    Without ``gathered``, what a function returns and what a set gathers has no origin.
    """

    def __init__(self, readers: Iterable[Reader], *, gathered: bool) -> None:
        self.definitions: Final = [
            Definition(reader, tree) for reader in readers for tree in reader.rules
        ]
        self._gathered = gathered
        self._by_path: dict[Names, list[Definition]] = defaultdict(list)
        for definition in self.definitions:
            self._by_path[definition.path].append(definition)
        self._known: dict[tuple[int, Names], tuple[Origin, ...]] = {}

    def origins(self, at: Definition, node: Any, names: Names = ()) -> tuple[Origin, ...]:
        """Return what the member at these names below a node of a definition may be.

        None is a value that can't be followed or that the policy has written out. There is no
        origin for a member that is never there.
        """
        key = (id(node), names)
        if key not in self._known:  # without the cache, shared rules are followed many times
            self._known[key] = ()  # for a value that is made from itself; the engine refuses it
            self._known[key] = tuple(dict.fromkeys(self._follow(at, node, names)))
        return self._known[key]

    def argument(self, at: Definition, arguments: list[Any], origin: Names) -> tuple[Origin, ...]:
        """Return what an origin below a parameter is where a definition gives the arguments."""
        place = int(origin[1])
        return self.origins(at, arguments[place], origin[2:]) if place < len(arguments) else ()

    def _follow(self, at: Definition, node: Any, names: Names) -> Iterator[Origin]:
        match node:
            case {"RefDot": {"refr": inner, "field": [_, str(name)]}}:
                yield from self.origins(at, inner, (name, *names))
            case {"RefBrack": {"refr": inner, "index": index}}:
                yield from self.origins(at, inner, (text(index) or ELEMENT, *names))
            case {"Var": {"value": str(name), "span": span}}:
                yield from self._variable(at, name, span, names)
            case {"Call": {"fcn": function, "params": [*arguments]}}:
                yield from self._result(at, name_of(function), arguments, names)
            case {"Array": {"items": items}} | {"Set": {"items": items}} if names:
                yield from (one for item in items for one in self.origins(at, item, names[1:]))
            case {"Object": {"fields": fields}} if names:
                for _span, key, value in fields:
                    if names[0] == ELEMENT or text(key) in (None, names[0]):
                        yield from self.origins(at, value, names[1:])
            case {"String": _} | {"RawString": _} | {"Number": _} | {"Bool": _} | {"Null": _} if (
                names
            ):
                pass  # a value without members
            case _:
                yield None

    def _variable(self, at: Definition, name: str, span: Span, names: Names) -> Iterator[Origin]:
        binding = at.binding(name, span)
        if binding is not None:
            # The binding is removed while its source is followed: the source may refer to it.
            at.bound.remove(binding)
            below = names if binding.is_exact else (ELEMENT, *names)
            yield from self.origins(at, binding.source, below)
            at.bound.append(binding)
        elif name in at.parameters:
            yield (*at.parameters[name], *names)
        elif name in at.locals:
            yield None
        else:
            root = at.reader.reference(Name((name,), (), span), call=False).path
            yield from self._member((*root, *names))

    def _member(self, path: Names) -> Iterator[Origin]:
        if path[0] == "input":
            yield path[: path.index(ELEMENT) + 1] if ELEMENT in path else path
            return
        lengths = range(len(path), 0, -1)
        length = next((one for one in lengths if path[:one] in self._by_path), 0)
        yield from self._values(path[:length], path[length:])

    def _values(self, path: Names, names: Names) -> Iterator[Origin]:
        """Yield the origins of a rule, or of a function with its parameters."""
        definitions = self._by_path.get(path, ())
        for definition in definitions:
            if self._gathered or definition.tree.form == "Compr":
                for node, below in definition.values(names):
                    yield from self.origins(definition, node, below)
        if not definitions:
            yield None

    def _result(
        self, at: Definition, function: Name, arguments: list[Any], names: Names
    ) -> Iterator[Origin]:
        match function.path, arguments:
            case ("object", "get"), [of, key, default]:
                yield from self.origins(at, of, (*keys(key), *names)) if keys(key) else (None,)
                yield from self.origins(at, default, names)
                return
        called = at.reader.reference(function, call=True).definition
        for origin in self._values(called, names):
            if origin is not None and origin[0] == PARAMETER:
                yield from self.argument(at, arguments, origin)
            else:
                yield origin


def keys(node: Any) -> Names:
    """Return the names in the second argument of ``object.get``: a text, or an array of texts."""
    match node:
        case {"Array": {"items": [*items]}}:
            each = [keys(item) for item in items]
            return tuple(key for names in each for key in names) if all(each) else ()
    name = text(node)
    return () if name is None else (name,)


def text(node: Any) -> str | None:
    """Return the text that a node is; None for another node."""
    match node:
        case {"String": {"value": str(value)}} | {"RawString": {"value": str(value)}}:
            return value
    return None


def _holds(scope: Span | None, at: Span) -> bool:
    return scope is None or scope.start <= at.start < scope.end


def _size(scope: Span | None) -> float:
    return inf if scope is None else scope.end - scope.start
