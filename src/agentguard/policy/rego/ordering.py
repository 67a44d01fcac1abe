"""Warnings: arguments that a policy compares by order without a check of their type.

Rego orders values of all types: a text or an object is above every number. A ``Decimal`` and an
integer beyond 2^53-1 arrive as objects (records.md, "One call's bytes"), and ``amount >= 0`` holds
for ``{"$decimal": "-5"}``. The gate warns about a comparison without ``is_number`` (or
``is_string``, for texts). ``origins.py`` follows the values back to the arguments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from agentguard.call.vocabulary import RESERVED
from agentguard.policy.rego.origins import ELEMENT, PARAMETER, Definition, Policy
from agentguard.policy.rego.syntax_tree import Names, Reader, name_of, objects

_ORDER: Final = frozenset({"Lt", "Le", "Gt", "Ge"})
_CHECKS: Final = (("is_number",), ("is_string",))
_DENIES: Final = ("deny_reason", "deny_reasons")


@dataclass(slots=True)
class _Body:
    """The comparisons, type checks and calls of one definition of a rule or function.

    ``holds`` are the rules and functions, with the arguments, that must be true where the body is;
    ``alternatives`` says that only one of several bodies (``else``) has to hold. ``is_false`` is a
    default that says no more than that no other definition holds.
    """

    definition: Definition
    alternatives: bool
    is_false: bool
    comparisons: list[tuple[str, Names]] = field(default_factory=list)
    numbers: set[Names] = field(default_factory=set)
    others: set[Names] = field(default_factory=set)
    calls: list[tuple[str, Names, list[Any]]] = field(default_factory=list)
    holds: list[tuple[Names, list[Any]]] = field(default_factory=list)


def warnings(readers: Iterable[Reader], query: Names) -> Iterator[str]:
    """Yield a sentence for each argument that a rule compares by order without ``is_number``.

    In a rule that denies, ``is_number`` does not help by itself: the rule would no longer deny a
    value that is not a number. The policy must be free of recursion.
    """
    policy = _Policy(readers)
    bodies = policy.bodies
    outputs = {(*query, name) for name in _DENIES}
    denied = {value for body in bodies if body.definition.path in outputs for value in body.others}
    required = {
        value for body in bodies if body.definition.path not in outputs for value in body.numbers
    }
    for body in bodies:
        denies = body.definition.path in outputs
        numbers = policy.numbers_of(body)
        checked = numbers & required if denies else numbers
        first: dict[Names, str] = {}
        for at, origin in policy.comparisons(body):
            first.setdefault(origin, at)
        for origin, at in first.items():
            if _is_argument(origin) and origin not in denied and origin not in checked:
                yield f"{at}: {_sentence(origin, denies=denies)}"


def _is_argument(origin: Names) -> bool:
    """Tell whether the value is an argument, or an attribute that is taken from one."""
    root, *names = origin
    return root == "input" and (not names or names[0] == "args" or names[0] not in RESERVED)


def _sentence(origin: Names, *, denies: bool) -> str:
    name = ".".join(origin).replace(f".{ELEMENT}", ELEMENT)
    check = f"is_number({name})"
    advice = f"write {check} in this rule"
    if denies:
        advice = f"{advice}, and also in a rule of its own, and deny if that rule does not hold"
    return (
        f"{name} is compared by order, but a text or an object is above every number, and a "
        "Decimal or an integer beyond 2^53-1 is an object in the input; "
        f"{advice} (is_string for a text)"
    )


class _Policy(Policy):
    """The definitions of a policy, with what they compare and check.

    What a function returns, or a set gathers, is not followed: its body may have checked it.
    """

    def __init__(self, readers: Iterable[Reader]) -> None:
        super().__init__(readers, gathered=False)
        self.bodies: Final = [self._body(definition) for definition in self.definitions]
        self._bodies_by_path: dict[Names, list[_Body]] = defaultdict(list)
        for body in self.bodies:
            self._bodies_by_path[body.definition.path].append(body)
        self._parameters_by_function: dict[Names, list[Names]] = {}

    def numbers_of(self, body: _Body) -> set[Names]:
        """Return the values that are numbers where a body holds, by its own checks or a helper's.

        A helper's check counts if each definition of the helper has the check, and if the check is
        of a whole value: one of several elements says nothing of the others.
        """
        numbers = set(body.numbers)
        for path, arguments in () if body.alternatives else body.holds:
            definitions = [one for one in self._bodies_by_path.get(path, ()) if not one.is_false]
            checked = [
                self.numbers_of(one) if not one.alternatives else set[Names]()
                for one in definitions
            ]
            for origin in set.intersection(*checked) if checked else ():
                if ELEMENT not in origin:
                    numbers.update(self._given(body, arguments, origin))
        return numbers

    def comparisons(self, body: _Body) -> Iterator[tuple[str, Names]]:
        """Yield the values that a body, or a function called by the body, compares by order."""
        yield from body.comparisons
        for at, function, arguments in body.calls:
            for parameter in self._unchecked_parameters(function):
                yield from ((at, one) for one in self._given(body, arguments, parameter))

    def _given(self, body: _Body, arguments: list[Any], origin: Names) -> list[Names]:
        """Return what an origin in a called function, or in a rule, is where a body reads it."""
        if origin[0] != PARAMETER:
            return [origin]
        found = self.argument(body.definition, arguments, origin)
        return [one for one in found if one is not None]

    def _unchecked_parameters(self, function: Names) -> list[Names]:
        """Return the parameters that the function compares by order and does not check."""
        if function not in self._parameters_by_function:
            self._parameters_by_function[function] = [
                origin
                for body in self._bodies_by_path.get(function, ())
                if body.definition.is_function
                for _at, origin in self.comparisons(body)
                if origin[0] == PARAMETER and origin not in self.numbers_of(body)
            ]
        return self._parameters_by_function[function]

    def _body(self, definition: Definition) -> _Body:
        tree = definition.tree
        body = _Body(
            definition,
            alternatives=len(tree.rule.get("bodies", ())) > 1,
            is_false=tree.is_default
            and "Bool" in tree.rule["value"]
            and not tree.rule["value"]["Bool"]["value"],
        )
        body.holds += self._held(definition)
        # ``parts`` begins at the end of the rule; a warning is about the first comparison.
        parts = [*tree.parts("BoolExpr", "Call")][::-1]
        negations = tree.parts("NotExpr")
        negated = {id(part) for negation in negations for part in objects(negation)}
        for node in parts:
            self._note(body, node, negated=id(node) in negated)
        return body

    def _held(self, definition: Definition) -> Iterator[tuple[Names, list[Any]]]:
        """Yield the rules, and the calls whose value is not used, that the body needs to hold."""
        for part in definition.tree.rule.get("bodies", ()):
            for statement in part["query"]["stmts"]:
                match statement["literal"]:
                    case {"Expr": {"expr": {"Call": {"fcn": function, "params": [*arguments]}}}}:
                        callee = definition.reader.reference(name_of(function), call=True)
                        yield callee.definition, arguments
                    case {"Expr": {"expr": ({"Var": _} | {"RefDot": _}) as node}}:
                        name = name_of(node)
                        if name.path and name.whole:
                            yield definition.reader.reference(name, call=False).path, []

    def _note(self, body: _Body, node: Mapping[str, Any], *, negated: bool) -> None:
        at, reader = body.definition, body.definition.reader
        match node:
            case {"BoolExpr": {"op": str(op), "lhs": left, "rhs": right, "span": span}}:
                for side in (left, right) if op in _ORDER else ():
                    found = self.origins(at, side)
                    body.comparisons += [(reader.at(span), one) for one in found if one is not None]
            case {"Call": {"fcn": function, "params": [*arguments], "span": span}}:
                callee = reader.reference(name_of(function), call=True)
                if callee.path in _CHECKS:
                    checked = body.others if negated else body.numbers
                    for argument in arguments:
                        checked.update(one for one in self.origins(at, argument) if one is not None)
                body.calls.append((reader.at(span), callee.definition, arguments))
