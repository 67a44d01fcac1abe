"""Finds places where an empty value counts as an absent one, for what grants, limits or names.

``scope or None`` turns "nothing" into "not said", which mostly stands for "all". The check reads
the syntax trees of all sources, and knows a value by the last word of its name, attribute or key
(``WORDS``). It finds ``scope or DEFAULT``, ``A if scope else B``, and a parameter that may be None
and whose truth is asked (``if not scope``). ``is None`` tells the two values apart.
``scripts/check`` runs it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeGuard

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCES: Final = (ROOT / "src", *sorted(ROOT.glob("integrations/*/src")))

# fmt: off
WORDS: Final = frozenset((
    "agent", "agents", "algorithms", "approvers", "aud", "audience", "audiences", "claims",
    "clients", "delegated", "granted", "group", "groups", "issuer", "issuers", "limit", "most",
    "origins", "owner", "owners", "permissions", "principal", "principals", "receivers",
    "requirements", "requires", "resource", "resources", "role", "roles", "scope", "scopes",
    "secrets", "services", "subject", "tools", "trust", "types", "users", "vouches_for", "via",
))
# fmt: on
"""The last words of names of what grants, limits or names somebody."""

_YES_OR_NO: Final = ("is_", "has_", "lists_", "hash_", "may_")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def problems(source: str) -> list[tuple[int, str]]:
    """Return each place in the text of a module: the number of the line, and the code there."""
    tree = ast.parse(source)
    tests = {id(part) for node in ast.walk(tree) for test in _tests(node) for part in _parts(test)}
    values = [node for node in ast.walk(tree) if _is_replaced(node) and id(node) not in tests]
    asked = [test for node in ast.walk(tree) for test in _asked(node)]
    return sorted({(node.lineno, ast.unparse(node)) for node in (*values, *asked)})


def _is_replaced(node: ast.AST) -> TypeGuard[ast.expr]:
    """Whether an expression has another value in the place of an empty one: no sentence has."""
    match node:
        case ast.BoolOp(op=ast.Or(), values=[*values]):
            return any(map(_is_word, values[:-1]))
        case ast.IfExp(test=test, body=body, orelse=otherwise):
            has_text = any(isinstance(one, ast.JoinedStr) for one in (body, otherwise))
            return _is_word(_positive(test)) and not has_text
    return False


def _asked(function: ast.AST) -> Iterator[ast.expr]:
    """Yield the tests of the truth of a function's parameters that may be None."""
    if not isinstance(function, _Function):
        return
    given = function.args
    optional = {
        one.arg
        for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)
        if one.annotation is not None and "None" in ast.unparse(one.annotation)
    }
    tests = (test for node in ast.walk(function) for test in _tests(node))
    for test in (part for one in tests for part in _parts(one)):
        if isinstance(test, ast.Name) and test.id in optional and _is_word(test):
            yield test


def _tests(node: ast.AST) -> list[ast.expr]:
    """Return the parts of a node of which the truth alone counts."""
    match node:
        case (
            ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) | ast.Assert(test=test)
        ):
            return [test]
        case ast.comprehension(ifs=tests):
            return tests
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return [operand]
        case ast.Call(func=ast.Name(id="bool"), args=[given]):
            return [given]
    return []


def _parts(test: ast.expr) -> Iterator[ast.expr]:
    """Yield an expression, and what it joins by ``and`` and ``or``."""
    yield test
    if isinstance(test, ast.BoolOp):
        for value in test.values:
            yield from _parts(value)


def _positive(test: ast.expr) -> ast.expr:
    return test.operand if isinstance(test, ast.UnaryOp) else test


def _is_word(node: ast.expr) -> bool:
    """Whether an expression is a value that grants, limits or names somebody."""
    name = _name(node)
    if name is None or name.startswith(_YES_OR_NO):
        return False
    return any(name == word or name.endswith(f"_{word}") for word in WORDS)


def _name(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=str(name)) | ast.Attribute(attr=str(name)):
            return name
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            return name
        case ast.Call(func=ast.Attribute(attr=method), args=[ast.Constant(value=str(name)), *_]):
            return None if method.startswith(_YES_OR_NO) else name  # members.get("scope")
    return None


def main() -> int:
    """Print each place; return 1 for any."""
    status = 0
    for path in sorted(path for source in SOURCES for path in source.rglob("*.py")):
        for line, code in problems(path.read_text(encoding="utf-8")):
            where = path.relative_to(ROOT)
            print(f"{where}:{line}: an empty value counts as none here: {code}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
