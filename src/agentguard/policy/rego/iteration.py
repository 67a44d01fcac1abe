"""Arguments that a policy goes through, and that may be no lists: warnings, not errors.

Where ``some x in input.args.cc`` meets null or a text, the embedded engine fails, and denies. To an
OPA server there is nothing to go through, so that a rule which denies by it does not fire. An
argument that was left out is null where that is its default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from agentguard.call.tool import RESERVED
from agentguard.policy.rego.syntax_tree import Names, Reader, name_of, objects

_CHECKS: Final = (("is_array",), ("is_object",), ("is_set",))


def warnings(readers: list[Reader]) -> Iterator[str]:
    """Yield a sentence for each argument that a rule goes through without a look at its type."""
    for reader in readers:
        for rule in reader.rules:
            checked = set(_checked(reader, rule))
            for node in objects(rule):
                match node:
                    case {"SomeIn": {"collection": through}} | {"Every": {"domain": through}}:
                        path = _argument(reader, through)
                        if path and path not in checked:
                            name = ".".join(path)
                            yield (
                                f"{reader.at(name_of(through).span)}: where {name} is no list this "
                                "fails, and denies, but on an OPA server the rule does not apply; "
                                f"write is_array({name}) before it, and where the rule denies, one "
                                "more that denies what is no list"
                            )


def _checked(reader: Reader, rule: Any) -> Iterator[Names | None]:
    for node in objects(rule):
        match node:
            case {"Call": {"fcn": function, "params": [value]}}:
                if name_of(function).path in _CHECKS:
                    yield _argument(reader, value)


def _argument(reader: Reader, value: Any) -> Names | None:
    """Return the path of an argument, or of what the configuration lifts out of them."""
    match value:
        case {"Var": _} | {"RefDot": _} | {"RefBrack": _}:
            name = name_of(value)
            path = reader.reference(name, call=False).path if name.path else ()
            if name.whole and path[0] == "input":
                own = len(path) > 1 and path[1] in RESERVED and path[1] != "args"
                return None if own else path
    return None
