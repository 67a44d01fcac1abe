"""The gate that a Rego policy passes before it is used: static checks, and a trial in a child.

The engine reports an unknown builtin only when evaluation reaches it, dies on a recursive
function, and lets data stand in a rule's place. Whatever would fail late, or open, is refused
here. What is checked is the engine's own syntax tree, as ``syntax_tree.py`` reads it.
"""

from __future__ import annotations

import difflib
import graphlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final

from agentguard.errors import ConfigError
from agentguard.policy.rego import (
    builtin_functions,
    data_lists,
    expressions,
    imports,
    iteration,
    negation,
    ordering,
    outputs,
    packages,
    patterns,
    rule_heads,
    syntax_tree,
    unbound_variables,
)
from agentguard.policy.rego.source import RegoSource, invalid
from agentguard.policy.rego.syntax_tree import Module, Names, Reference, Rule
from agentguard.policy.rego.undefined import Presence

_TESTS: Final = ("test_", "todo_test_")
_ABSENT: Final = ("io.jwt.", "crypto.", "graphql.", "net.cidr_merge")
_WARM_UP: Final = json.dumps(
    {
        "agent": {"id": "", "name": "", "type": "", "instance": "", "roles": []},
        "delegation": None,
        "action": "",
        "resource": "",
        "task_id": "",
        "args": {},
        "tool": {"name": "", "schema_sha256": ""},
    }
)


def check(source: RegoSource, query: str, *, timeout: float) -> tuple[str, ...]:
    """Refuse a policy that is invalid, could fail open, or brings the engine down.

    Returns warnings, of what may be meant and fails open if it isn't: a sentence each, with
    ``file:line:column``. ``timeout`` (seconds) bounds the trial in the child process. Raises
    ``PolicyError`` (``policy.invalid``), and ``ConfigError`` when the child can't be started.
    """
    report, end = _try(source, query, timeout)
    warnings: tuple[str, ...] = ()
    if "tree" in report:
        # First what the tree says: of a recursive function, the child only knows that it died.
        warnings = _examined(report, source.data, tuple(query.split(".")))
    if "error" in report:
        place, text = locate(report["error"])
        raise invalid(f"{place}: {text}" if place else text)
    if "evaluated" not in report:
        raise invalid(f"the policy brings the engine down: {end}; simplify or split its rules")
    return warnings


def locate(error: str) -> tuple[str, str]:
    """Split an error of the native engine into ``file:line:column`` (or nothing) and its text."""
    text = error.partition("Stack backtrace")[0].strip()
    place, _, rest = text.partition("\n")
    if not place.startswith("-->"):
        return "", " ".join(text.split())
    # Between the two the engine draws the line of source; a message may have several lines.
    message = rest.partition("\nerror:")[2].strip(" :").partition("\n")[0]
    return place.removeprefix("-->").strip(), message


def _try(source: RegoSource, query: str, timeout: float) -> tuple[dict[str, Any], str]:
    """Load and evaluate the policy in a child; return its report and how it ended."""
    request = {
        "modules": source.modules,
        "data": json.dumps(source.data),
        "query": query,
        "input": _WARM_UP,
    }
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109  as Python
    try:
        child = subprocess.run(  # noqa: S603  our own interpreter, our own file
            [sys.executable, "-P", str(Path(__file__).with_name("dry_run.py"))],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=timeout,
            check=False,
            env={**os.environ, "PYTHONPATH": path, "RUST_BACKTRACE": "0"},
        )
    except subprocess.TimeoutExpired as error:
        return _report(error.stdout or b""), f"no answer within {timeout:g} s"
    except OSError as error:
        message = f"Python ({sys.executable!r}) can't be started to check the policy: {error}"
        raise ConfigError(message) from error
    last = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return _report(child.stdout), f"its process ended with status {child.returncode} {last}".strip()


def _report(output: bytes) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for line in output.splitlines(keepends=True):
        if line.endswith(b"\n"):  # a child that was killed may leave half a line
            report.update(json.loads(line))
    return report


