"""How many of their cases the tests run: a part by default, all with ``AGENTGUARD_ROUNDS=full``.

``AGENTGUARD_KINDS=all`` has all cases run as well, each once.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

Case = TypeVar("Case")
Combination = tuple[str, ...]

FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"
ALL = FULL or os.environ.get("AGENTGUARD_KINDS") == "all"


def some(cases: Sequence[Case], *, each: int) -> Sequence[Case]:
    """Return all cases, or by default the first of each ``each``."""
    return cases if ALL else cases[::each]


def half(*axes: Iterable[object]) -> list[tuple[object, ...]]:
    """Return all combinations, or by default the half with each pair of values that two axes have.

    That is so for three axes and more; the half of two axes has each value.
    """
    places = itertools.product(*(enumerate(axis) for axis in axes))
    return [
        tuple(value for _, value in combination)
        for combination in places
        if ALL or sum(place for place, _ in combination) % 2 == 0
    ]


def pairs(**parameters: Mapping[str, Any] | Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test: by default, two values of two parameters meet in one combination.

    Each parameter has its values, by name where they have one. ``half`` keeps half of the
    combinations; here they are fewer where there are many parameters.

    >>> pairs(sync=[True, False], kind={"list": [], "tuple": ()}).args[0]
    ['sync', 'kind']
    """
    named = [
        dict(values) if isinstance(values, Mapping) else {str(value): value for value in values}
        for values in parameters.values()
    ]
    chosen = list(itertools.product(*named))
    if not ALL:
        chosen = few(chosen)
    return pytest.mark.parametrize(
        list(parameters),
        [[values[one] for values, one in zip(named, names, strict=True)] for names in chosen],
        ids=["-".join(names) for names in chosen],
    )


def few(combinations: Sequence[Combination]) -> list[Combination]:
    """Choose combinations until each pair is in one of them; always the same ones."""
    met = {names: set(itertools.combinations(enumerate(names), 2)) for names in combinations}
    missing = set().union(*met.values())
    chosen = []
    while missing:
        chosen.append(max(combinations, key=lambda names: len(met[names] & missing)))
        missing -= met[chosen[-1]]
    return chosen


def leave_out(
    config: pytest.Config, items: list[pytest.Item], folder: Path, *names: str, marked: bool = False
) -> None:
    """Take out of ``items`` the cases in a folder that ``in_turns`` leaves out.

    Nothing is taken out where the command line names a test.
    """
    if any("::" in argument for argument in config.args):
        return
    ours = [
        item for item in items if isinstance(item, pytest.Function) and folder in item.path.parents
    ]
    left_out = set(ours).difference(in_turns(ours, *names, marked=marked))
    items[:] = [item for item in items if item not in left_out]


def in_turns(
    items: Sequence[pytest.Function], *names: str, marked: bool = False
) -> list[pytest.Function]:
    """Return all tests; by default those in which other parameters take ``names`` by turns.

    The names are those of fixtures with parameters; or, where ``marked`` is true, of parameters
    that have a mark ``parametrize`` of their own.

    A test with a fixture of two parameters (native, text) and a parameter ``kind`` (a, b, c) runs
    as native-a, text-b and native-c. One with two such fixtures takes both by turns, and one that
    has a fixture alone runs with each of its parameters.
    """
    seen: dict[object, list[str]] = defaultdict(list)

    def is_due(item: pytest.Function) -> bool:
        if not hasattr(item, "callspec"):
            return True
        groups = [_names(mark) for mark in item.iter_markers("parametrize")]
        given = {name for group in groups for name in group if not (marked and len(group) == 1)}
        turns = [
            item.callspec.indices[name]
            for name in names
            if name in item.callspec.params and name not in given
        ]
        places = []  # of each parameter's value among those that were seen
        for place, case in enumerate(item.callspec._idlist):
            cases = seen[item.parent, item.originalname, place]
            if case not in cases:
                cases.append(case)
            places.append(cases.index(case))
        others = [sum(places) - sum(turns)] if len(places) > len(turns) > 0 else []
        return len({turn % 2 for turn in turns + others}) < 2

    return [item for item in items if is_due(item) or ALL]


def _names(mark: pytest.Mark) -> list[str]:
    names = mark.args[0]
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
