"""Tokens that an honest provider has signed, passed for something that they are not.

A program's token for a user's, a log-out for a log-in, a user of one provider for a user of
another. Each refusal stands beside what is allowed.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from login_provider import AUDIENCE, Provider, acme
from token_issuer import TokenIssuer, fresh

from agentguard import AgentguardError, ConfigError, Decision, Denied, Guard
from agentguard.delegation.terms import Lender
from agentguard.domain import config, domain
from agentguard.service import messages
from agentguard.service.reading import Request
from agentguard.signing.canonical import dumps, loads_object
from agentguard.signing.keys import Ed25519Signer

PARTNER = "https://login.partner.example"
PASSPHRASE = b"correct horse"


@pytest.fixture
def provider(tmp_path):
    return Provider(tmp_path)


@pytest.fixture
def partner():
    return TokenIssuer("partner", issuer=PARTNER)


def opened(issuers: dict[str, Any], **tables: Any) -> Guard:
    whole = {"agents": {"clerk": {}}, "issuers": issuers, **tables}
    return Guard.ephemeral(lambda _call: Decision.allow(), config=whole)


def partner_table(folder: Path, partner: TokenIssuer, **users: Any) -> dict[str, Any]:
    path = folder / "partner.json"
    path.write_bytes(partner.jwks())
    return {
        "issuer": PARTNER,
        "jwks_file": str(path),
        "audience": [AUDIENCE],
        "algorithms": ["ES256"],
        "users": {"claim": "preferred_username", **users},
    }


def lender_of(guard: Guard, token: str) -> str:
    return guard.delegate(subject_token=token, scope=["read"]).principal


def refused(guard: Guard, token: str) -> AgentguardError:
    with pytest.raises(AgentguardError) as caught:
        guard.delegate(subject_token=token, scope=["read"])
    assert token not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("claims", "user"),
    [
        ({"preferred_username": "service-account-chat"}, {"preferred_username": "service-chat"}),
        ({"azp": "Chat", "preferred_username": "service-account-chat"}, {"azp": "Chat"}),
        ({"sub": "chat"}, {"sub": "chat-1"}),
        ({"azp": None, "client_id": "batch", "sub": "batch"}, {"client_id": "batch"}),
        ({"azp": None, "cid": "0oa1", "sub": "0oa1"}, {"cid": "0oa1"}),
        ({"sub": "chat@clients"}, {"sub": "alice@clients"}),
        ({"gty": "client-credentials"}, {"gty": "password"}),
        ({"idtyp": "app"}, {"idtyp": "user"}),
    ],
    ids=str,
)
def test_a_token_that_a_program_got_for_itself_is_no_users(provider, claims, user):
    with opened({"acme": provider.table()}) as guard:
        assert refused(guard, provider.token(**claims)).code == "jwt.subject"
        assert lender_of(guard, provider.token(**user)).startswith("user:")  # the twin


@pytest.mark.parametrize(
    "claims",
    [
        {"act": {"sub": "admin"}},
        {"act": {}},
        {"may_act": {"sub": "https://other.example"}},
        {"may_act": {"sub": "spiffe://evil.example"}},
        {"may_act": {"sub": "DOMAIN/agent/clerk"}},
        {"may_act": {"sub": "DOMAIN", "iss": "https://other.example"}},
        {"may_act": {"sub": ["DOMAIN"]}},
        {"may_act": [{"sub": "DOMAIN"}]},
        {"may_act": "DOMAIN"},
        {"may_act": {}},
    ],
    ids=str,
)
def test_a_token_with_which_another_party_acts_lends_nothing(provider, claims):
    """RFC 8693, 4.1 and 4.4: the provider says who may act for the user."""
    with opened({"acme": provider.table()}) as guard:
        domain = guard.delegate(subject_token=provider.token(), scope=["read"]).chain.root.delegator
        said = loads_object(dumps(claims).replace(b"DOMAIN", domain.encode()))
        assert refused(guard, provider.token(**said)).code == "jwt.actor"
        allowed = provider.token(may_act={"sub": domain})  # the twin
        assert lender_of(guard, allowed) == "user:alice"


def test_a_client_in_the_configuration_is_no_user(provider):
    """Whatever else its token says, as where the provider puts a name into each token."""
    tables = {"acme": provider.table()}
    clients = {"web": {"issuer": "acme", "subject": "web-1"}}
    with opened(tables, clients=clients) as guard:
        assert refused(guard, provider.token(sub="web-1")).code == "jwt.subject"
        assert lender_of(guard, provider.token(sub="web-2")) == "user:alice"  # the twin
    clients = {"web": {"issuer": "acme", "subject": "chat"}}
    azp = {"acme": {**provider.table(), "subject_claim": "azp"}}
    with opened(azp, clients=clients) as guard:  # a user comes through the program
        assert lender_of(guard, provider.token(azp="chat")) == "user:alice"


@pytest.mark.parametrize("kind", ["access", "ID"])
def test_a_token_that_tells_of_a_log_out_is_no_users(provider, kind):
    """A provider sends such a token to programs, when a user has logged out."""
    logout: dict[str, Any] = {"http://schemas.openid.net/event/backchannel-logout": {}}
    good: dict[str, Any] = {"without": "scope" if kind == "ID" else "", "typ": None}
    with opened({"acme": provider.table(token=kind)}) as guard:
        for change in ({"events": logout}, {"typ": "Logout"}, {"typ": "Refresh"}):
            assert refused(guard, provider.token(**{**good, **change})).code == "jwt.type"
        assert lender_of(guard, provider.token(**good)) == "user:alice"  # the twin


def test_a_token_that_says_nothing_of_its_kind_is_no_access_token(provider):
    """An ID token may be without a nonce, and for the same audience."""
    silent: dict[str, Any] = {"without": "scope", "typ": None}
    marks: list[dict[str, Any]] = [
        {"header": "at+jwt"},
        {"typ": "Bearer"},
        {"scp": ["files"]},
        {"client_id": "chat"},
        {"scope": "openid", "without": "", "token_use": "access"},
    ]
    with opened({"acme": provider.table()}) as guard:
        for change in ({}, {"token_use": "access"}, {"scp": "files", "token_use": "id"}):
            assert refused(guard, provider.token(**{**silent, **change})).code == "jwt.type"
        for mark in marks:  # the twins
            assert lender_of(guard, provider.token(**{**silent, **mark})) == "user:alice"
    with opened({"acme": provider.table(token="ID")}) as guard:
        for mark in marks:
            assert refused(guard, provider.token(**{**silent, **mark})).code == "jwt.type"
        assert (
            lender_of(guard, provider.token(**silent, token_use="id")) == "user:alice"
        )  # the twin


@pytest.mark.parametrize("mark", ["nonce", "at_hash", "c_hash"])
def test_an_id_token_that_names_the_client_is_no_access_token(provider, mark):
    """So are those of zitadel/oidc. Of the three marks, no access token has one."""
    named: dict[str, Any] = {"without": "scope", "typ": None, "client_id": "chat", mark: "x"}
    doubtful: list[dict[str, Any]] = [{"typ": "Bearer"}, {"header": "at+jwt"}, {"scp": "files"}]
    with opened({"acme": provider.table()}) as guard:
        assert refused(guard, provider.token(**named)).code == "jwt.type"
        assert lender_of(guard, provider.token(**{**named, mark: None})) == "user:alice"
        for change in doubtful:
            assert refused(guard, provider.token(**{**named, **change})).code == "jwt.type"
    with opened({"acme": provider.table(token="ID")}) as guard:
        assert lender_of(guard, provider.token(**named)) == "user:alice"  # the twin
        assert refused(guard, provider.token(**{**named, mark: None})).code == "jwt.type"
        for change in doubtful:
            assert refused(guard, provider.token(**{**named, **change})).code == "jwt.type"


def test_a_token_without_a_subject_is_no_users_whatever_names_the_programs(provider):
    """The first hop names the subject. A program's subject may be in another claim."""
    table = {**provider.table(), "subject_claim": "azp"}
    with opened({"acme": table}) as guard:
        wrong: list[Any] = ["", 5, ["alice"], {"name": "alice"}]
        for sub in wrong:
            assert refused(guard, provider.token(sub=sub)).code == "jwt.malformed"
        assert refused(guard, provider.token(without="sub")).code == "jwt.subject"
        lent = guard.delegate(subject_token=provider.token(without="azp"), scope=["read"])
        login = lent.chain.root.subject_token
        assert login is not None
        assert login.sub == "f3b1c2d4-0000-4000-8000-000000000001"


