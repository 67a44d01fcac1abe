"""``token verify``, ``revoke``, ``freeze`` and ``thaw``, as users type them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from token_files import claims_of, refused, told_as_json, words

from agentguard.cli.agents import delegations
from agentguard.identity.credential import agent_alias
from agentguard.signing import jws

CALLS = """
import sys
from agentguard import Denied, DelegationError, Guard

with Guard.open("agentguard.toml") as guard:
    tool = guard.tool(name="read_file", requires=["files:read"])(lambda: "ok")
    for name in sys.argv[1:]:
        try:
            lent = guard.resume(open("task.json", "rb").read())
            print(guard.new_agent(name).under(lent).call(tool))
        except (Denied, DelegationError) as refused:
            print(refused.code)
"""

# --- verify, and revoke ---------------------------------------------------------------------------


def test_verified(lent):
    for name in ("token", "task.json", "chain.json"):
        result = lent.run("token", "verify", name)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == "it holds: every signature, link and limit\n"
        found = told_as_json(lent.run("token", "verify", name, "--json"))
        assert found == {"ok": True, "code": None, "problem": None}


def calls(project, *agents: str) -> list[str]:
    called = project.python("-c", CALLS, *agents)
    assert called.returncode == 0, called.stderr
    return called.stdout.split()


def codes(project, *names: str) -> list[str | None]:
    found = []
    for name in names:
        result = project.run("token", "verify", name, "--json")
        told = json.loads(result.stdout)
        assert result.returncode == (0 if told["ok"] else 1)
        found.append(told["code"])
    return found


GIVEN = ["token", "chain.json", "task.json"]
REVOKED = "delegation.revoked"


@pytest.mark.parametrize(
    ("what", "becomes", "acts"),
    [
        ("task.json", [REVOKED] * 3, [REVOKED, REVOKED]),  # and all that came of it
        ("./token", [REVOKED, REVOKED, None], ["ok", "ok"]),
        ("user:alice", [REVOKED] * 3, [REVOKED, REVOKED]),
        ("service:chat", [REVOKED] * 3, [REVOKED, REVOKED]),
        ("agent:coder", [REVOKED, REVOKED, None], [REVOKED, "ok"]),
        ("agent:tester", [REVOKED, REVOKED, None], ["ok", REVOKED]),
        ("user:bob", [None] * 3, ["ok", "ok"]),
        ("user:alice@mail.acme.example", [None] * 3, ["ok", "ok"]),  # two dots, and no token
    ],
)
def test_revoked(other, what, becomes, acts):
    assert codes(other, *GIVEN) == [None] * 3
    if acts == ["ok", "ok"] and what != "./token":  # nobody has this name so far
        refused(other.run("revoke", what, "--note", "it leaked"), "revocation.unknown")
        assert codes(other, *GIVEN) == [None] * 3
        what_is_given = [what, "--in-advance"]
    else:
        what_is_given = [what]
    result = other.run("revoke", *what_is_given, "--note", "it leaked")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"revoked: \S+ \(entry \d+\)\n", result.stdout)
    assert codes(other, *GIVEN) == becomes
    assert calls(other, "coder", "tester") == acts
    assert other.run("audit", "verify").returncode == 0


def revocations(project) -> list[str]:
    return [row["reason"] for row in project.lines("audit", "list") if row["kind"] == "revocation"]


def test_a_name_that_nobody_has_is_revoked_in_advance_alone(other):
    """A revocation can't be undone, and a mistyped name would deny nothing."""
    claims = claims_of(other)
    uri = claims["client_id"]
    known = [uri, uri.rpartition("/")[2], "agent:assistant"]
    for name in known:
        result = other.run("revoke", name, "--note", "n")
        assert (result.returncode, result.stderr) == (0, "")
    before = revocations(other)
    unknown = ("user:alicia", uri[:-1], "agent:codre", "codre-the-second")
    for name in (*unknown, "alice", "task.jsn"):
        result = other.run("revoke", name, "--note", "n")
        refused(result, "revocation.unknown")
        assert f"is called {name} (the agents are assistant, coder, tester):" in result.stderr
        assert ("write agent:" in result.stderr) == (
            name in ("codre-the-second", "alice", "task.jsn")
        )
    assert revocations(other) == before
    for name in unknown:
        result = other.run("revoke", name, "--in-advance", "--note", "n")
        assert (result.returncode, result.stderr) == (0, "")
    assert len(revocations(other)) == len(before) + len(unknown)


def test_what_can_be_nobodys_name_is_revoked_neither_way(other):
    refused(other.run("revoke", "user:Alice", "--note", "n"), "revocation.name")
    for name in ("task.jsn", "alice", "user:Alice", "tester:AAAA"):
        refused(other.run("revoke", name, "--in-advance", "--note", "n"), "revocation.name")
    assert revocations(other) == []


def test_a_revocation_in_advance_does_not_read_the_log(other, monkeypatch):
    """It works where entries can't be read, and waits for no search."""
    monkeypatch.setattr(delegations, "is_known", None)
    result = other.run("revoke", "user:alice", "--in-advance", "--note", "n")
    assert (result.returncode, result.stderr) == (0, "")
    assert codes(other, *GIVEN) == [REVOKED] * 3


