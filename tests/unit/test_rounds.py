"""What ``rounds`` leaves out by default: combinations of parameters, and cases that take turns."""

from __future__ import annotations

import itertools

import pytest
import rounds
from rounds import few, pairs

pytest_plugins = ["pytester"]


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


@pytest.mark.parametrize(("full", "count"), [(False, 4), (True, 6)])
def test_a_parameter_with_a_mark_of_its_own_is_taken_by_turns(pytester, monkeypatch, full, count):
    monkeypatch.setattr(rounds, "ALL", full)
    pytester.makeini(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\naddopts = -p no:syrupy\n"
    )
    items = pytester.getitems(
        """
        import pytest

        @pytest.mark.parametrize("sync", [True, False])
        def test_alone(sync): ...

        @pytest.mark.parametrize("sync", [True, False])
        @pytest.mark.parametrize("kind", ["a", "b"])
        def test_with_another(sync, kind): ...
        """
    )
    names = [item.name for item in rounds.in_turns(items, "sync", marked=True)]
    assert len(names) == count
    assert {"test_alone[True]", "test_alone[False]"} < set(names)
    assert {"test_with_another[a-True]", "test_with_another[b-False]"} < set(names)