def test_an_address_that_the_provider_has_not_verified_names_nobody(provider):
    with opened({"acme": provider.table(claim="email")}) as guard:
        unverified: list[Any] = [False, "false", "true", 1]
        for said in unverified:
            token = provider.token(email="alice@acme.example", email_verified=said)
            assert refused(guard, token).code == "jwt.subject"
        for twin in ({"email_verified": True}, {}):
            token = provider.token(email="alice@acme.example", **twin)
            assert lender_of(guard, token) == "user:alice@acme.example"


@pytest.mark.parametrize(
    "name",
    ["agent:clerk", "Alice", "\u0430lice", "alice\u200b", "alice ", "x" * 15_000, "a\nb", "\u202e"],
    ids=ascii,
)
def test_a_refused_name_is_shown_in_ascii_and_cut_short(provider, name):
    """The message goes into logs, and a name may come from a stranger's registration."""
    with opened({"acme": provider.table()}) as guard:
        error = refused(guard, provider.token(preferred_username=name, realm_access=None))
        assert error.code in ("jwt.subject", "jwt.malformed")
        assert str(error).isascii()
        assert str(error).isprintable()
        assert len(str(error)) < 400
        assert lender_of(guard, provider.token()) == "user:alice"  # the twin


STATE = """
trust_domain = "acme.example"
state = "state"
anchor = ""

[policy]
path = "authz.rego"

[agents.clerk]

[roles.reader]
scope = ["read"]

[roles.admin]
scope = ["read", "write"]

{acme}{users}

[principals]
{principals}

[principals."user:alice"]
roles = ["admin"]
"""


