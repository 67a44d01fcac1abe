"""``group`` in ``[clients.NAME]``: each user of a Unix group is a client."""

from __future__ import annotations

import grp
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentguard.domain.config import clients, parse
from agentguard.errors import ConfigError
from agentguard.server.rights import require_agent

ACCOUNTS = {"ada": (2001, 300), "ben": (2002, 300), "cleo": (2003, 100), "dan": (2004, 100)}
"""The number of each user, and the number of the user's primary group."""

GROUPS = {
    "agents": (300, ["cleo", "gone", "hidden"]),
    "desks": (301, ["cleo", "dan"]),
    "empty": (302, []),
}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Have the machine know these users and groups; ``hidden`` is in no list of users."""
    accounts = {
        name: SimpleNamespace(pw_name=name, pw_uid=uid, pw_gid=gid)
        for name, (uid, gid) in {**ACCOUNTS, "hidden": (2009, 100)}.items()
    }
    groups = {
        name: SimpleNamespace(gr_gid=number, gr_mem=names)
        for name, (number, names) in GROUPS.items()
    }
    monkeypatch.setattr(pwd, "getpwall", lambda: [accounts[name] for name in ACCOUNTS])
    monkeypatch.setattr(pwd, "getpwnam", accounts.__getitem__)
    monkeypatch.setattr(grp, "getgrnam", groups.__getitem__)


def read(**clients):
    tables = {"trust_domain": "acme.example", "clients": clients, "agents": {"clerk": {}}}
    return parse(tables, source="agentguard.toml", base=Path("/base"))


def users(**clients):
    return {name: client.uid for name, client in read(**clients).clients.items()}


def test_each_user_of_a_group_is_a_client():
    crew = {"group": "agents", "agents": ["clerk"], "vouches_for": ["user:*"]}
    members = {"crew/ada": 2001, "crew/ben": 2002, "crew/cleo": 2003, "crew/hidden": 2009}
    assert users(crew=crew) == members
    ada = read(crew=crew).clients["crew/ada"]
    assert (ada.may_be("clerk"), ada.may_vouch_for("user:x"), ada.answers) == (True, True, False)


def test_a_group_without_users_makes_nobody_a_client():
    assert users(crew={"group": "empty"}) == {}


def test_a_table_of_the_user_s_own_counts_more_than_a_group_and_the_first_group_more():
    tables = {"crew": {"group": "agents"}, "desk": {"group": "desks"}, "ben": {"user": "ben"}}
    found = users(**tables)
    assert sorted(found) == ["ben", "crew/ada", "crew/cleo", "crew/hidden", "desk/dan"]
    assert found["ben"] == 2002
    other_way = dict(reversed(tables.items()))
    assert sorted(users(**other_way)) == [
        *("ben", "crew/ada", "crew/hidden", "desk/cleo", "desk/dan")
    ]


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        (
            {"crew": {"group": "nobody-has-this"}},
            "clients.crew.group: expected the name of a group",
        ),
        ({"crew": {"group": "agents", "user": "ada"}}, "group = 'NAME'"),
        ({"a/b": {"group": "agents"}}, "without a slash"),
        ({"crew": {"group": 300}}, "clients.crew.group"),
        ({"crew": {"group": "agents"}, "crew/ada": {"uid": 7}}, "give this table another name"),
        ({"crew": {"group": "agents", "claims": {"a": "b"}}}, "claims"),
    ],
    ids=str,
)
def test_a_mistake_says_what_to_do(clients, message):
    with pytest.raises(ConfigError) as refused:
        read(**clients)
    assert message in str(refused.value)


def test_messages_name_the_table_of_the_group():
    settings = read(crew={"group": "agents", "agents": ["clark"]})
    (warning,) = clients.warnings(settings)
    assert "agents in [clients.crew] has 'clark'" in warning
    with pytest.raises(ConfigError, match=r"the client crew/ada .* \[clients\.crew\]"):
        require_agent(settings.clients["crew/ada"], "clerk")
