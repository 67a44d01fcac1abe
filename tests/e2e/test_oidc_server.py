"""Users of a real provider that is not Keycloak: the example server of zitadel/oidc.

Its issuer ends in a slash, its access tokens have no scope, and its ID tokens name the client. The
log-in is one with a code and PKCE.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
from oidc_server import CLIENT, OidcServer
from token_service import claims

from agentguard import AgentguardError, Decision, Guard


@pytest.fixture(scope="module")
def tokens(oidc):
    return oidc.log_in()


@contextmanager
def guarding(oidc: OidcServer, issuer: str | None = None, **users: Any):
    table = {
        "issuer": oidc.issuer if issuer is None else issuer,
        "jwks_url": oidc.jwks_url,
        "audience": [CLIENT],
        "algorithms": ["RS256"],
        "users": {"claim": "sub", **users},
    }
    config: dict[str, Any] = {
        "agents": {"clerk": {"max_scope": ["read"]}},
        "issuers": {"acme": table},
    }
    with Guard.ephemeral(lambda _call: Decision.allow(), config=config) as guard:
        yield guard


def lender_of(guard: Guard, token: str) -> str:
    return guard.delegate(subject_token=token, scope=["read"]).principal


def code_of(guard: Guard, token: str) -> str:
    with pytest.raises(AgentguardError) as caught:
        lender_of(guard, token)
    return caught.value.code


@pytest.mark.parametrize("kind", ["access", "ID"])
def test_an_agent_acts_for_a_user_who_has_logged_in(oidc, tokens, kind):
    token = tokens["access_token" if kind == "access" else "id_token"]
    with guarding(oidc, token=kind) as guard:
        agent = guard.new_agent("clerk")
        tool = guard.tool(name="read", requires=["read"])(lambda: "text")
        with guard.delegate(subject_token=token, scope=["read"]) as lent:
            assert agent.call(tool) == "text"
    root: Any = lent.chain.root
    assert (root.principal, root.assurance) == ("user:id1", "oidc")
    assert (root.subject_token.iss, root.subject_token.sub) == (oidc.issuer, "id1")
    assert root.subject_token.jti == claims(token).get("jti")
    assert root.subject_token.auth_time == claims(token).get("auth_time")


def test_a_token_of_the_other_kind_is_refused(oidc, tokens):
    with guarding(oidc) as guard:
        assert code_of(guard, tokens["id_token"]) == "jwt.type"
        assert lender_of(guard, tokens["access_token"]) == "user:id1"
    with guarding(oidc, token="ID") as guard:
        assert code_of(guard, tokens["access_token"]) == "jwt.type"
        assert lender_of(guard, tokens["id_token"]) == "user:id1"


def test_each_user_is_a_principal(oidc, tokens):
    other = oidc.log_in("test-user2")["access_token"]
    with guarding(oidc) as guard:
        assert lender_of(guard, tokens["access_token"]) == "user:id1"
        assert lender_of(guard, other) == "user:id2"


def test_the_issuer_is_compared_with_its_slash(oidc, tokens):
    with guarding(oidc, issuer=oidc.url) as guard:
        assert code_of(guard, tokens["access_token"]) == "jwt.issuer"
    with guarding(oidc) as guard:
        assert lender_of(guard, tokens["access_token"]) == "user:id1"


def test_a_tampered_token_is_refused(oidc, tokens):
    head, payload, signature = tokens["access_token"].split(".")
    other = oidc.log_in("test-user2")["access_token"].split(".")
    with guarding(oidc) as guard:
        for wrong in (f"{head}.{payload}.{other[2]}", f"{head}.{other[1]}.{signature}"):
            assert code_of(guard, wrong) == "jwt.signature"
        assert lender_of(guard, f"{head}.{payload}.{signature}") == "user:id1"
