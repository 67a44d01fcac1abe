"""All who verify tokens of one issuer share its keys, and so the fetches of the keys."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from login_provider import ISSUER
from served_place import PASSPHRASE, founded_place
from token_issuer import HttpIssuer, TokenIssuer, fresh
from token_service import CLERK, CONFIG, WORKLOAD

from agentguard import AgentguardError
from agentguard.delegation.terms import Lender
from agentguard.guard.embedded import Embedded, open_embedded
from agentguard.service.parts import open_parts

URL = "https://agents.example"


@pytest.fixture
def provider():
    served = HttpIssuer(TokenIssuer("login", alg="RS256", issuer=ISSUER))
    yield served
    served.close()


def lend(guard: Embedded, lender: Lender) -> object:
    given: dict[str, Any] = {"scope": ["read"], "audience": None, "expires_in": 60, "max_depth": 2}
    return guard.delegations.begin(lender, via=None, task_id=None, max_calls=None, **given)


def code_of(call: Callable[..., object], *given: Any, **named: Any) -> str:
    with pytest.raises(AgentguardError) as caught:
        call(*given, **named)
    return str(caught.value.code)


def test_tokens_of_every_kind_have_an_issuer_asked_once(programs, provider):
    """Whoever sends tokens with unknown keys steers one fetch in 30 seconds, at every entrance."""
    config = CONFIG.replace("URL", URL).replace("LISTEN", "127.0.0.1:1")
    keys = f'jwks_url = "{provider.url}/jwks"\nservices = {{ "service:ci" = "ci-1" }}'
    with founded_place(programs, config.replace('jwks_file = "jwks.json"', keys)) as place:
        guard = open_embedded(place.settings, lambda: PASSPHRASE, is_server=True)
        with closing(guard):
            parts = open_parts(place.settings, guard)

            def token(**claims: Any) -> str:
                kinds = {"scope": "x", "preferred_username": "alice", "sub": "a-uuid"}
                header = {"kid": claims.pop("kid", "unknown"), "typ": claims.pop("typ", "JWT")}
                return provider.issuer.token(header, **{**fresh(), **kinds, **claims})

            for _ in range(2):
                user = token(aud="agentguard")
                assert code_of(lend, guard, Lender(None, user)) == "jwt.key"
                via = Lender("user:alice", via_token=token(aud=WORKLOAD, sub="ci-1"))
                assert code_of(lend, guard, via) == "jwt.key"
                work = token(aud=WORKLOAD, sub="web-1")
                assert code_of(parts.clients.client_of, work) == "server.token"
                ended = token(aud="agentguard", typ="logout+jwt")
                assert code_of(parts.logouts.verify, ended, now=0) == "jwt.key"
                jag = token(aud=URL, client_id=CLERK, typ="oauth-id-jag+jwt")
                assert code_of(parts.id_jags.verify, jag, now=0) == "jwt.key"
                assert provider.requests == ["/jwks"]
                guard.reload(place.settings)  # which leaves the issuers as they are
            known = token(aud="agentguard", kid=provider.issuer.kid)  # the twin
            assert lend(guard, Lender(None, known)) is not None
            assert provider.requests == ["/jwks"]
