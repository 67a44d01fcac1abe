"""Rules that look like an output of the policy, and that no output reads.

Such a rule never denies. In the queried package the rule is a mistake. In another package the rule
may be intended: a folder can hold the package of another query, or a library with unused rules.
``definitions.py`` computes which rules the outputs read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from agentguard.policy.rego.syntax_tree import Names, Rule

OUTPUTS: Final = ("allow", "approval", "deny_reason", "deny_reasons", "obligations")
"""The rules of the policy's package that the guard reads (policy-document.md, Output)."""

# The author of a name that begins like this, in any case, meant an output.
_MEANT: Final = ("deny", "deni", "violation", "approv", "obligation")
_MAYBE_MEANT: Final = ("block", "disallow", "forbid", "prohibit", "reason", "refus", "reject")


@dataclass(slots=True)
class Unread:
    """A sentence for each unread rule; ``doubts`` are about rules that may be intended."""

    mistakes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def is_output(path: Names, query: Names) -> bool:
    """Tell whether the rule is one of the outputs that the guard reads."""
    return path[: len(query)] == query and path[len(query) :][:1] in {(name,) for name in OUTPUTS}


def unread(rules: Iterable[Rule], reached: set[Names], query: Names) -> Unread:
    """Return the rules outside of ``reached`` that look like outputs, each at its first definition.

    In the queried package a name like ``deny`` is a mistake, and so is an output below another name
    (``limits.deny_reasons``): neither has another use.
    """
    unread_rules = Unread()
    first: dict[Names, Rule] = {}
    for rule in rules:
        if rule.path not in reached:
            first.setdefault(rule.path, rule)
    for rule in first.values():
        names = rule.path[len(rule.package) :]
        is_queried = rule.package == query
        if is_queried and (_denies(names[0]) or any(map(_is_named_output, names[1:]))):
            unread_rules.mistakes.append(_sentence(rule, query))
        elif any(_denies(name) or _is_named_output(name) for name in names) or (
            is_queried and _may_be_meant(names[0])
        ):
            unread_rules.doubts.append(_sentence(rule, query))
    return unread_rules


def _sentence(rule: Rule, query: Names) -> str:
    is_queried = rule.package == query
    name = ".".join(rule.path[len(query) :] if is_queried else rule.path)
    near = _near(rule.path[-1])
    is_misspelt = is_queried and near
    advice = f"did you mean {near}?" if is_misspelt else "read it in an output, or rename it"
    where = "" if is_queried else f" of {'.'.join(query)}"
    return (
        f"{rule.at}: no output{where} ({', '.join(OUTPUTS)}) reads {name}, directly or through "
        f"another rule; {advice}"
    )


def _is_named_output(name: str) -> bool:
    return name.lower() in OUTPUTS


def _denies(name: str) -> bool:
    return name.lower().startswith(_MEANT) or _near(name) not in (None, "allow")


def _may_be_meant(name: str) -> bool:
    return name.lower().startswith(_MAYBE_MEANT) or _near(name) is not None


def _near(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower(), OUTPUTS, n=1, cutoff=0.8)), None)
