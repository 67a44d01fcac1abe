"""The definitions of a policy, and mistakes in how its names refer to them.

``Definitions`` holds the rules, functions and data of all modules, and resolves what each rule
reads. The checks find names without a definition, recursion, and data at the path of a rule.
"""

from __future__ import annotations

import difflib
import graphlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from agentguard.policy.rego import builtin_functions, outputs
from agentguard.policy.rego.syntax_tree import (
    Module,
    Names,
    Reader,
    Reference,
    Rule,
    name_of,
)

_TESTS: Final = ("test_", "todo_test_")
_ABSENT: Final = ("io.jwt.", "crypto.", "graphql.", "net.cidr_merge")


class Definitions:
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

    def reached_from(self, query: Names) -> set[Names]:
        """Return the paths of the queried package's outputs, and of the rules that they read."""
        reads: dict[Names, set[Names]] = defaultdict(set)
        for rule, reference in self.references():
            reads[rule.path] |= self.read_by(reference)
        todo = {rule.path for rule in self.rules if outputs.is_output(rule.path, query)}
        reached: set[Names] = set()
        while todo:
            path = todo.pop()
            reached.add(path)
            todo |= reads[path] - reached
        return reached

    def tests_outside(self, reached: AbstractSet[Names]) -> set[Names]:
        """Return the paths of the policy's tests that no output reads; OPA alone runs tests."""
        unread = {rule.path for rule in self.rules} - reached
        return {path for path in unread if path[-1].startswith(_TESTS)}

    def references(self) -> Iterator[tuple[Rule, Reference]]:
        """Yield each reference with the rule that contains the reference."""
        return ((rule, reference) for rule in self.rules for reference in rule.references)

    def has_data(self, names: Names) -> bool:
        """Tell whether data.json has a value under these names."""
        value: object = self.data
        for name in names:
            if not isinstance(value, Mapping) or name not in value:
                return False
            value = value[name]
        return True


def mistakes(
    policy: Definitions, readers: list[Reader], builtins: frozenset[str], query: Names
) -> Iterator[str]:
    """Yield a sentence for each name without a definition, and for each invalid definition.

    ``builtins`` are the names of the engine's builtins, ``query`` the path of the queried package.
    """
    yield from _wrong_query(policy, query)
    yield from _unknown_calls(policy, builtins)
    yield from _undefined_names(policy)
    yield from _wrong_arities(readers)
    yield from _recursion(policy)
    yield from _data_in_place_of_rules(policy, query)


def _wrong_query(policy: Definitions, query: Names) -> Iterator[str]:
    """Find a query that names no package: the answer to such a query is never an allow."""
    if query not in policy.packages:
        present = ", ".join(".".join(package) for package in policy.packages)
        yield f"the query {'.'.join(query)} names no package of the policy, which has {present}"


def _unknown_calls(policy: Definitions, builtins: frozenset[str]) -> Iterator[str]:
    """Find calls of functions that do not exist: such a call fails only in its evaluation."""
    for _rule, call in policy.references():
        name = ".".join(call.path)
        if not call.call or (call.whole and call.definition in policy.functions):
            continue
        if not call.whole:
            yield f"{call.at}: a function's name can't be computed; write the name as a constant"
        elif name in builtin_functions.REFUSED:
            yield f"{call.at}: {name} {builtin_functions.REFUSED[name]}"
        elif call.absolute or name not in builtins:
            functions = (".".join(path) for path in policy.functions)
            names = [*(builtins & builtin_functions.COMPARED), *functions]
            yield f"{call.at}: there is no function {name}; {_advice(name, names)}"
        elif name not in builtin_functions.COMPARED:
            advice = builtin_functions.FACTS
            yield f"{call.at}: {name} has not been compared with an OPA server; {advice}"


def _wrong_arities(readers: list[Reader]) -> Iterator[str]:
    """Find calls with a wrong number of arguments: such a call fails late, or is undefined."""
    arities: dict[Names, int] = {}
    for reader in readers:
        for node in reader.parts("Func"):
            match node:
                case {"Func": {"refr": head, "args": [*parameters]}}:
                    arities[reader.path_of(head)] = len(parameters)
    for reader in readers:
        for node in reader.parts("Call"):
            match node:
                case {"Call": {"fcn": function, "params": [*arguments], "span": span}}:
                    name = name_of(function)
                    path = reader.reference(name, call=True).definition
                    arity = arities.get(path, len(arguments))
                    if arity != len(arguments):
                        yield (
                            f"{reader.at(span)}: {'.'.join(name.path)} takes {arity} arguments, "
                            f"and this call has {len(arguments)}"
                        )


def _advice(name: str, names: list[str]) -> str:
    if name.startswith(_ABSENT):
        return f"the embedded engine lacks this builtin of OPA; {builtin_functions.FACTS}"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    return f"did you mean {near[0]}?" if near else "define it, or correct its name"


def _undefined_names(policy: Definitions) -> Iterator[str]:
    """Find names that no module and no data file defines: `not` of such a name always holds."""
    for _rule, reference in policy.references():
        path = reference.path
        if reference.call or not reference.absolute or path[0] != "data" or len(path) == 1:
            continue
        if not policy.has_data(path[1:]) and not policy.read_by(reference):
            name = ".".join(path)
            yield (
                f"{reference.at}: no module defines {name}, and no data.json of the folder does; "
                "define it, or correct its name"
            )


def _recursion(policy: Definitions) -> Iterator[str]:
    """Find recursion, which Rego forbids: the engine yields wrong values, or its process dies."""
    graph: dict[Names, set[Names]] = defaultdict(set)
    places = {rule.path: rule.at for rule in policy.rules}
    for rule, reference in policy.references():
        graph[rule.path] |= policy.read_by(reference)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        cycle = error.args[1][::-1]
        steps = " -> ".join(".".join(path) for path in cycle)
        yield f"{places[cycle[0]]}: Rego allows no recursion; break this cycle of rules: {steps}"


def _data_in_place_of_rules(policy: Definitions, query: Names) -> Iterator[str]:
    """Find data at the path of a rule: the engine silently reads the data."""
    answer = {(*query, name): "the policy" for name in outputs.OUTPUTS}
    for path, at in {**answer, **{rule.path: rule.at for rule in policy.rules}}.items():
        value: object = policy.data
        for name in path[1:]:
            if not isinstance(value, dict) or name not in value:
                break
            value = value[name]
        else:
            yield f"{at}: a data.json also defines {'.'.join(path)}; rename one of them"
            continue
        if not isinstance(value, dict):
            name = ".".join(path)
            yield (
                f"{at}: a data.json has a value that is not an object on the path {name}; "
                "rename one of them"
            )
