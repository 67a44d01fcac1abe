"""Configured names that look misspelt: what is warned of, once, and what is not."""

from __future__ import annotations

import logging
import re

import pytest

from agentguard import ConfigError, Decision, Denied, Guard, spelling
from agentguard.spelling import Spelling, closest_name, closest_scope


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
    spelling = Spelling({name: f"a.toml: [tools.{name}]" for name in configured}, configured)
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
    tables = {"get_user": "[tools.get_user]", "set_user": "[tools.set_user]"}
    spelling = Spelling(tables, tables)
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


REDACTED = {"redact": {"read_fille": ["/args/path"]}}
FINE = {"tools": {"read_file": {}, "open_pr": {}}, "redact": {"read_file": ["/args/path"]}}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (CONFIG, "config: [tools.read_fille] matches no guarded tool"),
        (REDACTED, "config: read_fille in [redact] matches no"),
        (FINE, None),
        ({"tools": {"open_pr": {}}}, None),
    ],
)
def test_a_guard_says_it_of_tools_that_come_after_the_first_agent(caplog, config, said):
    with Guard.ephemeral(lambda _call: Decision.allow(), config=config) as guard:
        guard.new_agent("a")
        guard.tool(read_file)
        guard.new_agent("b")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (said is not None)
    assert all(text.startswith(str(said)) for text in told)


SEVERAL = {"tools": {"open_pr": {}}, "mcp": {"files": {"agent": "a", "command": ["x"]}}}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (CONFIG, r"\[tools.read_fille\] names no tool .* and read_file has no table: did you mean"),
        (
            {"tools": {"open_pr": {}}},
            r"\[tools.open_pr\] .* read_file has no table: correct",
        ),
        (REDACTED, r"read_fille in \[redact\] names no tool .*: did you mean read_file\?"),
        ({"redact": {"open_pr": ["/args/path"]}}, None),
        (FINE, None),  # open_pr is another program's: each tool of this one has a table
        (SEVERAL, None),
        ({}, None),
    ],
)
def test_a_guards_first_agent_finds_each_table_to_have_its_tool(caplog, config, said):
    with Guard.ephemeral(lambda _call: Decision.allow(), config=config) as guard:
        tool = guard.tool(read_file)
        if said is not None:
            with pytest.raises(ConfigError, match=said):
                guard.new_agent("a")
            return
        assert guard.new_agent("a").call(tool, "x") == "x"
    assert caplog.records == []


DENY = {"unlisted": "deny"}


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (DENY, "write [tools.read_file], with the scopes that the tool requires"),
        (
            {**DENY, "read_fille": {"requires": ["x"]}},
            "did you mean [tools.read_fille]?",
        ),
        ({**DENY, "read_file": {}}, None),
        ({"unlisted": "allow"}, None),
        ({"unlisted": {}}, None),  # the table of a tool of this name
    ],
)
def test_a_tool_without_a_table_is_denied_where_the_configuration_says_so(tables, said):
    with Guard.ephemeral(lambda _call: Decision.allow(), config={"tools": tables}) as guard:
        agent = guard.new_agent("a")
        tool = guard.tool(read_file)
        if said is None:
            assert agent.call(tool, "x") == "x"
            return
        with pytest.raises(Denied, match=re.escape(said)) as denied:
            agent.call(tool, "x")
        assert denied.value.code == "tool.unconfigured"
        assert agent.authorize(tool, "x").decision.code == "tool.unconfigured"


def test_an_alias_is_the_name_of_the_table():
    config = {"tools": {**DENY, "read": {}}, "aliases": {"read_file": "read"}}
    with Guard.ephemeral(lambda _call: Decision.allow(), config=config) as guard:
        tool = guard.tool(read_file)
        assert guard.new_agent("a").call(tool, "x") == "x"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"tools": {"unlsted": "deny"}}, "a table, or the key unlisted, got 'deny'"),
        ({"principals": {"asurance": "oidc"}}, "a table, or the key assurance, got 'oidc'"),
    ],
)
def test_a_misspelt_key_beside_tables_is_told_of_the_key(table, said):
    with pytest.raises(ConfigError, match=said):
        Guard.ephemeral(lambda _call: Decision.allow(), config=table)


@pytest.mark.parametrize("value", ["dney", True, "", ["deny"]])
def test_another_value_of_unlisted_is_an_error(value):
    with pytest.raises(ConfigError, match=r"tools\.unlisted"):
        Guard.ephemeral(lambda _call: Decision.allow(), config={"tools": {"unlisted": value}})


@pytest.mark.parametrize(
    ("show", "said"),
    [(["path"], None), ([], None), (["pth"], r"\[?tools.read_file\]?: .*'pth'.*did you mean path")],
)
def test_an_argument_that_is_shown_is_one_of_the_tool(show, said):
    config = {"tools": {"read_file": {"show": show}}}
    with Guard.ephemeral(lambda _call: Decision.allow(), config=config) as guard:
        if said is None:
            guard.tool(read_file)
            return
        with pytest.raises(ConfigError, match=said):
            guard.tool(read_file)


@pytest.mark.parametrize("place", ["read_file", "*"])
@pytest.mark.parametrize(
    ("pointer", "refused"), [("/args/path", True), ("/args", True), ("/args/other", False)]
)
def test_what_is_redacted_is_not_to_be_shown(place, pointer, refused):
    config = {"tools": {"read_file": {"show": ["path"]}}, "redact": {place: [pointer]}}
    if not refused:
        Guard.ephemeral(lambda _call: Decision.allow(), config=config).close()
        return
    with pytest.raises(ConfigError, match="take it out of one of them"):
        Guard.ephemeral(lambda _call: Decision.allow(), config=config)


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
