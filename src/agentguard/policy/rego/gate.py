"""The gate that a Rego policy passes before it is used: static checks, and a trial in a child.

The engine reports an unknown builtin only when evaluation reaches it, dies on a recursive
function, and reads data in the place of a rule. The gate refuses a policy that would fail late or
open. The checks read the engine's own syntax tree (``syntax_tree.py``); each other module of this
package has the checks of one subject, and this one those that relate names to definitions.
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

    Returns warnings: a sentence with ``file:line:column`` for each form that may be meant, and that
    fails open where the author did not mean it. ``timeout`` (seconds) bounds the trial in the child
    process. Raises ``PolicyError`` (``policy.invalid``), and ``ConfigError`` when the child
    can't be started.
    """
    report, end = _dry_run(source, query, timeout)
    warnings: tuple[str, ...] = ()
    if "tree" in report:
        # The tree first: of a recursive function the child only reports that it died.
        warnings = _check_tree(report, source.data, tuple(query.split(".")))
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


def _dry_run(source: RegoSource, query: str, timeout: float) -> tuple[dict[str, Any], str]:
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


def _check_tree(
    report: Mapping[str, Any], data: Mapping[str, Any], query: Names
) -> tuple[str, ...]:
    """Return the warnings about the tree; raises ``PolicyError`` for its mistakes."""
    try:
        readers = [syntax_tree.Reader(tree) for tree in json.loads(report["tree"])]
        definitions = _Definitions([reader.module for reader in readers], data)
        reached = _read_by_outputs(definitions, query)
        unread = outputs.unread(definitions.rules, reached, query)
        presence = Presence.of(readers)
        for reader in readers:
            reader.leave_out(_test_paths(definitions, reached))
        problems = [
            *_wrong_query(definitions, query),
            *_unknown_calls(definitions, frozenset(report["builtins"])),
            *_undefined_names(definitions),
            *_wrong_arities(readers),
            *packages.mistakes(readers, query),
            *data_lists.mistakes(readers, data),
            *(mistake for reader in readers for mistake in imports.mistakes(reader)),
            *_recursion(definitions),
            *_data_in_place_of_rules(definitions, query),
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


def _test_paths(definitions: _Definitions, reached: AbstractSet[Names]) -> set[Names]:
    """Return the paths of the policy's tests, which OPA alone runs."""
    unread = {rule.path for rule in definitions.rules} - reached
    return {path for path in unread if path[-1].startswith(_TESTS)}


def _read_by_outputs(definitions: _Definitions, query: Names) -> set[Names]:
    """Return the paths of the outputs, and of the rules that the outputs read."""
    reads: dict[Names, set[Names]] = defaultdict(set)
    for rule, reference in _references(definitions):
        reads[rule.path] |= definitions.read_by(reference)
    todo = {rule.path for rule in definitions.rules if outputs.is_output(rule.path, query)}
    reached: set[Names] = set()
    while todo:
        path = todo.pop()
        reached.add(path)
        todo |= reads[path] - reached
    return reached


class _Definitions:
    """The policy's packages, functions, data, and rules by each part of their paths."""

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

    def read_by(self, reference: Reference) -> set[Names]:
        """Return the paths of the rules that a reference may read, or of the function called."""
        path = reference.definition
        above = {path[:length] for length in range(len(path))} & self._paths
        return above | self._below.get(path, set())

    def has_data(self, names: Names) -> bool:
        """Tell whether data.json has a value under these names."""
        value: object = self.data
        for name in names:
            if not isinstance(value, Mapping) or name not in value:
                return False
            value = value[name]
        return True


def _wrong_query(definitions: _Definitions, query: Names) -> Iterator[str]:
    """Find a query that names no package: it could never allow."""
    if query not in definitions.packages:
        present = ", ".join(".".join(package) for package in definitions.packages)
        yield f"the query {'.'.join(query)} names no package of the policy, which has {present}"


def _unknown_calls(definitions: _Definitions, builtins: frozenset[str]) -> Iterator[str]:
    """Find calls of functions that do not exist: they fail only once evaluation reaches them."""
    for _rule, call in _references(definitions):
        name = ".".join(call.path)
        if not call.call or (call.whole and call.definition in definitions.functions):
            continue
        if not call.whole:
            yield f"{call.at}: a function's name can't be computed"
        elif name in builtin_functions.REFUSED:
            yield f"{call.at}: {name} {builtin_functions.REFUSED[name]}"
        elif call.absolute or name not in builtins:
            own = (".".join(path) for path in definitions.functions)
            names = [*(builtins & builtin_functions.COMPARED), *own]
            yield f"{call.at}: there is no function {name}; {_advice(name, names)}"
        elif name not in builtin_functions.COMPARED:
            advice = builtin_functions.FACTS
            yield f"{call.at}: {name} has not been held against an OPA server; {advice}"


def _wrong_arities(readers: list[syntax_tree.Reader]) -> Iterator[str]:
    """Find calls with a wrong number of arguments: they fail late, or are undefined."""
    arities: dict[Names, int] = {}
    for reader in readers:
        for node in syntax_tree.objects(reader.rules):
            match node:
                case {"Func": {"refr": head, "args": [*parameters]}}:
                    arities[reader.path_of(head)] = len(parameters)
    for reader in readers:
        for node in syntax_tree.objects(reader.rules):
            match node:
                case {"Call": {"fcn": function, "params": [*arguments], "span": span}}:
                    name = syntax_tree.name_of(function)
                    path = reader.reference(name, call=True).definition
                    arity = arities.get(path, len(arguments))
                    if arity != len(arguments):
                        yield (
                            f"{reader.at(span)}: {'.'.join(name.path)} takes {arity} arguments, "
                            f"and is given {len(arguments)}"
                        )


def _advice(name: str, names: list[str]) -> str:
    if name.startswith(_ABSENT):
        return f"the embedded engine lacks this builtin of OPA; {builtin_functions.FACTS}"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    return f"did you mean {near[0]}?" if near else "define it, or correct its name"


def _undefined_names(definitions: _Definitions) -> Iterator[str]:
    """Find names that no module and no data file defines: `not` of such a name always holds."""
    for _rule, reference in _references(definitions):
        path = reference.path
        if reference.call or not reference.absolute or path[0] != "data" or len(path) == 1:
            continue
        if not definitions.has_data(path[1:]) and not definitions.read_by(reference):
            name = ".".join(path)
            yield f"{reference.at}: no module defines {name}, and no data.json of the folder"


def _recursion(definitions: _Definitions) -> Iterator[str]:
    """Find recursion, which Rego forbids: the engine yields wrong values, or its process dies."""
    graph: dict[Names, set[Names]] = defaultdict(set)
    places = {rule.path: rule.at for rule in definitions.rules}
    for rule, reference in _references(definitions):
        graph[rule.path] |= definitions.read_by(reference)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        cycle = error.args[1][::-1]
        yield f"{places[cycle[0]]}: recursion: {' -> '.join('.'.join(path) for path in cycle)}"


def _data_in_place_of_rules(definitions: _Definitions, query: Names) -> Iterator[str]:
    """Find data at the path of a rule: the engine silently reads the data."""
    answer = {(*query, name): "the policy" for name in outputs.OUTPUTS}
    for path, at in {**answer, **{rule.path: rule.at for rule in definitions.rules}}.items():
        value: object = definitions.data
        for name in path[1:]:
            if not isinstance(value, dict) or name not in value:
                break
            value = value[name]
        else:
            yield f"{at}: a data.json also defines {'.'.join(path)}; rename one of them"
            continue
        if not isinstance(value, dict):
            yield f"{at}: a data.json has a value where {'.'.join(path)} needs an object"


def _references(definitions: _Definitions) -> Iterator[tuple[Rule, Reference]]:
    return ((rule, reference) for rule in definitions.rules for reference in rule.references)
