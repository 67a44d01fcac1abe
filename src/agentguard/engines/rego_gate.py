"""The gate that a Rego policy passes before it is used: static checks, and a trial in a child.

The engine reports an unknown builtin only when evaluation reaches it, dies on a recursive
function, and lets data stand in a rule's place. Whatever would fail late, or open, is refused
here. What is checked is the engine's own syntax tree, as ``rego_tree.py`` reads it.
"""

from __future__ import annotations

import difflib
import graphlib
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from agentguard.engines import rego_tree
from agentguard.engines.rego_source import RegoSource, invalid
from agentguard.engines.rego_tree import Module, Reference, Rule
from agentguard.errors import ConfigError

OUTPUTS: Final = ("allow", "approval", "deny_reason", "deny_reasons", "obligations")
"""The rules of the policy's package that are read (policy.md, Output)."""

# An author who writes one of these means an output; nothing reads it, so that it would fail open.
_LOOKS_LIKE_OUTPUT: Final = ("deny", "denied", "violation", "approv", "obligation")
_REFUSED: Final = {
    "http.send": "is a stub here, and undefined; look the fact up in the application (facts)",
    "print": "would write arguments of calls to the standard error; remove it",
}
_ABSENT: Final = "this engine has no io.jwt.*, crypto.*, graphql.* and net.cidr_merge"
_WARM_UP: Final = json.dumps(
    {
        "agent": {"id": "", "name": "", "type": "", "instance": ""},
        "delegation": None,
        "action": "",
        "resource": "",
        "task_id": "",
        "args": {},
        "tool": {"name": "", "schema_sha256": ""},
    }
)


def check(source: RegoSource, query: str, *, timeout: float) -> None:
    """Refuse a policy that is invalid, could fail open, or brings the engine down.

    ``timeout`` (seconds) bounds the trial in the child process. Raises ``PolicyError``
    (``policy.invalid``), and ``ConfigError`` when the child can't be started.
    """
    report, end = _try(source, query, timeout)
    if "tree" in report:
        # First what the tree says: of a recursive function, the child only knows that it died.
        problems = _problems(report, source.data, tuple(query.split(".")))
        if problems:
            raise invalid("\n".join(problems))
    if "error" in report:
        raise invalid(describe(report["error"]))
    if "evaluated" not in report:
        raise invalid(f"the policy brings the engine down: {end}; simplify or split its rules")


def describe(error: str) -> str:
    """Return an error of the native engine as ``file:line:column: message``, on one line."""
    text = error.partition("Stack backtrace")[0].strip()
    place, _, rest = text.partition("\n")
    if not place.startswith("-->"):
        return " ".join(text.split())
    # Between the place and the message the engine draws the source, every line of it with a "|".
    message = next((line for line in rest.splitlines() if "|" not in line[:8]), "")
    return f"{place.removeprefix('-->').strip()}: {message.removeprefix('error:').strip(' :')}"


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
            [sys.executable, "-P", str(Path(__file__).with_name("rego_probe.py"))],
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


def _problems(report: Mapping[str, Any], data: Mapping[str, Any], query: tuple[str, ...]) -> list[str]:
    try:
        modules = [rego_tree.read(tree) for tree in json.loads(report["tree"])]
    except RecursionError as error:
        raise invalid("the policy's expressions are nested too deeply; split them") from error
    rules = [rule for module in modules for rule in module.rules]
    known = _Known(modules, rules, data)
    return [
        *_wrong_query(query, known.packages),
        *_unknown_calls(rules, known, frozenset(report["builtins"])),
        *_undefined_names(rules, known),
        *_recursion(rules, known),
        *_data_in_place_of_rules(rules, data, query),
        *_unread_outputs(rules, query),
    ]


class _Known:
    """What the policy defines: packages, functions, and rules by every part of their paths."""

    def __init__(
        self, modules: Iterable[Module], rules: Iterable[Rule], data: Mapping[str, Any]
    ) -> None:
        self.packages = sorted({module.package for module in modules})
        self.functions = {rule.path for rule in rules if rule.function}
        self.data = data
        self._paths = {rule.path for rule in rules}
        self._below: dict[rego_tree.Path, set[rego_tree.Path]] = defaultdict(set)
        for path in self._paths:
            for length in range(len(path) + 1):
                self._below[path[:length]].add(path)

    def rules_under(self, path: rego_tree.Path) -> set[rego_tree.Path]:
        """The rules whose values a reference to ``path`` may read."""
        above = {path[:length] for length in range(len(path))} & self._paths
        return above | self._below.get(path, set())


def _wrong_query(query: rego_tree.Path, packages: list[rego_tree.Path]) -> Iterator[str]:
    if query not in packages:
        present = ", ".join(".".join(package) for package in packages)
        yield f"the query {'.'.join(query)} names no package of the policy; it has {present}"


def _unknown_calls(
    rules: Iterable[Rule], known: _Known, builtins: frozenset[str]
) -> Iterator[str]:
    """A call of what does not exist would fail only once evaluation reaches it."""
    for rule in rules:
        package = rule.path  # a function's name is resolved in the packages around the rule
        for call in (reference for reference in rule.references if reference.call):
            name = ".".join(call.path)
            if not call.whole:
                yield f"{call.at}: a function's name must not be computed; call it by its name"
            elif call.path in known.functions or _local(call, package, known):
                continue
            elif name in _REFUSED:
                yield f"{call.at}: {name} {_REFUSED[name]}"
            elif call.absolute or name not in builtins:
                names = builtins | {".".join(path) for path in known.functions}
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}?" if near else _ABSENT
                yield f"{call.at}: there is no function {name}; {hint}"
