"""Each key of a configuration that is a text, a list or a table of texts, left empty.

The keys come from the code that reads a configuration, by way of the reference, so that a new key
is asked as well. An empty text is refused. An empty list or table is refused, or reads as what is
listed here: a value that gives nothing to anybody.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Any

import configuration_reference as reference
import pytest

from agentguard import ConfigError
from agentguard.domain.config import Config, parse

TOLD = reference.sections()
FOUND = reference.known(TOLD)
EMPTY = {"string": '""', "list of strings": "[]", "list of scopes": "[]", "table of strings": "{}"}

KEYS = [
    (number, section["table"], key["name"])
    for number, section in enumerate(TOLD)
    for key in section["key"]
    if FOUND[section["table"], key["name"]][0] in EMPTY
]

TEXTS = {("", "anchor"): "no anchor", ("mcp.NAME", "prefix"): "no prefix, as without the key"}
"""The texts that may be empty, with what an empty one says."""

Read = Callable[[Config], Any]

NOTHING: dict[tuple[str, str], tuple[Read, Any]] = {
    ("roles.NAME", "scope"): (lambda read: read.role_scopes["writer"], set()),
    ("principals.NAME", "roles"): (lambda read: _only(read.principal_tables).scope, set()),
    ("agents.NAME", "max_scope"): (lambda read: read.agents["assistant"].max_scope, set()),
    ("agents.NAME", "roles"): (lambda read: read.agents["assistant"].role_scope, set()),
    ("delegation", "NAME"): (lambda read: read.delegatees, {"assistant": set()}),
    ("tools.NAME", "attributes"): (lambda read: read.tools["read_file"].attributes, {}),
    ("tools.NAME.facts", "gives"): (lambda read: read.tools["read_file"].gives, ()),
    ("tools.NAME", "show"): (lambda read: read.tools["read_file"].show, ()),
    ("approvers.NAME", "keys"): (lambda read: read.roster.approvers["bob"].keys, ()),
    ("approvers.NAME", "roles"): (lambda read: read.roster.approvers["bob"].roles, ()),
    ("approvals", "application_roles"): (lambda read: read.roster.application_roles, ()),
    ("issuers.NAME", "types"): (lambda read: read.issuers["cluster"].rule.types, set()),
    ("issuers.NAME", "services"): (lambda read: read.issuers["cluster"].services, {}),
    ("service", "audiences"): (lambda read: read.service and read.service.audiences, set()),
    ("clients.NAME", "agents"): (lambda read: read.client_tables["reviewer"].agents, ()),
    ("clients.NAME", "vouches_for"): (lambda read: read.client_tables["reviewer"].vouches_for, ()),
    ("mcp.NAME", "command"): (lambda read: read.mcp["git"].command, ()),
    ("mcp.NAME", "scope"): (lambda read: read.mcp["git"].scope, set()),
    ("mcp.NAME", "tools"): (lambda read: read.mcp["git"].tools, ()),
    ("mcp.NAME", "rounds"): (lambda read: read.mcp["git"].rounds, ()),
    ("mcp.NAME", "env"): (lambda read: read.mcp["git"].env, ()),
    ("mcp.NAME", "secrets"): (lambda read: read.mcp["git"].secrets, {}),
    ("mcp.NAME.serve", "origins"): (lambda read: read.mcp["git"].serve.origins, ()),
    ("mcp.NAME.oauth", "scopes"): (lambda read: _only(read.mcp).oauth.scopes, ()),
}
"""What an empty list or table reads as: nobody, no scope, no agent, no tool, no audience."""


def _only(tables: Any) -> Any:
    return next(iter(tables.values()))


def read(number: int, name: str, value: str | None) -> Config:
    """Read the example of a table, with another value for a key, or with the example's for None."""
    told = [dict(section) for section in TOLD]
    if value is not None:
        keys = [dict(key) for key in told[number]["key"]]
        (chosen,) = (key for key in keys if key["name"] == name)
        chosen["example"], chosen["instead"] = value, False
        told[number]["key"] = keys
    numbers = sorted({section.get("file", 0) for section in told})
    text = reference.files(told)[numbers.index(told[number].get("file", 0))]
    return parse(tomllib.loads(text), source="agentguard.toml", base=reference.ROOT)


@pytest.mark.parametrize(("number", "table", "name"), KEYS)
def test_an_empty_value_of_a_key_gives_nothing(number, table, name):
    read(number, name, None)  # the twin
    kind, key = FOUND[table, name][0], (table, name)
    if key in TEXTS:
        read(number, name, EMPTY[kind])
        return
    if key in NOTHING:
        look, expected = NOTHING[key]
        assert look(read(number, name, EMPTY[kind])) == expected
        return
    with pytest.raises(ConfigError) as caught:
        read(number, name, EMPTY[kind])
    assert caught.value.code == "config.invalid"


@pytest.mark.parametrize("field", ["scope", "tools", "trust"])
def test_an_absent_limit_of_a_gateway_is_none(field):
    tables = {"mcp": {"git": {"command": ["server"]}}}
    found = parse(tables, source="agentguard.toml", base=reference.ROOT).mcp["git"]
    assert getattr(found, field) is None


def test_so_many_keys_are_asked():
    assert {*TEXTS, *NOTHING} <= {(table, name) for _, table, name in KEYS}
    assert len(KEYS) == 120
