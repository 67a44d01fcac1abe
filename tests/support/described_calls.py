"""How a caller shows who they are at each endpoint of the token service, as the description says.

So tests that loop over the description cover an endpoint that is new in it.
"""

from __future__ import annotations

from token_service import Key, Service

from agentguard.service.openapi import DESCRIPTION

Schemes = frozenset[str]
"""The names of the security schemes that a request needs together."""


def schemes_of(path: str, method: str = "post") -> list[Schemes]:
    """Return the ways to show who one is; an empty one where nobody has to."""
    required = DESCRIPTION["paths"][path][method].get("security", [{}])
    return [frozenset(one) for one in required]


def media_type_of(path: str) -> str:
    """Return the media type of an endpoint's body."""
    (kind,) = DESCRIPTION["paths"][path]["post"]["requestBody"]["content"]
    return str(kind)


class Caller:
    """An instance of the agent clerk, which is a client with a workload token as well."""

    def __init__(self, service: Service, key: Key, credential: str) -> None:
        self.service, self.key, self.credential = service, key, credential
        self.workload = service.workload()
        answer = service.exchange(key, credential)
        self.access_token = str(answer.json()["access_token"])

    def headers(self, path: str, schemes: Schemes) -> dict[str, str]:
        """Return the headers for one way, with a fresh proof."""
        made: dict[str, str] = {}
        token = None
        if "workload" in schemes:
            token = self.workload
            made["Authorization"] = f"Bearer {token}"
        if "token" in schemes:
            token = self.access_token
            made["Authorization"] = f"DPoP {token}"
        if "credential" in schemes:
            made["Workload-Identity-Token"] = self.credential
        if "proof" in schemes:
            made["DPoP"] = self.key.proof(f"{self.service.url}{path}", token)
        known = {"workload", "token", "credential", "proof"}
        assert schemes <= known, "say here how a caller shows this"
        return made
