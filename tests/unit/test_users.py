"""Principals who come with a token of the company's identity provider, and not by a program's word.

The chain, the log and the policy say which issuer knew the principal. Each refusal has its code,
and beside it what is allowed.
"""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from login_provider import ISSUER, LOGGED_IN, Provider

from agentguard import (
    AgentguardError,
    ConfigError,
    Decision,
    Guard,
)
from agentguard.domain import config, domain
from agentguard.proof import ProofStore, Receiver, proof_headers, prove_request

POLICY_INPUTS: list[Any] = []
ROLES = {"reader": {"scope": ["read"]}, "writer": {"scope": ["read", "write"]}}


@pytest.fixture
def provider(tmp_path):
    return Provider(tmp_path)


def opened(provider, *, users: dict[str, Any] | None = None, **tables: Any) -> Guard:
    def policy(call):
        POLICY_INPUTS.append(call)
        return Decision.allow()

    issuers = {"acme": provider.table(**(users or {}))}
    config = {"agents": {"clerk": {}}, "roles": ROLES, "issuers": issuers, **tables}
    return Guard.ephemeral(policy, config=config)


@pytest.fixture
def guard(provider):
    with opened(provider) as guard:
        yield guard


def code_of(function, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(AgentguardError) as caught:
        function(*args, **kwargs)
    return caught.value.code


def lend(guard, token, **more: Any):
    return guard.delegate(subject_token=token, scope=["read"], **more)


# --- who lends ------------------------------------------------------------------------------------


def test_the_chain_names_the_token_and_its_issuer(guard, provider):
    token = provider.token()
    lent = lend(guard, token)
    root = lent.chain.root
    assert (root.principal, root.assurance) == ("user:alice", "oidc")
    assert root.subject_token.as_json() == {
        "iss": ISSUER,
        "sub": "f3b1c2d4-0000-4000-8000-000000000001",
        "sha256": hashlib.sha256(token.encode()).hexdigest(),
        "jti": "onrtac:7f2d1e44",
        "sid": "b1946ac9",
        "auth_time": LOGGED_IN,
        "acr": "1",
        "roles": [],
    }
    by_word = guard.delegate("user:alice", scope=["read"])  # the twin
    assert (by_word.chain.root.assurance, by_word.chain.root.subject_token) == ("application", None)


def test_the_policy_sees_how_the_principal_was_known(guard, provider):
    agent, tool = guard.new_agent("clerk"), guard.tool(name="read")(lambda: "text")
    with lend(guard, provider.token()):
        assert agent.call(tool) == "text"
    seen = POLICY_INPUTS[-1]["delegation"]
    assert seen["assurance"] == "oidc"
    assert seen["subject_token"] == {
        "iss": ISSUER,
        "sub": "f3b1c2d4-0000-4000-8000-000000000001",
        "auth_time": LOGGED_IN,
        "acr": "1",
    }
    with guard.delegate("user:alice", scope=["read"]):  # the twin
        agent.call(tool)
    assert "subject_token" not in POLICY_INPUTS[-1]["delegation"]
    assert guard.verify().problems == ()


def test_a_tools_server_sees_who_vouches_for_the_user(guard, provider, tmp_path):
    url = "https://payments.example"
    receiver = Receiver(url, guard.trust, ProofStore(tmp_path / "proofs.sqlite"))
    seen: list[Any] = []

    def ask():
        headers = proof_headers(prove_request("GET", f"{url}/", b"")).items()
        seen.append(receiver.verify("GET", "/", "", headers, b""))

    agent, tool = guard.new_agent("clerk"), guard.tool(name="read")(ask)
    with lend(guard, provider.token(), audience=[url]):
        agent.call(tool)
    with guard.delegate("user:alice", scope=["read"], audience=[url]):  # the twin
        agent.call(tool)
    assert {caller.principal for caller in seen} == {"user:alice"}
    by_token, by_word = (caller.chain.root for caller in seen)
    assert (by_token.assurance, by_token.subject_token.iss) == ("oidc", ISSUER)
    assert by_token.subject_token.auth_time == LOGGED_IN
    assert (by_word.assurance, by_word.subject_token) == ("application", None)


def test_the_token_itself_is_in_no_entry(guard, provider):
    token = provider.token()
    agent, tool = guard.new_agent("clerk"), guard.tool(name="read")(lambda: "text")
    with lend(guard, token):
        agent.call(tool)
    reader = guard.reader()
    entries = [body for _index, body in reader.entries()]
    assert entries
    for part in (token, token.split(".")[1], token.split(".")[2]):
        assert not any(part.encode() in body for body in entries)


def test_a_name_beside_the_token_has_to_be_the_tokens(guard, provider):
    token = provider.token()
    assert lend(guard, token, subject="user:alice").principal == "user:alice"
    assert code_of(lend, guard, token, subject="user:bob") == "principal.assurance"
    assert code_of(lend, guard, token, subject="alice") == "principal.malformed"
    assert code_of(guard.delegate, scope=["read"]) == "principal.malformed"  # and no name at all


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"preferred_username": "alice smith"}, "jwt.subject"),
        ({"preferred_username": ""}, "jwt.malformed"),
        ({"preferred_username": 5}, "jwt.malformed"),
        ({"preferred_username": ["alice"]}, "jwt.malformed"),
        ({"without": "preferred_username"}, "jwt.subject"),
        ({"jti": "\u202e"}, "jwt.malformed"),
        ({"acr": "x" * 1025}, "jwt.malformed"),
        ({"aud": "another"}, "jwt.audience"),
        ({"iss": ISSUER + "/"}, "jwt.issuer"),
        ({"exp": 5}, "jwt.expired"),
        ({"cnf": {"jkt": "x" * 43}}, "jwt.bound"),
    ],
)
def test_a_token_that_names_nobody_for_us_is_refused(guard, provider, change, code):
    assert lend(guard, provider.token()).principal == "user:alice"  # the twin
    assert code_of(lend, guard, provider.token(**change)) == code