def _examined(report: Mapping[str, Any], data: Mapping[str, Any], query: Names) -> tuple[str, ...]:
    """Return what the tree warns of; raises ``PolicyError`` for what is wrong in it."""
    try:
        readers = [syntax_tree.Reader(tree) for tree in json.loads(report["tree"])]
        known = _Known([reader.module for reader in readers], data)
        reached = _reached(known, query)
        unread = outputs.unread(known.rules, reached, query)
        presence = Presence.of(readers)
        for reader in readers:
            reader.leave_out(_tests(known, reached))
        problems = [
            *_wrong_query(known, query),
            *_unknown_calls(known, frozenset(report["builtins"])),
            *_undefined_names(known),
            *_wrong_arities(readers),
            *packages.mistakes(readers, query),
            *data_lists.mistakes(readers, data),
            *(mistake for reader in readers for mistake in imports.mistakes(reader)),
            *_recursion(known),
            *_data_in_place_of_rules(known, query),
            *unread.mistakes,
            *negation.mistakes(readers, presence),
            *rule_heads.mistakes(readers, presence),
            *expressions.mistakes(readers),
            *(mistake for reader in readers for mistake in builtin_functions.mistakes(reader)),
            *(mistake for reader in readers for mistake in patterns.mistakes(reader)),
            *(mistake for reader in readers for mistake in unbound_variables.mistakes(reader)),
        ]
        if problems:
            raise invalid("\n".join(problems))
        return (
            *unread.doubts,
            *rule_heads.warnings(readers, presence, query),
            *iteration.warnings(readers),
            *ordering.warnings(readers, query),
        )
    except RecursionError as error:
        raise invalid("the policy's expressions are nested too deeply; split them") from error


def _tests(known: _Known, reached: AbstractSet[Names]) -> set[Names]:
    """Return the paths of tests that stand beside what they test: OPA alone runs them."""
    unread = {rule.path for rule in known.rules} - reached
    return {path for path in unread if path[-1].startswith(_TESTS)}


def _reached(known: _Known, query: Names) -> set[Names]:
    """Return the paths of the rules that the answer is made of: the outputs, and what they read."""
    reads: dict[Names, set[Names]] = defaultdict(set)
    for rule, reference in _references(known):
        reads[rule.path] |= known.read_by(rule, reference)
    todo = {rule.path for rule in known.rules if outputs.is_output(rule.path, query)}
    reached: set[Names] = set()
    while todo:
        path = todo.pop()
        reached.add(path)
        todo |= reads[path] - reached
    return reached


class _Known:
    """What the policy defines: packages, functions, data, and rules by any part of their paths."""

    def __init__(self, modules: list[Module], data: Mapping[str, Any]) -> None:
        self.data = data
        self.packages = sorted({module.package for module in modules})
        self.rules = [rule for module in modules for rule in module.rules]
        self.functions = {rule.path for rule in self.rules if rule.function}
        self._paths = {rule.path for rule in self.rules}
        self._below: dict[Names, set[Names]] = defaultdict(set)
        for path in self._paths:
            for length in range(len(path) + 1):
                self._below[path[:length]].add(path)

    def read_by(self, rule: Rule, reference: Reference) -> set[Names]:
        """The paths of the rules that a reference may read, or of the function it calls."""
        path = reference.path
        if reference.call and not reference.absolute:
            path = (*rule.package, *path)
        above = {path[:length] for length in range(len(path))} & self._paths
        return above | self._below.get(path, set())

    def has_data(self, names: Names) -> bool:
        """Whether the data, which nobody adds to later, has a value under these names."""
        value: object = self.data
        for name in names:
            if not isinstance(value, Mapping) or name not in value:
                return False
            value = value[name]
        return True

    def calls(self, rule: Rule, call: Reference) -> bool:
        """Whether ``call`` is one of the policy's own functions."""
        path = call.path if call.absolute else (*rule.package, *call.path)
        return path in self.functions


def _wrong_query(known: _Known, query: Names) -> Iterator[str]:
    """A query that names nothing could never allow."""
    if query not in known.packages:
        present = ", ".join(".".join(package) for package in known.packages)
        yield f"the query {'.'.join(query)} names no package of the policy, which has {present}"


