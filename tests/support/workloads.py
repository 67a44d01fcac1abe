"""Issuers of three kinds that know services: a cluster, SPIRE, and an OAuth provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from token_issuer import AUDIENCE, SUBJECT, TokenIssuer

from agentguard import AgentguardError, Decision, Guard

SPIFFE_ID = "spiffe://acme.example/ns/prod/sa/web"


def table(folder: Path, issuer: TokenIssuer, services: Any, /, **more: Any) -> dict[str, Any]:
    """Return ``[issuers.NAME]`` of an issuer whose keys are in a file."""
    path = folder / f"{issuer.name}.json"
    path.write_bytes(issuer.jwks())
    usual = {
        "issuer": issuer.issuer,
        "jwks_file": str(path),
        "audience": [AUDIENCE],
        "algorithms": [issuer.alg],
        "services": services,
    }
    return {key: value for key, value in {**usual, **more}.items() if value is not None}


def opened(issuers: dict[str, Any], policy: Any = lambda _call: Decision.allow()) -> Guard:
    return Guard.ephemeral(policy, config={"agents": {"clerk": {}}, "issuers": issuers})


class Workloads:
    """The three issuers; ``tables`` is ``[issuers]``."""

    def __init__(self, folder: Path) -> None:
        self.cluster = TokenIssuer("cluster", issuer="https://kubernetes.default.svc")
        self.spire = TokenIssuer("spire", issuer=None, use="jwt-svid", says_alg=False)
        self.sso = TokenIssuer("sso", alg="RS256", issuer="https://sso.acme.example")
        domain = {"issuer": None, "spiffe": "acme.example"}
        self.tables = {
            "cluster": table(folder, self.cluster, {"service:billing": SUBJECT}),
            "spire": table(folder, self.spire, {"service:web": SPIFFE_ID}, **domain),
            "sso": table(folder, self.sso, {"service:reports": "reports"}, subject_claim="azp"),
        }


def refused(guard: Guard, token: str, **terms: Any) -> str:
    """Have a service lend with a token that does not count; return the reason code."""
    with pytest.raises(AgentguardError) as caught:
        guard.delegate("user:alice", scope=["read"], via_token=token, **terms)
    assert token not in str(caught.value)
    return caught.value.code
