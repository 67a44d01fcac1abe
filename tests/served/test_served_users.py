"""Principals who come with a token, through a guard server: the server verifies the token."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime

import pytest
from login_provider import ISSUER, Provider
from served_place import PASSPHRASE, founded_place
from token_issuer import TokenIssuer

from agentguard import AgentguardError, DelegationError, Denied
from agentguard.adapters import refusing_agent
from agentguard.audit.kinds.identities import LogOutEntry
from agentguard.call.invocation import timestamp
from agentguard.domain import administration, domain

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
    assert (lent.via, lent.chain.root.via_token.sub) == ("service:ci", "ci-1")
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


# --- a server that is started anew ----------------------------------------------------------------


def started_anew(founded, meanwhile=lambda: None):
    founded.stop()
    meanwhile()
    founded.start()


def revoked(founded, name):
    administration.revoke(founded.settings, PASSPHRASE, name, note="gone", now=datetime.now(UTC))


def logged_out(founded):
    """Put a log-out of alice's session on record, as the token service does."""
    home = domain.take_up(founded.settings, PASSPHRASE)
    now = datetime.now(UTC)
    log = home.open_log(now)
    token = TokenIssuer("login", alg="RS256", issuer=ISSUER).token(
        sub="f3b1c2d4-0000-4000-8000-000000000001",
        sid="b1946ac9",
        events={"http://schemas.openid.net/event/backchannel-logout": {}},
        jti="out-1",
        aud="agentguard",
        iat=int(now.timestamp()) + 60,
    )
    log.append(LogOutEntry(at=timestamp(max(now, log.last_at)), token=token).record())
    log.close()


def test_a_delegation_of_a_token_goes_on_when_the_server_is_started_anew(guard, provider, founded):
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "noted")
    lent = guard.delegate(subject_token=provider.token(), scope=["read"])
    service = guard.delegate(
        subject_token=provider.token(), via_token=provider.token(sub="ci-1"), scope=["read"]
    )
    for one in (lent, service):
        assert agent.under(one).call(tool) == "noted"
    started_anew(founded)
    for one in (lent, service):
        assert agent.under(one).call(tool) == "noted"
        assert guard.resume(one.dumps()).id == one.id
    guard.flush()
    assert {(call.principal, call.decision) for call in founded.calls()} == {
        ("user:alice", "allow")
    }
    assert founded.verify().problems == ()


ENDS = {
    "delegation.revoked": lambda founded, lent: revoked(founded, lent.id),
    "delegation.logged_out": lambda founded, _lent: logged_out(founded),
}


@pytest.mark.parametrize("code", ENDS)
def test_a_delegation_that_ended_meanwhile_stays_refused(guard, provider, founded, code):
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "noted")
    lent = guard.delegate(subject_token=provider.token(), scope=["read"])
    assert agent.under(lent).call(tool) == "noted"
    started_anew(founded, lambda: ENDS[code](founded, lent))
    assert code_of(agent.under(lent).call, tool) == code
    assert code_of(guard.resume, lent.dumps()) == code
    guard.flush()
    assert [(one.principal, one.code) for one in founded.calls()] == [
        ("user:alice", ""),
        ("user:alice", code),
    ]


def test_a_chain_without_the_token_with_which_it_began_is_refused(guard, provider, founded):
    """A chain is no secret: it goes to each receiver of a proof."""
    token, other = provider.token(), provider.token(jti="another")
    service = provider.token(sub="ci-1")
    lent = guard.delegate(subject_token=token, via_token=service, scope=["read"])
    link = guard._parts._link

    def resumed(**shown):
        asked = {"op": "resume", "may_be_revoked": True, **shown}
        return link.request(asked, lent.dumps()).header["scope"]

    for shown in (
        {},
        {"subject_token": other, "via_token": service},
        {"subject_token": token},
        {"subject_token": token, "via_token": other},
        {"subject_token": None, "via_token": service},
        {"subject_token": lent.chain.root.subject_token.sha256, "via_token": service},
        {"subject_token": [token], "via_token": service},
    ):
        assert code_of(resumed, **shown) == "principal.refused"
    assert resumed(subject_token=token, via_token=service) == ["read"]  # the twin


def test_a_denial_is_proved_by_a_chain_with_the_token_with_which_it_began(guard, provider, founded):
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "noted")
    lent = guard.delegate(subject_token=provider.token(), scope=["read"], expires_in=1)
    started_anew(founded, lambda: time.sleep(1.1))
    assert code_of(agent.under(lent).call, tool) == "hop.expired"
    with founded.connect() as other:  # has the chain, and not the token
        refused = DelegationError("it is over", code="hop.expired", delegation=lent.dumps())
        shows = refusing_agent(other.new_agent("clerk"), refused)
        assert code_of(shows.call, other.tool(name="note")(lambda: "noted")) == "hop.expired"
    said = [(call.principal, call.is_proved) for call in founded.calls()]
    assert said == [("user:alice", True), ("user:alice", False)]
    assert founded.verify().problems == ()


def test_a_program_that_lost_the_token_is_denied_and_the_denial_is_alices(guard, provider, founded):
    stored = guard.delegate(subject_token=provider.token(), scope=["read"]).dumps()
    with founded.connect() as other:
        agent, tool = other.new_agent("clerk"), other.tool(name="note")(lambda: "noted")
        with pytest.raises(DelegationError) as caught:
            other.resume(stored)
        assert code_of(refusing_agent(agent, caught.value).call, tool) == "principal.refused"
    (call,) = founded.calls()
    assert (call.principal, call.is_proved, call.code) == ("user:alice", False, "principal.refused")
    assert founded.verify().problems == ()
