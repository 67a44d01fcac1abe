"""Mistakes: negations and memberships in which an undefined value changes the decision on OPA.

OPA evaluates the operands of a negated call or comparison outside of the negation
(open-policy-agent/opa#8387). Where the argument is missing, ``not is_number(input.args.cents)`` is
undefined on OPA, and a rule that denies by this expression does not fire. In the embedded engine
the negation holds. Both engines agree about ``not`` of a name or of ``==``. They also agree where
every operand is defined, because every input has the value or because another expression of the
same body needs the value.

Where ``x`` or ``y`` is undefined, ``x in y`` is false in the embedded engine and undefined on OPA.
The two agree about a condition ``x in y``, and differ about a value such as ``(x in y) == false``.

They also differ about a rule whose one condition is ``not true``, and whose value is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any, Final

from agentguard.policy.rego.syntax_tree import Names, Reader
from agentguard.policy.rego.undefined import ALWAYS, Presence, below, required_names

_ADVICE: Final = (
    "move the negated expression into a rule of its own (`fits if ...`) and write `not fits`, "
    "which holds on both without the value; or bind the value before (`x := ...`), so that the "
    "rule does not apply without the value"
)


def mistakes(readers: list[Reader], presence: Presence) -> Iterator[str]:
    """Yield a sentence for each expression whose undefined operand has another effect on OPA."""
    for reader in readers:
        for tree in reader.rules:
            if not any(tree.parts("NotExpr", "Membership")):
                continue
            for kind, expression, defined in _negations_and_memberships(reader, tree.rule, ALWAYS):
                match kind, expression:
                    case "NotExpr", {"Bool": {"value": True, "span": span}}:
                        yield (
                            f"{reader.at(span)}: `not true` never holds, and an OPA server may "
                            "give the rule its value all the same; remove the rule"
                        )
                        continue
                undefined_name = next(
                    presence.missing(reader, _operands(expression), defined), None
                )
                if undefined_name is None:
                    continue
                where = f"{reader.at(undefined_name.span)}: where {undefined_name} is missing, this"
                if kind == "NotExpr":
                    yield (
                        f"{where} `not` holds in the embedded engine and not on an OPA server, "
                        f"where a denial would not fire; {_ADVICE}"
                    )
                else:
                    yield (
                        f"{where} `in` is false in the embedded engine and undefined on an OPA "
                        "server; write the expression as a condition by itself, if need be in a "
                        "rule of its own"
                    )


def _negations_and_memberships(
    reader: Reader, tree: object, defined: AbstractSet[Names], *, condition: bool = False
) -> Iterator[tuple[str, Any, AbstractSet[Names]]]:
    """Yield each negated expression (``NotExpr``), and each ``Membership`` used as a value.

    The third item is the set of names that are defined wherever the expression is evaluated.
    ``defined`` is the set of names that are defined in the bodies around ``tree``. ``condition``
    means that a membership is a statement by itself.
    """
    match tree:
        case {"stmts": [*statements]}:
            yield from _in_body(reader, statements, defined)
        case {"Membership": inside}:
            if not condition:
                yield "Membership", tree, defined
            yield from _negations_and_memberships(reader, inside, defined)
        case dict():
            for value in tree.values():
                yield from _negations_and_memberships(reader, value, defined)
        case list():
            for value in tree:
                yield from _negations_and_memberships(reader, value, defined)


def _in_body(
    reader: Reader, statements: list[Any], defined: AbstractSet[Names]
) -> Iterator[tuple[str, Any, AbstractSet[Names]]]:
    # An inner body may declare a variable of the same name; the input is the same everywhere.
    required = required_names(reader, statements)
    inner = defined | {name for name in required if name[0] == "input"}
    for statement in statements:
        literal = statement["literal"]
        match literal:
            case {"NotExpr": {"expr": expression}}:
                yield "NotExpr", expression, defined | required
                yield from _negations_and_memberships(reader, expression, inner, condition=True)
            case {"Expr": {"expr": expression}}:
                yield from _negations_and_memberships(reader, expression, inner, condition=True)
            case _:
                yield from _negations_and_memberships(reader, literal, inner)


def _operands(expression: Any) -> list[Any]:
    """Return what OPA evaluates outside of a negation: all but the plain names of an ``==``."""
    match expression:
        case {"BoolExpr": {"op": "Eq", "lhs": left, "rhs": right}}:
            return [part for side in (left, right) for part in _computed(side)]
    return below(expression)


def _computed(node: Any) -> list[Any]:
    return [node] if "Call" in node else below(node)