def test_a_token_that_was_changed_is_refused(guard, provider, tmp_path):
    token = provider.token()
    head, claims, signature = token.split(".")
    other = tmp_path / "other"
    other.mkdir()
    for changed in (
        f"{head}.{claims}.{signature[:-4]}AAAA",
        f"{head}.{provider.token(preferred_username='root').split('.')[1]}.{signature}",
        Provider(other, "other").token(),
        "",
        "a.b.c",
    ):
        assert code_of(lend, guard, changed).startswith(("jwt.", "base64.", "json."))
    assert code_of(guard.delegate, subject_token=5, scope=["read"]) == "jwt.malformed"
    lend(guard, token)  # the twin


def test_an_issuer_without_users_knows_no_principal(provider):
    """Its tokens are for workloads."""
    table = provider.table()
    del table["users"]
    with opened(provider, issuers={"acme": table}) as guard:
        assert code_of(lend, guard, provider.token()) == "jwt.issuer"


# --- which kind of token --------------------------------------------------------------------------


def test_an_id_token_is_no_access_token(provider):
    """Whoever gets an ID token to log somebody in may not use the ID token to act for them."""
    with opened(provider) as guard:
        for change in ({}, {"typ": "Bearer"}):  # by its nonce, if not by its typ
            token = provider.id_token(aud="agentguard", **change)
            assert code_of(lend, guard, token) == "jwt.type"
        lend(guard, provider.token())  # the twin


def test_an_access_token_is_no_id_token(provider):
    with opened(provider, users={"token": "ID", "audience": ["chat"]}) as guard:
        assert lend(guard, provider.id_token()).principal == "user:alice"  # the twin
        assert code_of(lend, guard, provider.id_token(aud="agentguard")) == "jwt.audience"
        assert code_of(lend, guard, provider.token(aud="chat")) == "jwt.type"
        said: dict[str, Any] = {"aud": "chat", "typ": "ID"}
        lend(guard, provider.token(without="scope", **said))  # the twin
        assert code_of(lend, guard, provider.token(**said)) == "jwt.type"
        for change in ({"typ": "Bearer"}, {"client_id": "chat"}, {"header": "at+jwt"}):
            token = provider.token(**{**said, "without": "scope", **change})
            assert code_of(lend, guard, token) == "jwt.type"


# --- for how long ---------------------------------------------------------------------------------


def test_a_delegation_ends_with_the_token(guard, provider):
    """And with the leeway, for which the token counts."""
    ends = lend(guard, provider.token(exp=int(time.time()) + 60)).expires_at.timestamp()
    assert ends - time.time() == pytest.approx(90, abs=5)
    short = lend(guard, provider.token(), expires_in=10).expires_at.timestamp()
    assert short - time.time() == pytest.approx(10, abs=5)
    assert code_of(lend, guard, provider.token(), expires_in=0) == "hop.malformed"


def test_a_token_that_ends_within_this_second_has_expired(guard, provider):
    """A delegation lasts for a whole second at least. The leeway is 30 seconds."""
    ends = int(time.time()) - 30 + 0.999
    assert code_of(lend, guard, provider.token(exp=ends)) == "jwt.expired"
    lend(guard, provider.token(exp=ends + 30))  # the twin


def test_the_configuration_lets_it_last_longer(provider):
    """A task may last longer than the five minutes of a token."""
    with opened(provider, users={"longest": 7200}) as guard:
        ends = lend(guard, provider.token(exp=int(time.time()) + 60)).expires_at.timestamp()
        assert ends - time.time() == pytest.approx(3600, abs=5)
        ends = lend(guard, provider.token(), expires_in=9000).expires_at.timestamp()
        assert ends - time.time() == pytest.approx(7200, abs=5)


# --- what the principal may lend ------------------------------------------------------------------