@pytest.fixture
def place(provider, tmp_path):
    """Make configurations of one state; ``policy`` says who may call tools."""

    def configured(name: str, users: str = "", principals: str = "", policy: str = "true") -> Path:
        path = tmp_path / f"{name}.toml"
        given = {"acme": acme(), "users": users, "principals": principals}
        path.write_text(STATE.format(**given), encoding="utf-8")
        (tmp_path / "authz.rego").write_text(f"package agent.authz\nallow if {policy}\n")
        if not (tmp_path / "state").exists():
            domain.found(config.load(path), PASSPHRASE, now=datetime.now(UTC))
        return path

    return configured


def denied(agent: Any, tool: Any) -> str:
    with pytest.raises(Denied) as caught:
        agent.call(tool)
    return caught.value.decision.code


def test_another_guard_of_the_process_brings_no_word_in_place_of_a_token(provider, place):
    """A guard that wants tokens meets a delegation of one that takes an application's word."""
    lax, strict = place("lax"), place("strict", principals='assurance = "oidc"')
    with (
        Guard.open(lax, passphrase=PASSPHRASE) as lender_guard,
        Guard.open(strict, passphrase=PASSPHRASE) as guard,
    ):
        agent, tool = guard.new_agent("clerk"), guard.tool(name="read")(lambda: "text")
        with lender_guard.delegate("user:alice", scope=["read"]):
            assert denied(agent, tool) == "principal.assurance"
        with lender_guard.delegate(subject_token=provider.token(), scope=["read"]):  # the twin
            assert agent.call(tool) == "text"


def test_the_policy_sees_no_role_that_the_token_does_not_give(provider, place):
    """The provider has taken the role away, and the table [principals] still has it."""
    path = place(
        "roles", 'roles = "realm_access.roles"', policy='"admin" in input.delegation.roles'
    )
    with Guard.open(path, passphrase=PASSPHRASE) as guard:
        agent, tool = guard.new_agent("clerk"), guard.tool(name="read")(lambda: "text")
        for roles in (["reader"], []):
            token = provider.token(realm_access={"roles": roles})
            with guard.delegate(subject_token=token, scope=["read"] if roles else []):
                assert denied(agent, tool) == "policy.denied"
        token = provider.token(realm_access={"roles": ["admin"]})
        with guard.delegate(subject_token=token, scope=["read"]):  # the twin
            assert agent.call(tool) == "text"


def described(error: BaseException) -> str:
    """Return all that an error and its causes say."""
    shown: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        shown += [repr(cause), repr(vars(cause))]
        cause = cause.__cause__ or cause.__context__
    return "".join(shown)


@pytest.mark.parametrize(
    "claims",
    [{"exp": 5}, {"aud": "x"}, {"iss": PARTNER}, {"typ": "ID"}, {"sub": "\u00e9"}],
    ids=str,
)
def test_a_refused_token_is_in_no_error(provider, claims):
    with opened({"acme": provider.table()}) as guard:
        token = provider.token(**claims)
        for sent in (token, f"{token[:-5]}AAAAA", f"{token}x", token.replace(".", "..")):
            assert sent not in described(refused(guard, sent))


def test_what_carries_a_token_does_not_show_the_token():
    """A tool that reports errors may show the variables of each function."""
    key = Ed25519Signer.from_seed(os.urandom(32))
    sent = messages.registration("https://agents.example", "clerk", "the-token", key)
    request = Request("POST", "/identities", sent.headers, b"the-token")
    lender = Lender("user:alice", "the-token")
    assert (lender.token, sent.headers["Authorization"]) == ("the-token", "Bearer the-token")
    assert "the-token" not in repr((lender, sent, request))
    assert "user:alice" in repr(lender)  # the twin


def test_the_users_of_two_providers_do_not_share_names(provider, partner, tmp_path):
    """An alice of one provider is not the alice of the other."""
    same = {"acme": provider.table(), "partner": partner_table(tmp_path, partner)}
    with pytest.raises(ConfigError, match="a prefix of its own"):
        opened(same)
    apart = partner_table(tmp_path, partner, prefix="user:partner/")
    with opened({"acme": provider.table(), "partner": apart}) as guard:  # the twin
        theirs = partner.token(preferred_username="alice", scope="openid", **fresh())
        assert lender_of(guard, theirs) == "user:partner/alice"
        assert lender_of(guard, provider.token()) == "user:alice"


def test_a_name_under_the_prefix_of_another_provider_is_refused(provider, partner, tmp_path):
    apart = partner_table(tmp_path, partner, prefix="user:partner/")
    with opened({"acme": provider.table(), "partner": apart}) as guard:
        intruder = provider.token(preferred_username="partner/alice")
        assert refused(guard, intruder).code == "jwt.subject"
        near = provider.token(preferred_username="partners/alice")
        assert lender_of(guard, near) == "user:partners/alice"  # the twin
    with opened({"acme": provider.table()}) as guard:  # where nobody else has these names
        assert lender_of(guard, intruder) == "user:partner/alice"
