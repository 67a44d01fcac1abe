"""Arguments, facts and configuration that pretend: none of them writes an agent's identity.

The general statement is a property (``properties/test_identity_fields.py``); here stand the
attempts that somebody would make, and forged records of identity.
"""

from __future__ import annotations

import dataclasses

import pytest

from agentguard import AgentguardError, ConfigError, Decision, Denied, Guard
from agentguard.adapters import ToolSpec
from agentguard.audit.kinds.identities import IdentityEntry
from agentguard.call.invocation import timestamp
from agentguard.call.vocabulary import RESERVED
from agentguard.domain import config
from agentguard.identity import credential
from agentguard.identity.credential import AgentProfile
from agentguard.signing.keys import Ed25519Signer


@pytest.fixture
def documents():
    return []


@pytest.fixture
def watched(documents):
    """A guard that keeps what its policy sees; only ``writer`` may act."""

    def policy(document):
        documents.append(document)
        return Decision.allow() if document["agent"]["name"] == "writer" else Decision.deny("no")

    return Guard.ephemeral(policy)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_arguments_named_like_identity_fields_stay_under_args(watched, documents, ran, name):
    def anything(**fields):
        ran.append(fields)

    tool = watched.tool(anything)
    reader = watched.new_agent("reader")
    for value in ("writer", {"name": "writer", "id": "spiffe://x"}, None):
        with pytest.raises(Denied):
            reader.call(tool, **{name: value})
    assert ran == []
    for document in documents:
        assert document["agent"]["name"] == "reader"
        assert document["agent"]["id"] == reader.id
        assert document["delegation"] is None
        assert document["action"] == "anything"
        assert "approval" not in document
    watched.new_agent("writer").call(tool, **{name: "x"})
    assert ran == [{name: "x"}]


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_an_attribute_can_not_be_lifted_over_a_reserved_name(name):
    with pytest.raises(ConfigError, match="reserved"):
        ToolSpec("t", "", {}, "m:t", attributes={name: "x"})
    ToolSpec("t", "", {}, "m:t", attributes={f"my_{name}": "x"})


def test_an_attribute_named_like_nothing_plain_is_refused():
    for name in ("", "a-b", "a.b", "1a", "agent\n", "\ud800"):
        with pytest.raises(ConfigError):
            ToolSpec("t", "", {}, "m:t", attributes={name: "x"})


def test_the_resource_is_escaped_whole(watched, documents):
    @watched.tool(resource="repo:{owner}/{repo}")
    def read(owner, repo):
        return None

    writer = watched.new_agent("writer")
    writer.call(read, owner="acme", repo="x/../../secrets?a=b#c d\u00e9\n")
    writer.call(read, owner="acme/x", repo="y")
    assert [document["resource"] for document in documents] == [
        "repo:acme/x%2F..%2F..%2Fsecrets%3Fa%3Db%23c%20d%C3%A9%0A",
        "repo:acme%2Fx/y",
    ]


@pytest.mark.parametrize("value", [None, 1.5, ["x"], {"x": 1}, 2**60, b"x"], ids=repr)
def test_a_resource_takes_only_plain_values(watched, ran, value):
    @watched.tool(resource="repo:{repo}")
    def read(repo):
        ran.append(repo)

    with pytest.raises(Denied) as caught:
        watched.new_agent("writer").call(read, repo=value)
    assert caught.value.code == "arguments.resource"
    assert ran == []


@pytest.mark.parametrize(
    "name",
    ["", "Writer", "writer ", "a/b", "../x", "wr\u0456ter", "x" * 65, "-a", "a.", "a\n", "\ud800"],
)
def test_a_name_that_could_be_taken_for_another_is_no_agents(name, tmp_path):
    guard = Guard.ephemeral(lambda _: Decision.allow())
    with pytest.raises(ConfigError):
        guard.new_agent(name)
    with pytest.raises(ConfigError) as caught:
        config.parse({"agents": {name: {}}}, source="agentguard.toml", base=tmp_path)
    assert "agentguard.toml" in str(caught.value)


def test_an_unknown_agent_is_refused_where_agents_are_configured(place):
    with place.open() as guard:
        with pytest.raises(ConfigError, match="known agents: reader, writer") as caught:
            guard.new_agent("stranger")
        assert caught.value.code == "agent.unknown"
        guard.new_agent("reader")


def test_two_instances_of_an_agent_have_keys_of_their_own(watched):
    one, two = watched.new_agent("writer"), watched.new_agent("writer")
    assert one.id != two.id
    assert one.id.rpartition("/")[0] == two.id.rpartition("/")[0]
    assert one.id.endswith(one._caller.instance().actor.signer.public_key.thumbprint)


# --- forged records -------------------------------------------------------------------------------


@pytest.fixture
def attacker():
    """Has a key of its own, and can write into the log, but holds no other key."""
    return Ed25519Signer.from_seed(bytes(range(32)))


def test_an_instance_that_signs_as_another_is_found(guard, note, examine):
    """Authority comes from the credential: a name in the statement proves nothing."""
    reader, writer = guard.new_agent("reader"), guard.new_agent("writer")
    reader.call(note, text="as itself")
    assert examine(guard).ok
    reader._caller.instance().actor = dataclasses.replace(
        reader._caller.instance().actor, uri=writer.id, name="writer"
    )
    reader.call(note, text="as writer")
    (first, *_others) = examine(guard).problems
    assert "signature" in first.what or "key" in first.what


def test_an_instance_under_another_name_of_its_own_is_found(guard, note, examine):
    agent = guard.new_agent("reader")
    agent._caller.instance().actor = dataclasses.replace(
        agent._caller.instance().actor, name="writer"
    )
    agent.call(note, text="x")
    assert not examine(guard).ok


def test_a_credential_from_a_strange_issuer_is_found(guard, attacker, clock, examine):
    key = Ed25519Signer.from_seed(b"k" * 32).public_key
    now = int(clock.now.timestamp())
    home = guard._parts.runtime.domain
    for issuer, problems in ((home.issuer, 0), (attacker, 1)):
        issued = credential.issue(
            issuer, home.trust.trust_domain, AgentProfile("root"), key, now=now, jti="credential-1"
        )
        guard._parts.runtime._ports.log.append(IdentityEntry.new(issued, at=timestamp(clock.now)))
        assert len(examine(guard).problems) == problems


def test_an_agent_without_a_credential_on_record_is_found(guard, attacker, note, examine):
    agent = guard.new_agent("a")
    uri = credential.agent_uri(guard.trust.trust_domain, "a", attacker.public_key)
    agent._caller.instance().actor = dataclasses.replace(
        agent._caller.instance().actor, signer=attacker, uri=uri
    )
    agent.call(note, text="x")
    assert any("credential" in problem.what for problem in examine(guard).problems)


def test_a_stolen_credential_without_its_key_is_of_no_use(guard, attacker, note, examine):
    victim = guard.new_agent("a")
    victim.call(note, text="x")
    assert examine(guard).ok
    # the uri stays
    victim._caller.instance().actor = dataclasses.replace(
        victim._caller.instance().actor, signer=attacker
    )
    victim.call(note, text="y")
    assert not examine(guard).ok


def test_errors_of_identity_are_ours(attacker, guard):
    for token in ("", "a.b.c", "x" * 100, "e30.e30.e30"):
        with pytest.raises(AgentguardError):
            credential.verify(token, guard.trust, at=0)
