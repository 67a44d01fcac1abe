"""``[issuers]``, ``[clients]`` with an issuer, and a client's proof in ``[server]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentguard.domain.config import parse
from agentguard.domain.config.server import Host
from agentguard.errors import ConfigError
from agentguard.identity.jwt import ABSENT

ISSUER: dict[str, Any] = {
    "issuer": "https://issuer.example",
    "jwks_file": "keys.json",
    "audience": ["agentguard"],
    "algorithms": ["RS256"],
}
CLIENT: dict[str, Any] = {"issuer": "cluster", "subject": "billing"}
TLS: dict[str, Any] = {"listen": "127.0.0.1:7443", "certificate": "s.pem", "key": "s.key"}
HOST: dict[str, Any] = {"url": "tls://guard.example:7443"}
OAUTH: dict[str, Any] = {
    "token_url": "https://sso.example/token",
    "client_id": "billing",
    "client_secret_file": "secret",
}


def read(**tables: Any) -> Any:
    return parse(tables, source="agentguard.toml", base=Path("/base"))


def issuers(**members: Any) -> Any:
    table = {name: value for name, value in {**ISSUER, **members}.items() if value is not None}
    return read(issuers={"cluster": table}).issuers["cluster"]


def mistake(**tables: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(**tables)
    return str(caught.value)


def test_an_issuer_has_defaults():
    issuer = issuers()
    rule = issuer.rule
    assert (rule.name, rule.issuer, rule.trust_domain) == ("cluster", ISSUER["issuer"], None)
    assert (rule.subject_claim, rule.leeway) == ("sub", 30)
    assert rule.types == {"JWT", "at+jwt", ABSENT}
    assert issuer.jwks_file == Path("/base/keys.json")


def test_an_issuer_has_values_of_its_own():
    issuer = issuers(
        jwks_file=None,
        jwks_url="http://127.0.0.1:8080/keys?a=1",
        types=["at+jwt"],
        subject_claim="azp",
        leeway=0,
    )
    assert issuer.jwks_url == "http://127.0.0.1:8080/keys?a=1"
    assert issuer.rule.types == {"at+jwt"}
    assert (issuer.rule.subject_claim, issuer.rule.leeway) == ("azp", 0)
    assert issuers(jwks_file=None, jwks_url="https://x.example/k", ca="ca.pem").ca == Path(
        "/base/ca.pem"
    )


def test_a_spiffe_trust_domain_is_an_issuer():
    rule = issuers(issuer=None, spiffe="acme.example").rule
    assert (rule.issuer, rule.trust_domain) == (None, "acme.example")
    assert rule.types == {"JWT", "JOSE", ABSENT}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"issuer": None}, "issuers.cluster.issuer: expected one of issuer"),
        ({"spiffe": "acme.example"}, "expected one of issuer"),
        ({"issuer": None, "spiffe": "spiffe://a"}, "without spiffe://"),
        ({"issuer": None, "spiffe": "a", "subject_claim": "azp"}, "of a JWT-SVID, it is sub"),
        ({"subject_claim": ""}, "not empty"),
        ({"audience": None}, "a list of audiences"),
        ({"audience": []}, "a list of audiences"),
        ({"audience": [""]}, "a list of audiences"),
        ({"audience": "agentguard"}, "a list of strings"),
        ({"algorithms": None}, "a list of some of RS256"),
        ({"algorithms": []}, "a list of some of RS256"),
        ({"algorithms": ["none"]}, "a list of some of RS256"),
        ({"algorithms": ["RS256", "HS256"]}, "a list of some of RS256"),
        ({"algorithms": ["rs256"]}, "a list of some of RS256"),
        ({"leeway": 301}, "at most 300 seconds"),
        ({"leeway": -1}, "a whole number from 0"),
        ({"jwks_file": None}, "expected one of jwks_file and jwks_url"),
        ({"jwks_url": "https://x.example"}, "expected one of jwks_file and jwks_url"),
        ({"jwks_file": None, "jwks_url": "http://x.example/k"}, "begin the URL with https"),
        ({"jwks_file": None, "jwks_url": "http://127.0.0.1.evil.example/k"}, "https"),
        ({"jwks_file": None, "jwks_url": "ftp://x.example/k"}, "expected a URL"),
        ({"jwks_file": None, "jwks_url": "https://u:p@x.example/k"}, "expected a URL"),
        ({"jwks_file": None, "jwks_url": "https://x.example/k#f"}, "expected a URL"),
        ({"jwks_file": None, "jwks_url": "https://x.example:k"}, "expected a URL"),
        ({"ca": "ca.pem"}, "expected no ca"),
        ({"audiences": ["a"]}, "unknown key"),
    ],
)
def test_a_mistake_in_an_issuer_says_what_to_do(members, message):
    with pytest.raises(ConfigError) as caught:
        issuers(**members)
    assert message in str(caught.value)
    assert "u:p" not in str(caught.value)


def test_an_issuer_has_one_name():
    assert "the issuer a is the same" in mistake(issuers={"a": ISSUER, "b": ISSUER})
    slash = {**ISSUER, "issuer": "https://issuer.example/"}
    assert len(read(issuers={"a": ISSUER, "b": slash}).issuers) == 2  # compared exactly


def test_a_client_has_an_issuer_and_a_subject():
    client = read(issuers={"cluster": ISSUER}, clients={"billing": CLIENT}).clients["billing"]
    assert client.mark == (None, None, "cluster", "billing")
    other = {**CLIENT, "subject": "other"}
    both = {"billing": CLIENT, "other": other}
    assert len(read(issuers={"cluster": ISSUER}, clients=both).clients) == 2


@pytest.mark.parametrize(
    ("client", "message"),
    [
        ({"issuer": "cluster"}, "the subject of the client's tokens"),
        ({"uid": 7, "subject": "x"}, "the subject of the client's tokens"),
        ({**CLIENT, "uid": 7}, "one of uid"),
        ({**CLIENT, "spiffe": "spiffe://a.example/b"}, "one of uid"),
        ({**CLIENT, "issuer": "clusters"}, "the NAME of a table [issuers.NAME]"),
        ({"subject": "x"}, "one of uid"),
        ({}, "issuer with subject"),
    ],
)
def test_a_mistake_in_a_client_says_what_to_do(client, message):
    assert message in mistake(issuers={"cluster": ISSUER}, clients={"billing": client})


def test_a_client_may_name_claims_of_its_tokens():
    client = {**CLIENT, "claims": {"typ": "Bearer", "client_id": "billing"}}
    got = read(issuers={"cluster": ISSUER}, clients={"billing": client}).clients["billing"]
    assert got.claims == (("client_id", "billing"), ("typ", "Bearer"))
    for wrong in ("client_id", {"client_id": 5}):
        tables = {"issuers": {"cluster": ISSUER}, "clients": {"a": {**CLIENT, "claims": wrong}}}
        assert "claims: expected a table of strings" in mistake(**tables)
    local = {"uid": 7, "claims": {"client_id": "billing"}}
    assert "claims: expected no claims" in mistake(clients={"local": local})


def test_two_clients_can_not_have_one_subject():
    clients = {"a": CLIENT, "b": {**CLIENT, "agents": ["x"]}}
    assert "the client a is the same" in mistake(issuers={"cluster": ISSUER}, clients=clients)


def test_a_server_needs_the_authority_of_certificates_where_a_client_has_one():
    tables: dict[str, Any] = {
        "issuers": {"cluster": ISSUER},
        "server": {"url": "unix:s", "tls": TLS},
    }
    assert read(**tables, clients={"billing": CLIENT}).server.tls.ca is None
    web = {"spiffe": "spiffe://acme.example/web"}
    for clients in ({"web": web}, {"web": web, "billing": CLIENT}, {"local": {"uid": 7}}, {}):
        assert "the clients' certificates" in mistake(**tables, clients=clients)
    tables["server"]["tls"] = {**TLS, "ca": "ca.pem"}
    assert read(**tables, clients={"web": web}).server.tls.ca == Path("/base/ca.pem")


@pytest.mark.parametrize(
    "proof",
    [{"certificate": "c", "key": "k"}, {"token_file": "/run/token"}, {"oauth": OAUTH}],
    ids=["certificate", "file", "oauth"],
)
def test_a_client_has_one_proof(proof):
    host = read(server={**HOST, **proof}).server.address
    assert isinstance(host, Host)
    assert (host.certificate is None) == ("certificate" not in proof)
    assert host.token_file == (Path("/run/token") if "token_file" in proof else None)
    if host.oauth is not None:
        assert host.oauth.client_secret_file == Path("/base/secret")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "one proof of who this client is"),
        ({"certificate": "c"}, "the certificate and the key"),
        ({"key": "k"}, "the certificate and the key"),
        ({"certificate": "c", "key": "k", "token_file": "t"}, "one proof of who this client is"),
        ({"token_file": "t", "oauth": OAUTH}, "one proof of who this client is"),
        ({"token_file": "t", "url": "unix:s"}, "are for a url that begins with tls://"),
        ({"oauth": OAUTH, "url": "unix:s"}, "are for a url that begins with tls://"),
        ({"oauth": {**OAUTH, "token_url": "http://sso.example/t"}}, "begin the URL with https"),
        ({"oauth": {**OAUTH, "client_id": ""}}, "not empty"),
        ({"oauth": {**OAUTH, "client_secret_file": ""}}, "not empty"),
        ({"oauth": {**OAUTH, "client_secret": "s"}}, "unknown key"),
        ({"oauth": {"client_id": "a"}}, "expected a string"),
    ],
)
def test_a_mistake_in_a_clients_proof_says_what_to_do(members, message):
    assert message in mistake(server={**HOST, **members})


def test_a_token_service_without_a_guard_server_hears_what_to_add():
    service = {"issuer": "https://agents.example", "listen": "127.0.0.1:8787"}
    assert 'add one with a url, such as url = "unix:guard.sock"' in mistake(service=service)
    there = {**service, "audiences": ["https://pay.example"]}
    assert read(service=there, server={"url": "unix:guard.sock"}).service is not None