def _unknown_calls(known: _Known, builtins: frozenset[str]) -> Iterator[str]:
    """A call of what does not exist fails only once evaluation reaches it."""
    for rule, call in _references(known):
        name = ".".join(call.path)
        if not call.call or (call.whole and known.calls(rule, call)):
            continue
        if not call.whole:
            yield f"{call.at}: a function's name can't be computed"
        elif name in builtin_functions.REFUSED:
            yield f"{call.at}: {name} {builtin_functions.REFUSED[name]}"
        elif call.absolute or name not in builtins:
            own = (".".join(path) for path in known.functions)
            names = [*(builtins & builtin_functions.COMPARED), *own]
            yield f"{call.at}: there is no function {name}; {_advice(name, names)}"
        elif name not in builtin_functions.COMPARED:
            advice = builtin_functions.FACTS
            yield f"{call.at}: {name} has not been held against an OPA server; {advice}"


def _wrong_arities(readers: list[syntax_tree.Reader]) -> Iterator[str]:
    """A call with another number of arguments fails once evaluation reaches it, or is undefined."""
    arities: dict[Names, int] = {}
    for reader in readers:
        for node in syntax_tree.objects(reader.rules):
            match node:
                case {"Func": {"refr": head, "args": [*parameters]}}:
                    arities[reader.path_of(head)] = len(parameters)
    for reader in readers:
        for node in syntax_tree.objects(reader.rules):
            match node:
                case {"Call": {"fcn": function, "params": [*given], "span": span}}:
                    name = syntax_tree.name_of(function)
                    called = reader.reference(name, call=True)
                    path = called.path if called.absolute else (*reader.package, *called.path)
                    arity = arities.get(path, len(given))
                    if arity != len(given):
                        yield (
                            f"{reader.at(span)}: {'.'.join(name.path)} takes {arity} arguments, "
                            f"and is given {len(given)}"
                        )


def _advice(name: str, names: list[str]) -> str:
    if name.startswith(_ABSENT):
        return f"the embedded engine lacks this builtin of OPA; {builtin_functions.FACTS}"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    return f"did you mean {near[0]}?" if near else "define it, or correct its name"


def _undefined_names(known: _Known) -> Iterator[str]:
    """What neither a module nor a data file defines is undefined for good: `not` of it holds."""
    for rule, reference in _references(known):
        path = reference.path
        if reference.call or not reference.absolute or path[0] != "data" or len(path) == 1:
            continue
        if not known.has_data(path[1:]) and not known.read_by(rule, reference):
            name = ".".join(path)
            yield f"{reference.at}: no module defines {name}, and no data.json of the folder"


def _recursion(known: _Known) -> Iterator[str]:
    """Rego forbids it; here some of it yields wrong values and some of it kills the process."""
    graph: dict[Names, set[Names]] = defaultdict(set)
    places = {rule.path: rule.at for rule in known.rules}
    for rule, reference in _references(known):
        graph[rule.path] |= known.read_by(rule, reference)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        cycle = error.args[1][::-1]
        yield f"{places[cycle[0]]}: recursion: {' -> '.join('.'.join(path) for path in cycle)}"


def _data_in_place_of_rules(known: _Known, query: Names) -> Iterator[str]:
    """Where data and a rule have one path, this engine silently takes the data."""
    answer = {(*query, name): "the policy" for name in outputs.OUTPUTS}
    for path, at in {**answer, **{rule.path: rule.at for rule in known.rules}}.items():
        value: object = known.data
        for name in path[1:]:
            if not isinstance(value, dict) or name not in value:
                break
            value = value[name]
        else:
            yield f"{at}: a data.json also defines {'.'.join(path)}; rename one of them"
            continue
        if not isinstance(value, dict):
            yield f"{at}: a data.json has a value where {'.'.join(path)} needs an object"


def _references(known: _Known) -> Iterator[tuple[Rule, Reference]]:
    return ((rule, reference) for rule in known.rules for reference in rule.references)