def test_the_table_of_principals_limits_what_is_lent(provider):
    principals = {"user:alice": {"roles": ["reader"]}}
    with opened(provider, principals=principals) as guard:
        assert lend(guard, provider.token()).scope == ("read",)
        assert code_of(guard.delegate, subject_token=provider.token(), scope=["write"]) == (
            "scope.exceeded"
        )
        bob = provider.token(preferred_username="bob")
        assert code_of(lend, guard, bob) == "principal.unknown"


def test_the_roles_of_the_token_limit_what_is_lent(provider):
    """The provider's own roles, which [roles] does not have, give nothing."""
    with opened(provider, users={"roles": "realm_access.roles"}, principals={}) as guard:
        lent = guard.delegate(subject_token=provider.token())
        assert lent.scope == ("read",)
        login = lent.chain.root.subject_token
        assert login is not None
        assert login.roles == ("reader",)
        agent, tool = guard.new_agent("clerk"), guard.tool(name="read")(lambda: "text")
        with lent:
            agent.call(tool)
        assert POLICY_INPUTS[-1]["delegation"]["roles"] == ["reader"]
        both = provider.token(realm_access={"roles": ["writer", "reader", "writer"]})
        assert guard.delegate(subject_token=both).scope == ("read", "write")
        assert code_of(guard.delegate, subject_token=provider.token(), scope=["write"]) == (
            "scope.exceeded"
        )
        without: list[Any] = [{"roles": []}, {}, None]  # None leaves the claim out
        for roles in without:
            none = provider.token(realm_access=roles)
            assert code_of(guard.delegate, subject_token=none) == "scope.exceeded"
        others: list[Any] = [{"roles": "reader"}, {"roles": ["reader", 5]}, "reader", ["reader"]]
        for roles in others:
            other = provider.token(realm_access=roles)
            assert code_of(guard.delegate, subject_token=other) == "jwt.malformed"


# --- an application's word is not enough ----------------------------------------------------------


def test_without_a_token_nobody_lends_where_a_token_is_wanted(provider):
    principals = {"assurance": "oidc", "user:alice": {"roles": ["reader"]}}
    with opened(provider, principals=principals) as guard:
        assert code_of(guard.delegate, "user:alice", scope=["read"]) == "principal.assurance"
        lent = lend(guard, provider.token())  # the twin
        assert guard.resume(lent.dumps()).principal == "user:alice"


DURABLE = """
trust_domain = "acme.example"
state = "state"
anchor = ""

[policy]
path = "authz.rego"

[agents.clerk]

[roles.reader]
scope = ["read"]

[principals."user:alice"]
roles = ["reader"]
"""


def test_a_delegation_that_was_stored_before_is_refused_where_a_token_is_wanted(tmp_path):
    path = tmp_path / "agentguard.toml"
    path.write_text(DURABLE, encoding="utf-8")
    policy = "package agent.authz\nallow if true\n"
    (tmp_path / "authz.rego").write_text(policy, encoding="utf-8")
    domain.found(config.load(path), b"correct horse", now=datetime.now(UTC))
    with Guard.open(path, passphrase=b"correct horse") as guard:
        stored = guard.delegate("user:alice").dumps()
        assert guard.resume(stored).principal == "user:alice"  # the twin
    more = '\n[principals]\nassurance = "oidc"\n'
    path.write_text(DURABLE.replace("\n[principals.", f"{more}[principals."), encoding="utf-8")
    with Guard.open(path, passphrase=b"correct horse") as guard:
        assert code_of(guard.resume, stored) == "principal.assurance"


# --- the configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({"claim": ""}, "claim: expected a string that is not empty"),
        ({"claim": 5}, "claim: expected a string"),
        ({"prefix": "agent:"}, "prefix: expected the beginning of a principal's name"),
        ({"token": "refresh"}, "token: expected 'access' or 'ID'"),
        ({"audience": []}, "audience: expected a list of audiences"),
        ({"roles": "realm_access..roles"}, "roles: expected names of claims"),
        ({"longest": 0}, "longest: expected a whole number of seconds from 1"),
        ({"longest": "1h"}, "longest: expected a whole number"),
        ({"audiences": ["x"]}, "unknown key; did you mean audience"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(provider, users, message):
    with pytest.raises(ConfigError, match=message):
        opened(provider, users=users)


def test_a_mistake_in_the_assurance_is_named(provider):
    with pytest.raises(ConfigError, match="assurance: expected 'application' or 'oidc'"):
        opened(provider, principals={"assurance": "high"})


def test_an_issuer_whose_keys_can_not_be_read_refuses(provider):
    with opened(provider) as guard:
        token = provider.token()
        lend(guard, token)  # the twin
        provider.path.unlink()
        assert code_of(lend, guard, token) == "issuer.unreachable"
        provider.path.write_text("{}", encoding="utf-8")
        assert code_of(lend, guard, token) == "issuer.keys"
