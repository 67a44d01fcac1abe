"""``agentguard agents`` and ``trust``: who may act, who has acted, and whose keys vouch for it."""

from __future__ import annotations

import json
import stat

import pytest

from agentguard.identity.trust import TrustDocument


def test_list_joins_the_configuration_with_the_log(told):
    (agent,) = told.lines("agents", "list")
    last = max(row["at"] for row in told.lines("audit", "list") if row["kind"] == "call")
    assert agent == {
        "name": "assistant",
        "configured": True,
        "type": "assistant",
        "owner": None,
        "authority": "own",
        "max_scope": ["files:read"],
        "roles": [],
        "instances": 2,
        "last_call": last,
        "allow": 6,
        "deny": 2,
    }
    shown = told.run("agents", "list").stdout
    for word in ("assistant", "own", "files:read"):
        assert word in shown


def test_agents_of_the_log_alone_are_listed_as_such(changed):
    toml = changed.folder / "agentguard.toml"
    toml.write_text(toml.read_text().replace("[agents.assistant]", "[agents.successor]"))
    successor, assistant = changed.lines("agents", "list")
    assert (successor["name"], successor["instances"]) == ("successor", 0)
    assert (assistant["name"], assistant["configured"], assistant["allow"]) == (
        "assistant",
        False,
        6,
    )


def test_show_has_the_instances_with_their_credentials(told):
    agent = told.json("agents", "show", "assistant")
    first, second = agent["instances"]
    assert list(first) == [
        "agent",
        "since",
        "credential",
        "last_call",
        "allow",
        "deny",
        "delegations",
    ]
    assert first["delegations"] == []
    assert (first["allow"], first["deny"]) == (5, 2)
    assert (second["allow"], second["deny"]) == (1, 0)
    assert first["credential"].startswith("verifies: assistant, until 20")
    one = told.json("agents", "show", second["agent"])
    assert one["instances"] == [second]
    shown = told.run("agents", "show", "assistant")
    assert first["agent"] in shown.stdout
    assert "5 allowed, 2 denied" in shown.stdout
    assert "no instance" not in shown.stdout
    assert shown.stderr == ""


def test_show_verifies_against_keys_from_outside(told, project):
    assert project.run("init", "--trust-domain", "project.internal").returncode == 0
    assert project.run("trust", "export", "-o", "other.json").returncode == 0
    other = project.folder / "other.json"
    agent = told.json("agents", "show", "assistant", "--trust", other)
    assert agent["instances"][0]["credential"].startswith("does not verify: ")


def test_an_agent_that_was_never_seen(project):
    assert project.run("init").returncode == 0
    shown = project.run("agents", "show", "assistant").stdout
    assert "no instance has been seen" in shown


def test_an_agent_that_nobody_knows(told):
    result = told.run("agents", "show", "nobody")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error [agent.unknown]: there is no agent nobody; known: assistant\n"


def test_trust_export_writes_public_keys_and_no_others(told, tmp_path):
    exported = told.run("trust", "export")
    assert (exported.returncode, exported.stderr) == (0, "")
    document = TrustDocument.loads(exported.stdout.strip().encode())
    assert [key.use for key in document.keys] == ["issuer", "log", "admin"]
    assert document.trust_domain == "project.internal"
    for key in json.loads(exported.stdout)["keys"]:
        assert set(key["jwk"]) == {"kty", "crv", "x"}
    target = tmp_path / "trust.json"
    assert told.run("trust", "export", "--output", target).returncode == 0
    assert target.read_text() == exported.stdout
    assert stat.S_IMODE(target.stat().st_mode) & 0o022 == 0


def test_trust_export_overwrites_nothing(told, tmp_path):
    target = tmp_path / "trust.json"
    target.write_text("mine")
    result = told.run("trust", "export", "-o", target)
    assert result.returncode == 2
    assert result.stderr.startswith("error [storage.exists]: ")
    assert target.read_text() == "mine"


@pytest.mark.parametrize("command", [["agents", "list"], ["trust", "export"]])
def test_a_state_alone_is_enough(told, tmp_path, command):
    result = told.run(*command, "--state", told.state, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
