"""Configured names that look misspelt: what is warned of, once, and what is not."""

from __future__ import annotations

import logging

import pytest

from agentguard import Decision, Guard
from agentguard.domain.config import spelling
from agentguard.domain.config.spelling import Spelling, closest_name, closest_scope


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("read_fille", "read_file"),
        ("raed_file", "read_file"),
        ("read_file", None),
        ("send_mail", None),
        ("", None),
    ],
)
def test_the_closest_name(name, meant):
    assert closest_name(name, ["merge_pr", "read_file", "write_file"]) == meant


def test_a_name_that_is_close_is_said_once(caplog):
    configured = ("read_fille", "merge")
    spelling = Spelling({name: f"a.toml: [tools.{name}]" for name in configured})
    spelling.warn()
    assert caplog.records == []
    spelling.add("read_file")
    spelling.warn()
    spelling.warn()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("agentguard", logging.WARNING)
    assert record.getMessage() == (
        "a.toml: [tools.read_fille] matches no guarded tool so far: did you mean read_file? If so, "
        "correct the name"
    )


def test_what_has_a_tool_or_a_table_of_its_own_is_not_meant(caplog):
    spelling = Spelling({"get_user": "[tools.get_user]", "set_user": "[tools.set_user]"})
    spelling.add("get_user")
    spelling.warn()  # set_user may still come
    spelling.add("set_user")
    spelling.add("let_user")
    spelling.warn()
    assert caplog.records == []


def read_file(path: str) -> str:
    """Read."""
    return path


CONFIG = {"tools": {"read_fille": {"requires": ["x"]}}, "redact": {"*": ["/args/x"]}}


@pytest.mark.parametrize("first", ["tool", "agent"])
@pytest.mark.parametrize(
    ("config", "said"),
    [
        (CONFIG, "config: [tools.read_fille] matches no guarded tool"),
        ({"redact": {"read_fille": ["/args/path"]}}, "config: read_fille in [redact] matches no"),
        ({"tools": {"read_file": {}}, "redact": {"read_file": ["/args/path"]}}, None),
        ({"tools": {"open_pr": {}}}, None),
    ],
)
def test_a_guard_says_it_of_its_configuration(caplog, first, config, said):
    with Guard.ephemeral(lambda _call: Decision.allow(), config=config) as guard:
        if first == "tool":
            guard.tool(read_file)
        guard.new_agent("a")
        guard.tool(read_file)
        guard.new_agent("b")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (said is not None)
    assert all(text.startswith(str(said)) for text in told)


def test_scopes_without_end_are_not_compared_without_end(monkeypatch, caplog):
    compared = 0

    def closest(scope, scopes):
        nonlocal compared
        compared += len(scopes)
        return closest_scope(scope, scopes)

    monkeypatch.setattr(spelling, "closest_scope", closest)
    scopes = spelling.ScopeSpelling("agentguard.toml", ["files:read"])
    scopes.delegate("user:alice", ["files:raed"])
    assert "did you mean files:read?" in caplog.text  # the twin
    scopes.require("tool", [f"t{number}" for number in range(900)])
    scopes.delegate("user:alice", [f"long:{number:0100}" for number in range(1_000)])
    assert compared < 2_000
    scopes.delegate("user:alice", [f"x:y:{number}" for number in range(100_000)])
    assert compared <= spelling._MOST_COMPARISONS
