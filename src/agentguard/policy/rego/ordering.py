"""Warnings: arguments that a policy compares by order without a check of their type.

Rego orders values of all types: a text or an object is above every number. A ``Decimal`` and an
integer beyond 2^53-1 arrive as objects (records.md, "One call's bytes"), and ``amount >= 0`` holds
for ``{"$decimal": "-5"}``. The gate warns about a comparison without ``is_number`` (or
``is_string``, for texts). This module follows a value back to its origin through the policy's
variables, rules and functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, NamedTuple

from agentguard.call.vocabulary import RESERVED
from agentguard.policy.rego.syntax_tree import (
    Names,
    Reader,
    RuleTree,
    Span,
    name_of,
    objects,
    variables,
)

_ORDER: Final = frozenset({"Lt", "Le", "Gt", "Ge"})
_CHECKS: Final = (("is_number",), ("is_string",))
_DENIES: Final = ("deny_reason", "deny_reasons")
_PARAMETER: Final = ""
"""The first item of a parameter's path; the second item is the parameter's position."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from: a path below ``input``, a rule of the policy, or a parameter.

    ``whole`` means that the path has no computed part after it, such as the index of an element.
    """

    path: Names
    whole: bool

    def below(self, names: Names, *, whole: bool) -> Origin:
        """Return the origin of the member at these names below this value."""
        return Origin((*self.path, *names), whole) if self.whole else self

    @property
    def is_argument(self) -> bool:
        """Tell whether the value is an argument, or an attribute that is taken from one."""
        root, *names = self.path
        return root == "input" and (not names or names[0] == "args" or names[0] not in RESERVED)

    def __str__(self) -> str:
        return ".".join(self.path) + ("" if self.whole else "[...]")


@dataclass(slots=True)
class _Body:
    """The values, comparisons, type checks and calls of one definition of a rule or function.

    ``holds`` are the rules and functions, with the arguments, that must be true where the body is;
    ``alternatives`` says that only one of several bodies (``else``) has to hold. ``is_false`` is a
    default that says no more than that no other definition holds.
    """

    path: Names
    function: bool
    alternatives: bool = False
    is_false: bool = False
    values: list[Origin] = field(default_factory=list)
    comparisons: list[tuple[str, Origin]] = field(default_factory=list)
    numbers: set[Origin] = field(default_factory=set)
    others: set[Origin] = field(default_factory=set)
    calls: list[tuple[str, Names, list[Origin | None]]] = field(default_factory=list)
    holds: list[tuple[Names, list[Origin | None]]] = field(default_factory=list)


def warnings(readers: Iterable[Reader], query: Names) -> Iterator[str]:
    """Yield a sentence for each argument that a rule compares by order without ``is_number``.

    In a rule that denies, ``is_number`` does not help by itself: the rule would no longer deny a
    value that is not a number. The policy must be free of recursion.
    """
    bodies = [DefinitionReader(reader, tree).body() for reader in readers for tree in reader.rules]
    policy = _Policy(bodies)
    outputs = {(*query, name) for name in _DENIES}
    denying = [body for body in bodies if body.path in outputs]
    denied = policy.origins_of(value for body in denying for value in body.others)
    required = policy.origins_of(
        value for body in bodies if body.path not in outputs for value in body.numbers
    )
    for body in bodies:
        denies = body.path in outputs
        numbers = policy.numbers_of(body)
        checked = numbers & required if denies else numbers
        first: dict[Origin, str] = {}
        for at, origin in policy.comparisons(body):
            first.setdefault(origin, at)
        for origin, at in first.items():
            if origin.is_argument and origin not in denied and origin not in checked:
                yield f"{at}: {_sentence(origin, denies=denies)}"


def _sentence(origin: Origin, *, denies: bool) -> str:
    check = f"is_number({origin})"
    advice = f"write {check} in this rule"
    if denies:
        advice = f"{advice}, and also in a rule of its own, and deny if that rule does not hold"
    return (
        f"{origin} is compared by order, but a text or an object is above every number, and a "
        "Decimal or an integer beyond 2^53-1 is an object in the input; "
        f"{advice} (is_string for a text)"
    )


class _Policy:
    """Follows the values of a policy across its rules and functions."""

    def __init__(self, bodies: Iterable[_Body]) -> None:
        self._definitions: dict[Names, list[_Body]] = defaultdict(list)
        self._values: dict[Names, list[Origin]] = defaultdict(list)
        self._functions: dict[Names, list[_Body]] = defaultdict(list)
        self._parameters_by_function: dict[Names, list[Origin]] = {}
        self._cache: dict[Origin, list[Origin]] = {}
        for body in bodies:
            self._definitions[body.path].append(body)
            if body.function:
                self._functions[body.path].append(body)
            else:
                self._values[body.path] += body.values

    def origins_of(self, values: Iterable[Origin]) -> set[Origin]:
        """Return the arguments and parameters that the values come from."""
        return {origin for value in values for origin in self._origins(value)}

    def numbers_of(self, body: _Body) -> set[Origin]:
        """Return the values that are numbers where a body holds, by its own checks or a helper's.

        A helper's check counts if each definition of the helper has the check, and if the check is
        of a whole value: one of several elements says nothing of the others.
        """
        numbers = self.origins_of(body.numbers)
        for path, arguments in () if body.alternatives else body.holds:
            definitions = [one for one in self._definitions.get(path, ()) if not one.is_false]
            checked = [
                self.numbers_of(one) if not one.alternatives else set[Origin]()
                for one in definitions
            ]
            for origin in set.intersection(*checked) if checked else ():
                if not origin.whole:
                    continue
                if origin.path[0] != _PARAMETER:
                    numbers.add(origin)
                    continue
                place = int(origin.path[1])
                argument = arguments[place] if place < len(arguments) else None
                if argument is not None:
                    below = argument.below(origin.path[2:], whole=origin.whole)
                    numbers |= self.origins_of([below])
        return numbers

    def comparisons(self, body: _Body) -> Iterator[tuple[str, Origin]]:
        """Yield the values that a body, or a function called by the body, compares by order."""
        for at, value in body.comparisons:
            yield from ((at, origin) for origin in self._origins(value))
        for at, function, arguments in body.calls:
            for parameter in self._unchecked_parameters(function):
                place = int(parameter.path[1])
                argument = arguments[place] if place < len(arguments) else None
                if argument is not None:
                    below = argument.below(parameter.path[2:], whole=parameter.whole)
                    yield from ((at, origin) for origin in self._origins(below))

    def _origins(self, value: Origin) -> list[Origin]:
        if value.path[0] != "data":
            return [value]
        if value not in self._cache:  # without the cache, shared rules are followed many times
            self._cache[value] = list(dict.fromkeys(self._origins_of_rule(value)))
        return self._cache[value]

    def _origins_of_rule(self, value: Origin) -> Iterator[Origin]:
        for length in range(len(value.path), 0, -1):
            origins = self._values.get(value.path[:length], ())
            for origin in origins:
                below = origin.below(value.path[length:], whole=value.whole)
                yield from self._origins(below)
            if origins:
                return

    def _unchecked_parameters(self, function: Names) -> list[Origin]:
        """Return the parameters that the function compares by order and does not check."""
        if function not in self._parameters_by_function:
            self._parameters_by_function[function] = [
                origin
                for body in self._functions.get(function, ())
                for _at, origin in self.comparisons(body)
                if origin.path[0] == _PARAMETER and origin not in self.numbers_of(body)
            ]
        return self._parameters_by_function[function]


class _Binding(NamedTuple):
    """A variable, its source, the scope of its meaning, and whether it is the whole source."""

    name: str
    source: Any
    scope: Span | None
    is_exact: bool = False


class DefinitionReader:
    """Reads one definition of a rule, and resolves its variables and parameters."""

    def __init__(self, reader: Reader, tree: RuleTree) -> None:
        self._reader = reader
        self._tree = tree
        parameters = tree.head.get("args") or []
        self._parameters = {
            name: Origin((_PARAMETER, str(place)), whole="Var" in pattern)
            for place, pattern in enumerate(parameters)
            for name in variables(pattern)
        }
        self._scopes = [*self._spans()]
        self._bound = [*self._bindings()]

    def body(self) -> _Body:
        """Return the definition's values, comparisons, type checks and calls."""
        head, rule = self._tree.head, self._tree.rule
        body = _Body(
            self._reader.path_of(head["refr"]),
            function=bool(head.get("args")),
            alternatives=len(rule.get("bodies", ())) > 1,
            is_false=self._tree.is_default
            and "Bool" in rule["value"]
            and not rule["value"]["Bool"]["value"],
        )
        body.holds += self._held()
        is_whole = name_of(head["refr"]).whole
        for assigned in (part.get("assign") for part in (head, *rule.get("bodies", []))):
            value = self.origin(assigned["value"]) if assigned else None
            if value is not None:  # of `m[k] := v`, v is the value of each member
                body.values.append(value if is_whole else Origin(value.path, whole=False))
        # ``parts`` begins at the end of the rule; a warning is about the first comparison.
        parts = [*self._tree.parts("BoolExpr", "Call")][::-1]
        negations = self._tree.parts("NotExpr")
        negated = {id(part) for negation in negations for part in objects(negation)}
        for node in parts:
            self._note(body, node, negated=id(node) in negated)
        return body

    def _held(self) -> Iterator[tuple[Names, list[Origin | None]]]:
        """Yield the rules, and the calls whose value is not used, that the body needs to hold."""
        for part in self._tree.rule.get("bodies", ()):
            for statement in part["query"]["stmts"]:
                match statement["literal"]:
                    case {"Expr": {"expr": {"Call": {"fcn": function, "params": [*parameters]}}}}:
                        callee = self._reader.reference(name_of(function), call=True)
                        yield callee.definition, [self.origin(one) for one in parameters]
                    case {"Expr": {"expr": ({"Var": _} | {"RefDot": _}) as name}}:
                        origin = self.origin(name)
                        if origin is not None and origin.whole:
                            yield origin.path, []

    def _note(self, body: _Body, node: Mapping[str, Any], *, negated: bool) -> None:
        match node:
            case {"BoolExpr": {"op": str(op), "lhs": left, "rhs": right, "span": span}}:
                sides = (self.origin(side) for side in (left, right) if op in _ORDER)
                at = self._reader.at(span)
                body.comparisons += [(at, value) for value in sides if value is not None]
            case {"Call": {"fcn": function, "params": [*parameters], "span": span}}:
                callee = self._reader.reference(name_of(function), call=True)
                arguments = [self.origin(parameter) for parameter in parameters]
                if callee.path in _CHECKS:
                    checked = body.others if negated else body.numbers
                    checked |= {value for value in arguments if value is not None}
                body.calls.append((self._reader.at(span), callee.definition, arguments))

    def _spans(self) -> Iterator[Span]:
        """Yield where variables have a meaning of their own: the rule's bodies come first."""
        yield from (body["span"] for body in self._tree.rule.get("bodies", []))
        for node in self._tree.parts("ArrayCompr", "SetCompr", "ObjectCompr", "Every"):
            ((kind, part),) = node.items()
            yield part["query"]["span"] if kind == "Every" else part["span"]

    def _bindings(self) -> Iterator[_Binding]:
        """Yield the variables with their sources."""
        for node in self._tree.parts("AssignExpr", "SomeIn", "Every"):
            match node:
                case {"AssignExpr": {"lhs": {"Var": {"value": str(name)}}, "rhs": source} as part}:
                    yield _Binding(name, source, self._scope(part["span"]), is_exact=True)
                case {"AssignExpr": {"lhs": pattern, "rhs": source} as part} | {
                    "SomeIn": {"value": pattern, "collection": source} as part
                }:
                    scope = self._scope(part["span"])
                    yield from (_Binding(one, source, scope) for one in variables(pattern))
                case {"Every": {"value": span, "domain": source, "query": query}}:
                    yield _Binding(self._reader.text_of(span), source, query["span"])

    def _scope(self, at: Span) -> Span | None:
        """Return the innermost scope around a place; None in the head of the rule."""
        return min((one for one in self._scopes if _holds(one, at)), key=_size, default=None)

    def origin(self, node: Any) -> Origin | None:
        """Return the origin of a name, or of what ``object.get`` takes from one; else None."""
        match node:
            case {"Call": {"fcn": function, "params": [of, key, _]}}:
                value = self.origin(of) if name_of(function).path == ("object", "get") else None
                keys = _keys(key)
                return value.below(keys, whole=True) if value is not None and keys else None
            case {"Var": _} | {"RefDot": _} | {"RefBrack": _}:
                name = name_of(node)
                if not name.path:
                    return None
                root, *names = name.path
                binding = self._binding(root, name.span)
                if binding is not None:
                    base = self._value(binding)
                    return None if base is None else base.below(tuple(names), whole=name.whole)
                if root in self._parameters:
                    return self._parameters[root].below(tuple(names), whole=name.whole)
                return Origin(self._reader.reference(name, call=False).path, name.whole)
        return None

    def _binding(self, name: str, at: Span) -> _Binding | None:
        """Return what binds a variable at a place: the innermost one, as in Rego."""
        # the rule's head reads the variables of the first body
        read = self._scopes[0] if self._scopes and self._scope(at) is None else at
        around = (one for one in self._bound if one.name == name and _holds(one.scope, read))
        return min(around, key=lambda one: _size(one.scope), default=None)

    def _value(self, binding: _Binding) -> Origin | None:
        # The variable is removed while its source is resolved, because the source may refer to it.
        self._bound.remove(binding)
        value = self.origin(binding.source)
        self._bound.append(binding)
        return value if value is None or binding.is_exact else Origin(value.path, whole=False)


def _holds(scope: Span | None, at: Span) -> bool:
    return scope is None or scope.start <= at.start < scope.end


def _size(scope: Span | None) -> float:
    return inf if scope is None else scope.end - scope.start


def _keys(node: Any) -> Names:
    """Return the names in the second argument of ``object.get``: a text, or an array of texts."""
    match node:
        case {"String": {"value": str(key)}} | {"RawString": {"value": str(key)}}:
            return (key,)
        case {"Array": {"items": [*items]}}:
            each = [_keys(item) for item in items]
            return tuple(key for names in each for key in names) if all(each) else ()
    return ()
