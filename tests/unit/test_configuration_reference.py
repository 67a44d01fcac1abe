"""docs/reference/configuration.md has every declared key, and its examples load."""

from __future__ import annotations

from dataclasses import replace

import configuration_reference as reference
import pytest

from agentguard.domain.config import parse

TOLD = list(reference.sections())


def test_the_page_is_complete_and_current():
    assert reference.problems(TOLD) == []
    assert reference.PAGE.read_text("utf-8") == reference.page(TOLD)


def test_a_key_without_a_meaning_and_one_that_no_example_has_are_found():
    (section,) = (one for one in TOLD if one.table == "telemetry")
    silent = replace(section.keys[0], meaning="")
    new = replace(section.keys[0], name="new")
    assert reference.problems([replace(section, keys=(silent, new))]) == [
        "[telemetry] endpoint has no meaning",
        "[telemetry] new has no example",
    ]


@pytest.mark.parametrize("section", TOLD, ids=[one.table for one in TOLD])
def test_each_example_loads(section):
    parse(reference.whole(TOLD, section), source="agentguard.toml", base=reference.ROOT)
