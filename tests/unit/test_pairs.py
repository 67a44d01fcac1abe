"""Few combinations of parameters: any two values meet."""

from __future__ import annotations

import itertools

import rounds
from pairs import few, pairs


def test_any_two_values_meet_in_few_combinations():
    every = list(itertools.product("ab", "cd", "ef", "ghij", "kl"))
    chosen = few(every)
    assert len(chosen) < len(every) / 4
    for names in every:
        for (one, value), (other, beside) in itertools.combinations(enumerate(names), 2):
            assert any(c[one] == value and c[other] == beside for c in chosen)


def test_full_rounds_have_all_of_them(monkeypatch):
    monkeypatch.setattr(rounds, "ALL", True)
    made = pairs(one=["a", "b"], two={"x": 1, "y": 2}, three=[True, False])
    assert len(made.args[1]) == 8
    assert made.args[1][-1] == ["b", 2, False]
    assert made.kwargs["ids"][-1] == "b-y-False"
