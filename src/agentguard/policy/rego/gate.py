"""The gate that a Rego policy passes before its use: static checks, and a trial in a child process.

The engine reports an unknown builtin only when evaluation reaches the call, dies on a recursive
function, and silently reads data at the path of a rule instead of the rule. The gate refuses a
policy that would fail late or fail open. The checks read the engine's own syntax tree
(``syntax_tree.py``). Each module with a function ``mistakes`` or ``warnings`` has the checks of one
subject.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from agentguard.call.decision import Requirement
from agentguard.errors import ConfigError
from agentguard.policy.rego import (
    answers,
    builtin_functions,
    data_lists,
    definitions,
    expressions,
    imports,
    iteration,
    negation,
    ordering,
    outputs,
    packages,
    patterns,
    reads,
    requirements,
    rule_heads,
    unbound_variables,
)
from agentguard.policy.rego.definitions import Definitions
from agentguard.policy.rego.source import RegoSource, invalid
from agentguard.policy.rego.syntax_tree import Names, Reader, span_or_object
from agentguard.policy.rego.undefined import Presence

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


class Findings(NamedTuple):
    """What the gate finds in a policy that passes.

    A warning is a sentence with ``file:line:column`` for each construct that is legal, and that
    fails open if the author did not mean it. ``requirements`` are those for an approval that the
    policy writes out. ``reads`` are the paths below ``input`` that the policy reads, each with its
    first place.
    """

    warnings: tuple[str, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    reads: Mapping[Names, str] = MappingProxyType({})


def check(source: RegoSource, query: str, *, timeout: float) -> Findings:
    """Refuse a policy that is invalid, could fail open, or crashes the engine.

    ``timeout`` (seconds) bounds the trial in the child process. Raises ``PolicyError``
    (``policy.invalid``), and ``ConfigError`` when the child can't be started.
    """
    findings = Findings()
    try:
        report, end = _dry_run(source, query, timeout)
        if "tree" in report:
            # The tree is checked first: the child dies on a recursive function, and only the tree
            # shows the recursion.
            findings = _check_tree(report, source.data, tuple(query.split(".")))
    except RecursionError as error:
        raise invalid(
            "the expressions of the policy are nested too deeply; split them into several rules"
        ) from error
    if "error" in report:
        place, text = locate(report["error"])
        text += _hint(text)
        raise invalid(f"{place}: {text}" if place else text)
    if not {"tree", "evaluated"} <= report.keys():
        raise invalid(f"the policy crashes the engine: {end}; simplify or split its rules")
    return findings


_HINTS: Final = (
    (
        "`if` keyword",
        "this is the syntax of Rego v0; in v1 write NAME if {...}, and NAME contains ITEM if {...}",
    ),
    ("expecting `", "close what was opened before this place"),
    (
        "expecting expression",
        "complete the expression; write a second rule of the same name in the place of an or",
    ),
    ("invalid character in string", "close the text with a double quotation mark on the same line"),
    ("invalid character", "write a text in double quotation marks, and not in the place of !"),
)
"""What to write instead, by the beginning of a message of the native engine."""


def _hint(message: str) -> str:
    """Return what a developer writes instead, to be added to a message; empty if unknown."""
    return next((f"; {hint}" for begin, hint in _HINTS if message.startswith(begin)), "")


def locate(error: str) -> tuple[str, str]:
    """Split an error of the native engine into ``file:line:column`` (or "") and its message."""
    text = error.partition("Stack backtrace")[0].strip()
    place, _, rest = text.partition("\n")
    if not place.startswith("-->"):
        return "", " ".join(text.split())
    # The engine prints the line of source between the place and the message. Only the first line of
    # a message is kept.
    message = rest.partition("\nerror:")[2].strip(" :").partition("\n")[0]
    return place.removeprefix("-->").strip(), message


def _dry_run(source: RegoSource, query: str, timeout: float) -> tuple[dict[str, Any], str]:
    """Load and evaluate the policy in a child; return the child's report, and how it ended."""
    request = {
        "modules": source.modules,
        "data": json.dumps(source.data),
        "query": query,
        "input": _WARM_UP,
    }
    # An empty entry of sys.path means the working directory.
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109  a string
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
    """Return the members of all objects in the output of the child, one object a line.

    Other lines are of a module of the site, which Python imports first. A child that was killed may
    leave half a line.
    """
    report: dict[str, Any] = {}
    for line in output.splitlines(keepends=True):
        if line.startswith(b"{") and line.endswith(b"\n"):
            report.update(json.loads(line, object_hook=span_or_object))
    return report


def _check_tree(report: Mapping[str, Any], data: Mapping[str, Any], query: Names) -> Findings:
    """Return what there is to find in the syntax tree; raises ``PolicyError`` for its mistakes."""
    readers = [Reader(tree) for tree in report["tree"]]
    policy = Definitions([reader.module for reader in readers], data)
    reached = policy.reached_from(query)
    unread = outputs.unread(policy.rules, reached, query)
    presence = Presence.of(readers)
    tests = policy.tests_outside(reached)
    for reader in readers:
        reader.leave_out(tests)
    problems = [
        *definitions.mistakes(policy, readers, frozenset(report["builtins"]), query),
        *packages.mistakes(readers, query),
        *data_lists.mistakes(readers, data),
        *(mistake for reader in readers for mistake in imports.mistakes(reader)),
        *unread.mistakes,
        *negation.mistakes(readers, presence),
        *rule_heads.mistakes(readers, presence),
        *answers.mistakes(readers, query),
        *expressions.mistakes(readers),
        *(mistake for reader in readers for mistake in builtin_functions.mistakes(reader)),
        *(mistake for reader in readers for mistake in patterns.mistakes(reader)),
        *(mistake for reader in readers for mistake in unbound_variables.mistakes(reader)),
    ]
    if problems:
        raise invalid("\n".join(problems))
    read = reads.reads(readers, reached, query)  # which needs a policy without recursion
    slips = [*dict.fromkeys(reads.mistakes(read))]
    if slips:
        raise invalid("\n".join(slips))
    warnings = (
        *unread.doubts,
        *rule_heads.warnings(readers, presence, query),
        *iteration.warnings(readers),
        *ordering.warnings(readers, query),
    )
    return Findings(warnings, tuple(requirements.stated(readers, query)), reads.paths(read))
