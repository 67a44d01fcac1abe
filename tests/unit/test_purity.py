"""The pure part does no I/O and reads no clock, not even by what needs no import.

The import contract of ``pyproject.toml`` keeps ``os``, ``time`` and the like out of it. What it
can't see is looked for here in the syntax trees: ``open``, and what ``datetime`` and ``pathlib``
do beside holding values.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = {
    contract["id"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "importlinter"
    ]["contracts"]
}
PURE = CONTRACTS["pure"]["source_modules"]

BUILTINS = {"__import__", "breakpoint", "input", "open", "print"}
CLOCK = {"now", "today", "utcnow"}
FILES = {
    "chmod",
    "cwd",
    "exists",
    "expanduser",
    "hardlink_to",
    "is_dir",
    "is_file",
    "is_symlink",
    "iterdir",
    "lstat",
    "mkdir",
    "open",
    "read_bytes",
    "read_text",
    "readlink",
    "rglob",
    "rmdir",
    "symlink_to",
    "touch",
    "unlink",
    "write_bytes",
    "write_text",
}


def files_of(module: str) -> list[Path]:
    """The file of a module, or all of a package's."""
    path = ROOT.joinpath("src", *module.split("."))
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def reaches(tree: ast.AST) -> Iterator[str]:
    """Yield what in a syntax tree reaches for the world, called or handed on."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) if name in BUILTINS:
                yield f"{node.lineno}: {name}"
            case ast.Attribute(
                value=ast.Name(id="date" | "datetime") | ast.Attribute(attr="date" | "datetime"),
                attr=name,
            ) if name in CLOCK:
                yield f"{node.lineno}: datetime.{name}"
            case ast.Attribute(attr=name) if name in FILES:
                yield f"{node.lineno}: .{name}"


def test_a_pure_module_reaches_for_nothing():
    paths = [path for module in PURE for path in files_of(module)]
    found = {path: list(reaches(ast.parse(path.read_text(encoding="utf-8")))) for path in paths}
    assert {path.name: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ("def f(path):\n    return open(path)", "2: open"),
        ("clock = datetime.now", "1: datetime.now"),
        ("def f():\n    return datetime.datetime.now(UTC)", "2: datetime.now"),
        ("today = date.today()", "1: datetime.today"),
        ("def f(name):\n    return Path(name).read_text()", "2: .read_text"),
        ("def f(path):\n    path.write_bytes(b'')", "2: .write_bytes"),
    ],
)
def test_what_is_planted_in_a_pure_module_is_found(planted, found):
    (path,) = files_of("agentguard.signing.dsse")
    text = path.read_text(encoding="utf-8")
    place, _, what = found.partition(": ")
    line = len(text.splitlines()) + int(place)
    assert list(reaches(ast.parse(f"{text}{planted}\n"))) == [f"{line}: {what}"]


STEPS = ("guarded_call", "prepare", "decide", "attempt", "endings", "log_entries")


def test_all_that_the_flow_imports_is_held_to_this():
    graph = grimp.build_graph("agentguard")
    flow = {f"agentguard.flow.{name}" for name in (*STEPS, "effects")}
    imported = flow.union(*(graph.find_upstream_modules(module) for module in flow))
    files = {path for module in PURE for path in files_of(module)}
    packages = {module for module in imported if graph.find_children(module)}
    held = {module for module in imported - packages if files_of(module)[0] in files}
    assert held == imported - packages
    assert len(held) > 30
