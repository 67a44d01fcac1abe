"""Principals who come with a token, through a guard server: the server verifies the token."""

from __future__ import annotations

import asyncio
import os

import pytest
from login_provider import ISSUER, Provider
from served_place import founded_place

from agentguard import AgentguardError, Denied

ISSUERS = f"""
[issuers.acme]
issuer = "{ISSUER}"
jwks_file = "jwks.json"
audience = ["agentguard"]
algorithms = ["RS256"]
services = {{ "service:ci" = "ci-1" }}

[issuers.acme.users]
claim = "preferred_username"

[clients.tests]
uid = {os.getuid()}
agents = ["clerk"]
"""


@pytest.fixture
def founded(programs):
    with founded_place(programs, ISSUERS) as place:
        yield place


@pytest.fixture
def provider(founded):
    return Provider(founded.folder)


@pytest.fixture
def guard(founded, provider):
    founded.start()
    return founded.connect()


def code_of(function, *args, **kwargs) -> str:
    with pytest.raises(AgentguardError) as caught:
        function(*args, **kwargs)
    return caught.value.code


def test_a_principal_with_a_token_lends_to_an_agent(guard, provider, founded):
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "noted")
    with guard.delegate(subject_token=provider.token(), scope=["read"]) as lent:
        assert agent.call(tool) == "noted"
    assert (lent.principal, lent.chain.root.assurance) == ("user:alice", "oidc")
    guard.flush()
    (call,) = founded.calls()
    assert call.predicate["principal"] == "user:alice"
    assert founded.verify().problems == ()


def test_a_service_with_a_token_stands_in_the_chain(guard, provider, founded):
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "noted")
    token = provider.token(sub="ci-1")
    given = {"subject_token": provider.token(), "scope": ["read"]}
    with guard.delegate(via_token=token, **given) as lent:
        assert agent.call(tool) == "noted"
        assert asyncio.run(agent.acall(tool)) == "noted"
    assert (lent.via, lent.chain.root.via_token.subject) == ("service:ci", "ci-1")
    assert code_of(guard.delegate, via_token=provider.token(), **given) == "jwt.subject"
    other = {"via": "service:shop", "via_token": token}
    assert code_of(guard.delegate, **other, **given) == "principal.assurance"
    guard.flush()
    assert len(founded.calls()) == 2
    assert founded.verify().problems == ()


async def test_a_token_of_another_task_of_the_event_loop(guard, provider):
    async def note():
        return "noted"

    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(note)
    async with guard.delegate(subject_token=provider.token(), scope=["read"]):
        assert await agent.acall(tool) == "noted"


def test_a_client_that_vouches_for_nobody_needs_a_token(guard, provider):
    assert code_of(guard.delegate, "user:alice", scope=["read"]) == "principal.refused"
    token = provider.token()
    assert guard.delegate(subject_token=token, scope=["read"]).principal == "user:alice"  # the twin
    given = {"subject_token": token, "scope": ["read"]}
    assert code_of(guard.delegate, "user:bob", **given) == "principal.assurance"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"aud": "another"}, "jwt.audience"),
        ({"exp": 5}, "jwt.expired"),
        ({"iss": "https://evil.example"}, "jwt.issuer"),
        ({"preferred_username": "agent:clerk"}, "jwt.subject"),
    ],
)
def test_a_refusal_of_the_server_is_raised_as_it_is(guard, provider, change, code):
    token = provider.token(**change)
    assert code_of(guard.delegate, subject_token=token, scope=["read"]) == code
    guard.delegate(subject_token=provider.token(), scope=["read"])  # the twin


def test_the_server_says_nothing_of_a_token(guard, provider, founded):
    tokens = [provider.token(), provider.token(exp=5), provider.token(aud="x")]
    for token in tokens[1:]:
        with pytest.raises(AgentguardError) as caught:
            guard.delegate(subject_token=token, scope=["read"])
        assert token not in repr(caught.value)
    agent, tool = guard.new_agent("clerk"), guard.tool(name="far")(lambda: "far")
    with guard.delegate(subject_token=tokens[0], scope=["read"]), pytest.raises(Denied):
        agent.call(tool)
    everything = founded.said().encode()
    for path in (founded.folder / "state").rglob("*"):
        everything += path.read_bytes() if path.is_file() else b""
    for token in tokens:
        assert token.split(".")[2].encode() not in everything


def test_a_client_learns_no_file_of_the_server_s_keys(guard, provider, founded):
    token = provider.token()
    guard.delegate(subject_token=token, scope=["read"])  # the twin
    for text, code in (("{}", "issuer.keys"), (None, "issuer.unreachable")):
        if text is None:
            provider.path.unlink()
        else:
            provider.path.write_text(text, encoding="utf-8")
        with pytest.raises(AgentguardError) as caught:
            guard.delegate(subject_token=token, scope=["read"])
        assert caught.value.code == code
        assert "jwks.json" not in str(caught.value)
    assert "jwks.json" in founded.said()
