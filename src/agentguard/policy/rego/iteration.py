"""Warnings: arguments that a rule iterates over without a check of their type.

Where ``input.args.cc`` in ``some x in input.args.cc`` is null or a text, the embedded engine fails,
and the call is denied. On an OPA server the rule does not apply, and a denial by the rule does not
fire. An argument that the caller omits is null where null is the argument's default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from agentguard.call.vocabulary import RESERVED
from agentguard.policy.rego.syntax_tree import Names, Reader, RuleTree, name_of

_CHECKS: Final = (("is_array",), ("is_object",), ("is_set",))


def warnings(readers: list[Reader]) -> Iterator[str]:
    """Yield a sentence for each argument that a rule iterates over without a type check."""
    for reader in readers:
        for tree in reader.rules:
            checked = set(_checked_arguments(reader, tree))
            for node in tree.parts("SomeIn", "Every"):
                match node:
                    case {"SomeIn": {"collection": collection}} | {"Every": {"domain": collection}}:
                        path = _argument(reader, collection)
                        if path and path not in checked:
                            name = ".".join(path)
                            yield (
                                f"{reader.at(name_of(collection).span)}: where {name} is not a "
                                "list, the embedded engine fails and the call is denied, but on an "
                                "OPA server the rule does not apply; write is_array("
                                f"{name}) before this expression, and beside a rule that denies "
                                f"write a second one that denies if not is_array({name})"
                            )


def _checked_arguments(reader: Reader, tree: RuleTree) -> Iterator[Names | None]:
    for node in tree.parts("Call"):
        match node:
            case {"Call": {"fcn": function, "params": [value]}}:
                if name_of(function).path in _CHECKS:
                    yield _argument(reader, value)


def _argument(reader: Reader, value: Any) -> Names | None:
    """Return the path of an argument or an attribute; None for another value."""
    match value:
        case {"Var": _} | {"RefDot": _} | {"RefBrack": _}:
            name = name_of(value)
            path = reader.reference(name, call=False).path if name.path else ()
            if name.whole and path[0] == "input":
                is_reserved = len(path) > 1 and path[1] in RESERVED and path[1] != "args"
                return None if is_reserved else path
    return None
