"""What a missing value decides otherwise on an OPA server: mistakes, found at load.

OPA takes what a negated call or comparison is given out of the negation
(open-policy-agent/opa#8387): ``not is_number(input.args.cents)`` is undefined there where the
argument is missing, so that a rule which denies by it does not fire. Here it holds, as its author
meant. ``not`` of a name alone, or of ``==``, is the same on both; and so is one whose values can't
be missing: every input has them, or another expression of the same body needs them.

And ``x in y`` is false here where one of the two is missing, and undefined there. As a condition by
itself that is the same; as a value, in ``(x in y) == false``, it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any, Final

from agentguard.policy.rego.syntax_tree import Names, Reader
from agentguard.policy.rego.undefined import ALWAYS, Presence, below, needed

_ADVICE: Final = (
    "give what it negates a rule of its own (`fits if ...`) and write `not fits`, which holds "
    "without the value on both; or bind the value before it (`x := ...`), and the rule does not "
    "apply without it"
)


def mistakes(readers: list[Reader], presence: Presence) -> Iterator[str]:
    """Yield a sentence for each expression that a missing value decides otherwise on a server."""
    for reader in readers:
        for node in reader.rules:
            for kind, expression, there in _watched(reader, node, ALWAYS):
                found = next(presence.missing(reader, _taken_out(expression), there), None)
                if found is None:
                    continue
                where = f"{reader.at(found.span)}: where {found} is missing, this"
                if kind == "NotExpr":
                    yield (
                        f"{where} `not` holds here and not on an OPA server, where a denial would "
                        f"not fire; {_ADVICE}"
                    )
                else:
                    yield (
                        f"{where} `in` is false here and without a value on an OPA server; make it "
                        "a condition by itself, in a rule of its own if need be"
                    )


def _watched(
    reader: Reader, tree: object, known: AbstractSet[Names], *, condition: bool = False
) -> Iterator[tuple[str, Any, AbstractSet[Names]]]:
    """Yield what is negated (``NotExpr``), and each ``Membership`` that is a value.

    With each stand the names that have a value wherever it is evaluated; ``known`` are those of the
    bodies around ``tree``. A ``condition`` is a membership that stands by itself.
    """
    match tree:
        case {"stmts": [*statements]}:
            yield from _in_body(reader, statements, known)
        case {"Membership": inside}:
            if not condition:
                yield "Membership", tree, known
            yield from _watched(reader, inside, known)
        case dict():
            for value in tree.values():
                yield from _watched(reader, value, known)
        case list():
            for value in tree:
                yield from _watched(reader, value, known)


def _in_body(
    reader: Reader, statements: list[Any], known: AbstractSet[Names]
) -> Iterator[tuple[str, Any, AbstractSet[Names]]]:
    # a variable may be another one further in; the input is the same everywhere
    held = needed(reader, statements)
    inner = known | {name for name in held if name[0] == "input"}
    for statement in statements:
        literal = statement["literal"]
        match literal:
            case {"NotExpr": {"expr": expression}}:
                yield "NotExpr", expression, known | held
                yield from _watched(reader, expression, inner, condition=True)
            case {"Expr": {"expr": expression}}:
                yield from _watched(reader, expression, inner, condition=True)
            case _:
                yield from _watched(reader, literal, inner)


def _taken_out(expression: Any) -> list[Any]:
    """Return what OPA takes out of a negation: what is computed, but no names that are compared."""
    match expression:
        case {"BoolExpr": {"op": "Eq", "lhs": left, "rhs": right}}:
            return [part for side in (left, right) for part in _computed(side)]
    return below(expression)


def _computed(node: Any) -> list[Any]:
    return [node] if "Call" in node else below(node)
