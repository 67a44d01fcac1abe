"""A file in the working directory does not change what a name means to ``revoke``.

An agent may write there. A file whose name is that of a principal, an agent or an instance, and
which holds another delegation, must not have the other delegation revoked in its place.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from token_files import claims_of, refused, told_as_json

from agentguard.identity.credential import agent_alias
from agentguard.signing import jws


def plant(project, name: str, content: bytes | None = None) -> None:
    """Put alice's delegation, or other content, into a file of this name."""
    path = project.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((project.folder / "task.json").read_bytes() if content is None else content)


def last_hop(project) -> Any:
    """Return the id of the last hop of the token."""
    chain: Any = json.loads((project.folder / "chain.json").read_bytes())
    return jws.parse(chain["hops"][-1]).claims()["jti"]


def revocations(project) -> list[str]:
    return [row["reason"] for row in project.lines("audit", "list") if row["kind"] == "revocation"]


def names(project) -> dict[str, tuple[str, str]]:
    """Return each form of a name as it is typed, and what is revoked."""
    uri = str(claims_of(project)["client_id"])
    alias, thumbprint, jti = agent_alias(uri), uri.rpartition("/")[2], last_hop(project)
    return {
        "a principal": ("user:alice", "user:alice"),
        "a service": ("service:chat", "service:chat"),
        "an agent": ("coder", "agent:coder"),
        "an agent with its kind": ("agent:coder", "agent:coder"),
        "an instance": (uri, uri),
        "a short name": (alias, uri),
        "a short name without its kind": (alias.removeprefix("agent:"), uri),
        "a key": (thumbprint, thumbprint),
        "the id of a hop": (jti, jti),
    }


FORMS = [
    "a principal",
    "a service",
    "an agent",
    "an agent with its kind",
    "an instance",
    "a short name",
    "a short name without its kind",
    "a key",
    "the id of a hop",
]


@pytest.mark.parametrize("content", [None, b"no token"], ids=["a delegation", "no token"])
@pytest.mark.parametrize("form", FORMS)
def test_a_name_is_a_name_whatever_files_there_are(other, form, content):
    typed, revoked = names(other)[form]
    plant(other, typed, content)
    told = told_as_json(other.run("revoke", typed, "--note", "n", "--json"))
    assert told["revoked"] == revoked
    assert revocations(other) == [f"{revoked} is revoked: n"]


@pytest.mark.parametrize("form", FORMS)
def test_written_as_a_path_the_file_is_read(other, form):
    """The twin."""
    typed, _ = names(other)[form]
    plant(other, typed)
    task = json.loads((other.folder / "task.json").read_bytes())
    told = told_as_json(other.run("revoke", f"./{typed}", "--note", "n", "--json"))
    assert told["revoked"] == jws.parse(task["hops"][-1]).claims()["jti"]


@pytest.mark.parametrize(
    "name", ["user:nobody", "agent:later", "spiffe://acme.example/agent/later/x", "in-advance.json"]
)
def test_in_advance_no_file_is_read(other, name):
    plant(other, name)
    result = other.run("revoke", name, "--in-advance", "--note", "n", "--json")
    if name == "in-advance.json":  # which can be nobody's name
        refused(result, "revocation.name")
        assert revocations(other) == []
    else:
        assert told_as_json(result)["revoked"] == name


@pytest.mark.parametrize("name", ["user:alicia", "user:Alice", "user:team/a.json", "agent:codre"])
def test_a_mistyped_name_does_not_become_a_file(other, name):
    plant(other, name)
    code = "revocation.name" if name == "user:Alice" else "revocation.unknown"
    result = other.run("revoke", name, "--note", "n")
    refused(result, code)
    assert revocations(other) == []


def test_whoever_means_a_file_is_told_how_to_write_it(other):
    result = other.run("revoke", "token", "--note", "n")
    refused(result, "revocation.unknown")
    assert "for the file of this name, write ./token" in result.stderr
    assert other.run("revoke", "./token", "--note", "n").returncode == 0
    assert revocations(other) == [f"{last_hop(other)} is revoked: n"]


def test_a_configured_agent_comes_before_a_file_that_is_written_as_a_path(other):
    with (other.folder / "agentguard.toml").open("a") as file:
        file.write('[agents."task.json"]\ntype = "assistant"\n')
    told = told_as_json(other.run("revoke", "task.json", "--note", "n", "--json"))
    assert told["revoked"] == "agent:task.json"


def test_an_id_that_the_log_does_not_know_is_revoked_with_a_warning(other):
    """The id of an access token stands in the entries of calls alone, which are not searched."""
    for jti in ("0" * 32, str(claims_of(other)["jti"])):
        result = other.run("revoke", jti, "--note", "n")
        assert result.returncode == 0
        assert f"no delegation in the log has the id {jti}" in " ".join(result.stderr.split())
    assert other.run("revoke", last_hop(other), "--note", "n").stderr == ""
    assert other.run("revoke", "1" * 32, "--in-advance", "--note", "n").stderr == ""
    assert len(revocations(other)) == 4