def test_an_agent_may_have_the_name_of_a_delegations_id(other, monkeypatch):
    monkeypatch.setattr(delegations, "is_known", lambda _reader, name: "in-the-log" in name)
    result = other.run("revoke", "in-the-log", "--note", "n")
    refused(result, "revocation.ambiguous")
    assert "write agent:in-the-log for the agent" in result.stderr
    for given, name in (
        (["agent:in-the-log"], "agent:in-the-log"),
        (["in-the-log", "--in-advance"], "in-the-log"),
    ):
        told = told_as_json(other.run("revoke", *given, "--note", "n", "--json"))
        assert told["revoked"] == name


@pytest.mark.parametrize(
    "name", ["tsak.json", "./task", "tokens/alice", "/nowhere/tsak.json", ".json"]
)
def test_a_file_that_is_not_there_is_no_name(other, name):
    result = other.run("revoke", name, "--note", "n")
    refused(result, "revocation.name")
    assert f"there is no file {name}" in result.stderr
    assert not [row for row in other.lines("audit", "list") if row["kind"] == "revocation"]


def test_a_name_may_look_like_a_files(other):
    with (other.folder / "agentguard.toml").open("a") as file:
        file.write('[principals."user:team/alice.json"]\n')
    result = other.run("revoke", "user:team/alice.json", "--note", "n")
    assert (result.returncode, result.stderr) == (0, "")


def test_revoked_as_json_and_by_the_token_itself(other):
    given = (other.folder / "token").read_text().strip()
    chain: Any = json.loads((other.folder / "chain.json").read_bytes())
    last = jws.parse(chain["hops"][-1]).claims()["jti"]
    found = told_as_json(other.run("revoke", given, "--note", "n", "--json"))
    assert found.keys() == {"revoked", "index"}
    assert found["revoked"] == last
    assert other.run("revoke", "-", "--note", "n", input=given).returncode == 0
    assert codes(other, *GIVEN) == [REVOKED, REVOKED, None]


def test_revoked_by_the_delegation_itself(other):
    """A short one is printable and has no spaces: it is no name for all that."""
    given = (other.folder / "task.json").read_text().strip()
    found = told_as_json(other.run("revoke", given, "--note", "n", "--json"))
    assert found["revoked"] == jws.parse(json.loads(given)["hops"][-1]).claims()["jti"]
    assert codes(other, *GIVEN) == [REVOKED] * 3
    refused(other.run("revoke", "{}", "--note", "n"), "chain.malformed")


DASHED = ["-Zq3xabcdefg", "-" + "Z" * 42, "--" + "Z" * 41, "-note-abc", "-" * 12]


@pytest.mark.parametrize("name", DASHED)
@pytest.mark.parametrize("place", ["before", "between", "after", "behind --"])
def test_a_name_may_begin_with_a_dash(other, name, place):
    """One thumbprint in 64 does."""
    if place != "behind --" and name == "-" * 12:
        name = "-" + "_" * 12
    words = {
        "before": [name, "--note", "-reason-why", "--json"],
        "between": ["--note", "-reason-why", name, "--json"],
        "after": ["--json", "--note=-reason-why", name],
        "behind --": ["--json", "--note", "-reason-why", "--", name],
    }
    result = other.run("revoke", "--in-advance", *words[place])
    assert result.returncode == 0
    assert json.loads(result.stdout)["revoked"] == name
    (row,) = [row for row in other.lines("audit", "list") if row["kind"] == "revocation"]
    assert row["reason"] == f"{name} is revoked: -reason-why"


@pytest.mark.parametrize("option", ["--noet", "--not-an-option", "-n", "-note", "-config", "--"])
def test_an_option_that_is_misspelt_is_no_name(other, option):
    result = other.run("revoke", "user:alice", option, "it leaked")
    assert result.returncode == 2
    if option == "--":  # what stands behind it are arguments
        assert "Got unexpected extra argument (it leaked)" in result.stderr
    else:
        assert "No such option" in result.stderr
    assert not [row for row in other.lines("audit", "list") if row["kind"] == "revocation"]


def test_what_is_revoked_and_why_is_in_the_log(other):
    assert other.run("revoke", "user:alice", "--note", "it leaked").returncode == 0
    (row,) = [row for row in other.lines("audit", "list") if row["kind"] == "revocation"]
    assert row["reason"] == "user:alice is revoked: it leaked"


def test_what_can_not_be_revoked(other):
    before = len(other.lines("audit", "list"))
    refused(other.run("revoke", "a name", "--note", "n"), "revocation.name")
    refused(other.run("revoke", "", "--note", "n"), "revocation.name")
    (other.folder / "given").write_text("no token")
    refused(other.run("revoke", "./given", "--note", "n"), "jws.malformed")
    without = other.run("revoke", "user:alice")
    assert without.returncode == 2
    assert "--note" in without.stderr
    assert len(other.lines("audit", "list")) == before
    assert codes(other, *GIVEN) == [None] * 3


