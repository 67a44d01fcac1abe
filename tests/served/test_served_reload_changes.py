"""Which changes of a configuration a running guard server can load, and which need a new start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentguard import ServerError
from agentguard.domain import config
from agentguard.server.reload import changes

TABLES: dict[str, Any] = {
    "trust_domain": "acme.example",
    "policy": {"path": "authz.rego"},
    "server": {"url": "unix:s"},
    "issuers": {
        "idp": {
            "issuer": "https://idp.example",
            "audience": ["guard"],
            "algorithms": ["RS256"],
            "jwks_file": "jwks.json",
        }
    },
}
TLS = {"listen": "127.0.0.1:7443", "certificate": "c.pem", "key": "k.pem", "ca": "ca.pem"}
SERVICE = {"issuer": "https://guard.example", "listen": "127.0.0.1:8443"}
WEB = {"spiffe": "spiffe://acme.example/web", "agents": ["clerk"]}
JOB = {"issuer": "idp", "subject": "job", "agents": ["clerk"]}


def of(**tables: Any) -> config.Config:
    return config.parse({**TABLES, **tables}, source="agentguard.toml", base=Path("/project"))


@pytest.mark.parametrize(
    "change",
    [
        {"trust_domain": "other.example"},
        {"state": "elsewhere"},
        {"anchor": "elsewhere"},
        {"keys": {"passphrase_file": "passphrase"}},
        {"server": {"url": "unix:s", "drain": 3}},
        {"telemetry": {"arguments": True}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_start_has_fixed_is_named(change):
    with pytest.raises(ServerError) as refused:
        changes(of(), of(**change, agents={"clerk": {}}))
    assert refused.value.code == "server.reload"
    assert f"changes {next(iter(change))}:" in str(refused.value)
    assert changes(of(), of(agents={"clerk": {}})) == ("agents",)  # the twin


def test_clients_change_unless_the_server_is_a_token_service():
    assert changes(of(), of(clients={"job": JOB})) == ("clients",)
    with pytest.raises(ServerError, match="changes clients:"):
        changes(of(service=SERVICE), of(service=SERVICE, clients={"job": JOB}))
    assert changes(of(service=SERVICE), of(service=SERVICE, agents={"clerk": {}})) == ("agents",)


def test_the_first_and_the_last_client_with_a_token_need_a_new_start_with_tls():
    server = {"url": "unix:s", "tls": TLS}

    def with_clients(**clients: Any) -> config.Config:
        return of(server=server, clients=clients)

    one, both = with_clients(web=WEB), with_clients(web=WEB, job=JOB)
    for earlier, now in ((one, both), (both, one)):
        with pytest.raises(ServerError, match="client with a token"):
            changes(earlier, now)
    more = with_clients(web=WEB, job=JOB, second={**JOB, "subject": "second"})
    assert changes(both, more) == ("clients",)
