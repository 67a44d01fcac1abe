"""Parameters of a test in few combinations: any two values of two parameters meet in one of them.

With ``AGENTGUARD_ROUNDS=full`` a test runs in all combinations. ``rounds.half`` has half of them;
here they are fewer where there are many parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
import rounds

Combination = tuple[str, ...]


def pairs(**parameters: Mapping[str, Any] | Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test with these parameters: each with its values, by name where they have one.

    >>> pairs(sync=[True, False], kind={"list": [], "tuple": ()}).args[0]
    ['sync', 'kind']
    """
    named = [
        dict(values) if isinstance(values, Mapping) else {str(value): value for value in values}
        for values in parameters.values()
    ]
    chosen = list(itertools.product(*named))
    if not rounds.ALL:
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