def test_without_the_passphrase_nobody_is_revoked(other):
    environment = {"AGENTGUARD_PASSPHRASE": "wrong"}
    for command in (
        ["revoke", "user:alice"],
        ["revoke", "coder"],
        ["freeze"],
        ["thaw"],
    ):
        result = other.run(*command, "--note", "n", env=environment)
        refused(result, "key.passphrase")
    assert calls(other, "coder") == ["ok"]


def test_what_roles_allow_is_shown_as_an_agents_scope(lent):
    assert "scope: files:read (roles: reader)" in lent.run("agents", "list").stdout
    shown = words(lent.run("agents", "show", "tester"))
    assert "max_scope none roles reader scope files:read" in shown


# --- an agent is revoked; freeze, thaw ------------------------------------------------------------


@pytest.mark.parametrize("name", ["coder", "agent:coder"])
def test_an_agent_is_revoked(other, name):
    result = other.run("revoke", name, "--note", "it misbehaves")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("revoked: agent:coder (entry ")
    assert calls(other, "coder", "tester") == [REVOKED, "ok"]
    assert codes(other, "token", "task.json") == [REVOKED, None]  # it goes through the coder


def test_one_instance_is_revoked(other):
    uri = claims_of(other)["client_id"]
    found = told_as_json(other.run("revoke", uri, "--note", "n", "--json"))
    assert found.keys() == {"revoked", "index"}
    assert found["revoked"] == uri
    assert codes(other, "token") == [REVOKED]
    assert calls(other, "tester") == ["ok"]  # the next instance


def test_one_instance_is_revoked_by_its_short_name(other):
    """Which stands for its URI: nobody goes by a short name."""
    uri = claims_of(other)["client_id"]
    for short in (agent_alias(uri), agent_alias(uri).removeprefix("agent:")):
        found = told_as_json(other.run("revoke", short, "--note", "n", "--json"))
        assert found["revoked"] == uri
    assert codes(other, "token") == [REVOKED]
    assert calls(other, "tester") == ["ok"]  # the next instance


def test_an_agent_that_nobody_knows_is_not_revoked(other):
    unknown = "spiffe://acme.example/agent/tester/" + "A" * 43
    for name in ("codre", "agent:codre", "tester:AAAA", unknown):
        result = other.run("revoke", name, "--note", "n")
        refused(result, "revocation.unknown")
        assert "coder" in result.stderr  # an agent that there is
    refused(other.run("revoke", "coder/tester", "--note", "n"), "revocation.name")  # a path
    assert other.run("revoke", "coder").returncode == 2
    assert calls(other, "coder") == ["ok"]


def test_freeze_and_thaw(other):
    result = other.run("freeze", "--note", "an incident")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("frozen: every call is denied from here on (entry ")
    assert calls(other, "coder", "tester") == ["domain.frozen"] * 2
    assert codes(other, *GIVEN) == ["domain.frozen"] * 3
    result = other.run("thaw", "--note", "over")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("thawed: calls go on (entry ")
    assert calls(other, "coder", "tester") == ["ok", "ok"]
    assert codes(other, *GIVEN) == [None] * 3
    rows = [row for row in other.lines("audit", "list") if row["kind"] == "freeze"]
    assert [row["reason"] for row in rows] == ["frozen: an incident", "thawed: over"]
    assert other.run("audit", "verify").returncode == 0


def test_doctor_says_who_was_stopped(other):
    def stopped() -> list[str]:
        checks = json.loads(other.run("doctor", "--json").stdout)["checks"]
        warned = [one for one in checks if one["status"] == "warn"]
        return [one["check"] for one in warned if "denied" in one["what"]]

    with (other.folder / "agentguard.toml").open("a") as file:
        file.write('[principals."user:alice"]\n')
    assert stopped() == []
    for command in (["revoke", "coder"], ["revoke", "user:alice"], ["freeze"]):
        assert other.run(*command, "--note", "n").returncode == 0
    assert stopped() == ["freeze", "agent coder", "principal user:alice"]
    assert other.run("thaw", "--note", "n").returncode == 0
    assert stopped() == ["agent coder", "principal user:alice"]


def test_freeze_and_thaw_as_json(other):
    for command, frozen in (("freeze", True), ("thaw", False)):
        found = told_as_json(other.run(command, "--note", "n", "--json"))
        assert found.keys() == {"frozen", "index"}
        assert found["frozen"] is frozen
    for command in ("freeze", "thaw"):
        without = other.run(command)
        assert without.returncode == 2
        assert "--note" in without.stderr


def test_where_there_is_no_project(project):
    for command in (["freeze"], ["thaw"], ["revoke", "x"]):
        refused(project.run(*command, "--note", "n"), "config.missing")


def test_files_and_options_are_where_they_are_named(lent, project):
    """From another folder, with another home."""
    where = ["--config", lent.folder / "agentguard.toml", "--anchor", lent.anchor]
    for command in ("inspect", "verify"):
        result = project.run("token", command, lent.folder / "task.json", *where)
        assert (result.returncode, result.stderr) == (0, "")
