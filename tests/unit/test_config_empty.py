"""Each key of a configuration that is a text, a list or a table of texts, left empty.

The keys come from their declarations, so that a new key is asked as well. An empty text is refused.
An empty list or table is refused, or reads as what is listed here: a value that gives nothing to
anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import configuration_reference as reference
import pytest

from agentguard import ConfigError
from agentguard.domain.config import Config, parse

TOLD = list(reference.sections())
EMPTY: dict[str, Any] = {
    "string": "",
    "list of strings": [],
    "list of scopes": [],
    "table of strings": {},
}
KEYS = [(section, key.name) for section in TOLD for key in section.keys if key.kind.words in EMPTY]

TEXTS = {("", "anchor"): "no anchor", ("mcp.NAME", "prefix"): "no prefix, as without the key"}
"""The texts that may be empty, with what an empty one says."""

Read = Callable[[Config], Any]

NOTHING: dict[tuple[str, str], tuple[Read, Any]] = {
    ("roles.NAME", "scope"): (lambda read: read.role_scopes["writer"], set()),
    ("principals.NAME", "roles"): (lambda read: _only(read.principal_tables).scope, set()),
    ("agents.NAME", "max_scope"): (lambda read: read.agents["assistant"].max_scope, set()),
    ("agents.NAME", "roles"): (lambda read: read.agents["assistant"].role_scope, set()),
    ("delegation", "NAME"): (lambda read: read.delegation, {"assistant": set()}),
    ("tools.NAME", "attributes"): (lambda read: read.tools.tables["read_file"].attributes, {}),
    ("tools.NAME.facts", "gives"): (lambda read: read.tools.tables["read_file"].gives, ()),
    ("tools.NAME", "show"): (lambda read: read.tools.tables["read_file"].show, ()),
    ("approvers.NAME", "keys"): (lambda read: read.roster.approvers["bob"].keys, ()),
    ("approvers.NAME", "roles"): (lambda read: read.roster.approvers["bob"].roles, ()),
    ("approvals", "application_roles"): (lambda read: read.roster.application_roles, ()),
    ("issuers.NAME", "types"): (lambda read: read.issuers["cluster"].rule.types, set()),
    ("issuers.NAME", "services"): (lambda read: read.issuers["cluster"].services, {}),
    ("service", "audiences"): (lambda read: read.service and read.service.audiences, ()),
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


def read(section: reference.Section, name: str, value: object) -> Config:
    """Read a whole configuration, with another value for a key of the section's table."""
    whole = table = reference.whole(TOLD, section)
    for place in section.place:
        table[place] = table = dict(table[place])
    table[next(iter(table)) if name == "NAME" else name] = value
    return parse(whole, source="agentguard.toml", base=reference.ROOT)


@pytest.mark.parametrize(
    ("section", "name"), KEYS, ids=[f"{section.table}.{name}" for section, name in KEYS]
)
def test_an_empty_value_of_a_key_gives_nothing(section, name):
    kind = next(key.kind.words for key in section.keys if key.name == name)
    key = (section.table, name)
    if key in TEXTS:
        read(section, name, EMPTY[kind])
        return
    if key in NOTHING:
        look, expected = NOTHING[key]
        assert look(read(section, name, EMPTY[kind])) == expected
        return
    with pytest.raises(ConfigError) as caught:
        read(section, name, EMPTY[kind])
    assert caught.value.code == "config.invalid"


@pytest.mark.parametrize("field", ["scope", "tools", "trust"])
def test_an_absent_limit_of_a_gateway_is_none(field):
    tables = {"mcp": {"git": {"command": ["server"]}}}
    found = parse(tables, source="agentguard.toml", base=reference.ROOT).mcp["git"]
    assert getattr(found, field) is None


def test_so_many_keys_are_asked():
    assert {*TEXTS, *NOTHING} <= {(section.table, name) for section, name in KEYS}
    assert len(KEYS) == 120
