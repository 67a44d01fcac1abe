"""docs/reference/configuration.md has every key that the code reads, and its examples load."""

from __future__ import annotations

import re
import tomllib

import configuration_reference as reference
import pytest

from agentguard import ConfigError
from agentguard.domain import config


def test_the_page_is_complete_and_current():
    told = reference.sections()
    found = reference.known(told)
    assert reference.problems(told, found) == []
    assert reference.PAGE.read_text("utf-8") == reference.page(told, found)


def test_a_key_without_a_meaning_and_a_meaning_without_a_key_are_found():
    told = reference.sections()
    found = reference.known(told) | {("policy", "new"): ("string", "none")}
    found.pop(("telemetry", "metrics"))
    assert reference.problems(told, found) == [
        "[policy] new has no meaning",
        "[telemetry] metrics is read nowhere",
    ]


def test_the_page_has_the_tables_of_the_code(tmp_path):
    with pytest.raises(ConfigError, match="unknown key") as caught:
        config.parse({"nonsense": {}}, source="agentguard.toml", base=tmp_path)
    (known,) = re.findall("keys of this table are: (.*)", str(caught.value))
    written = {
        (section["table"].partition(".")[0] or key["name"])
        for section in reference.sections()
        for key in section["key"]
    }
    assert written >= set(known.split(", "))


def test_each_example_of_the_page_is_toml():
    text = reference.PAGE.read_text("utf-8")
    blocks = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(reference.sections())
    assert all(map(tomllib.loads, blocks))
