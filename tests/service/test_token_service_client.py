"""Clients of a token service: the library's own two, and one of other people."""

from __future__ import annotations

import asyncio
import gzip
import time
import tracemalloc
from typing import Any

import httpx
import pytest
from authlib.integrations.httpx_client import OAuth2Client
from token_issuer import HttpIssuer, TokenIssuer
from token_service import CHAIN, GRANT, PAYMENTS, TYPES, claims

from agentguard import AgentguardError
from agentguard.delegation import access_token
from agentguard.domain import keystore
from agentguard.proof import ProofStore, Receiver, dpop
from agentguard.proof.headers import encode_chain
from agentguard.proof.target import Target
from agentguard.service.client import AsyncTokenService, TokenService
from agentguard.service.messages import Identity
from agentguard.signing.keys import Ed25519Signer


def code_of(function, *args, **given) -> str:
    with pytest.raises(AgentguardError) as caught:
        function(*args, **given)
    return caught.value.code


def verified(service, issued):
    trust = keystore.load_trust(service.place.folder / "state")
    given: dict[str, Any] = {"at": int(time.time()), "audience": PAYMENTS, "issuer": service.url}
    return access_token.verify(issued.token, issued.chain, trust, **given)


def test_a_program_registers_an_agent_and_exchanges_a_token(service):
    user = service.provider.token()
    with TokenService(service.url) as tokens:
        identity = tokens.register("clerk", workload_token=service.workload())
        got = tokens.exchange(identity, user, scope=["read"], audience=[PAYMENTS])
        again = tokens.register("clerk", workload_token=service.workload(), signer=identity.signer)
    assert verified(service, got.issued).chain.leaf.delegatee == identity.uri == again.uri
    assert got.scope == ("read",)
    assert user not in repr((identity, got))
    assert got.issued.token not in repr(got)


@pytest.mark.parametrize("more", ["/agents", "/agents/", "//", "/?a", "/#a"])
def test_a_url_with_more_than_a_host_is_refused(service, more):
    """The path would be lost: the requests would go to another service of the host."""
    for client in (TokenService, AsyncTokenService):
        assert code_of(client, f"{service.url}{more}") == "config.invalid"
    with TokenService(f"{service.url}/") as tokens:  # the twin
        identity = tokens.register("clerk", workload_token=service.workload())
    assert identity.uri.startswith("spiffe://")


def test_a_server_asks_both_clients_whether_a_token_counts(service):
    workload = service.workload()
    with TokenService(service.url) as client:
        identity = client.register("clerk", workload_token=workload)
        got = client.exchange(identity, service.provider.token())

        async def asked(token, chain):
            async with AsyncTokenService(service.url) as other:
                return await other.introspect(token, workload_token=workload, chain=chain)

        def said(token, chain=None):
            plain = client.introspect(token, workload_token=workload, chain=chain)
            assert plain == asyncio.run(asked(token, chain))
            return plain

        for chain in (None, got.issued.chain):
            assert said(got.issued.token, chain)["sub"] == "user:alice"
        assert said(f"{got.issued.token[:-4]}AAAA") is None
        client.revoke(identity, got.issued)
        assert said(got.issued.token) is None
        shown = {"workload_token": service.provider.token()}
        assert code_of(client.introspect, got.issued.token, **shown) == "service.refused"


@pytest.mark.parametrize("active", [None, "true", 1, {}])
def test_an_answer_that_does_not_say_whether_a_token_counts_is_an_error(active):
    answer = httpx.Response(200, json={"active": active})
    http = httpx.Client(transport=httpx.MockTransport(lambda _request: answer))
    tokens = TokenService("https://agents.example", http=http)
    assert code_of(tokens.introspect, "a.b.c", workload_token="a.b.c") == "service.malformed"


def test_the_proof_of_an_identity_verifies_at_a_receiver(service):
    with TokenService(service.url) as tokens:
        identity = tokens.register("clerk", workload_token=service.workload())
        token = tokens.exchange(identity, service.provider.token()).issued.token
    proof = identity.proof("GET", f"{PAYMENTS}/invoices?page=2", access_token=token)
    target = Target.parse(f"{PAYMENTS}/invoices")
    given: dict[str, Any] = {"access_token": token, "at": int(time.time())}
    assert dpop.verify(proof, "GET", target, **given).thumbprint == claims(token)["cnf"]["jkt"]
    assert code_of(dpop.verify, proof, "POST", target, **given) == "proof.request"


def test_the_asynchronous_twin_does_the_same(service):
    async def work():
        async with AsyncTokenService(service.url) as tokens:
            workload = service.workload()
            identity = await tokens.register("clerk", workload_token=workload)
            user = service.provider.token()
            return identity, await tokens.exchange(identity, user, audience=[PAYMENTS])

    identity, got = asyncio.run(work())
    assert verified(service, got.issued).chain.leaf.delegatee == identity.uri


def test_a_refusal_says_why_and_holds_no_token(service):
    with TokenService(service.url) as tokens:
        identity = tokens.register("clerk", workload_token=service.workload())
        user = service.provider.token()
        with pytest.raises(AgentguardError) as caught:
            tokens.exchange(identity, user, scope=["admin"])
        assert caught.value.code == "service.refused"
        assert "invalid_scope" in str(caught.value)
        assert user not in str(caught.value)
        workload = service.workload("batch-1")
        assert code_of(tokens.register, "clerk", workload_token=workload) == ("service.refused")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(201, json={"credential": 1, "uri": "x", "expires_at": 5}),
        httpx.Response(201, content=b"[" * 300_000),
        httpx.Response(201, json={}),
        httpx.Response(201, json={"credential": "a\r\nb: c", "uri": "x", "expires_at": 5}),
        httpx.Response(201, json={"credential": "a.b.c", "uri": "x\x1b[2J", "expires_at": 5}),
        httpx.Response(302, headers={"Location": "https://evil.example"}),
    ],
    ids=["HTML", "a number", "long", "nothing", "a header", "a terminal", "a redirect"],
)
def test_an_answer_of_something_else_is_an_error(answer):
    http = httpx.Client(transport=httpx.MockTransport(lambda _request: answer))
    identities = TokenService("https://agents.example", http=http)
    assert code_of(identities.register, "clerk", workload_token="a.b.c") == "service.malformed"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"access_token": "a.b.c\x1b[2J"}, "service.malformed"),
        ({"access_token": ""}, "service.malformed"),
        ({"access_token": "a b"}, "service.malformed"),
        ({"scope": "read\x1b[2J"}, "service.malformed"),
        ({"scope": "read  pay"}, "service.malformed"),
        ({"token_type": "Bearer"}, "service.malformed"),
        ({}, None),
    ],
    ids=str,
)
def test_a_token_that_could_steer_a_terminal_or_a_header_is_refused(changes, code):
    signer = Ed25519Signer.from_seed(bytes(32))
    identity = Identity("clerk", "spiffe://a/agent/clerk/x", "a.b.c", 5, signer)
    said = {"access_token": "a.b.c", "token_type": "DPoP", "expires_in": 5, "scope": "read pay"}
    answer = httpx.Response(200, json={**said, CHAIN: {}, **changes})
    http = httpx.Client(transport=httpx.MockTransport(lambda _request: answer))
    tokens = TokenService("https://agents.example", http=http)
    if code is None:  # the twin
        assert tokens.exchange(identity, "a.b.c").scope == ("read", "pay")
    else:
        assert code_of(tokens.exchange, identity, "a.b.c") == code


def test_a_service_that_is_not_there_is_unreachable():
    with TokenService("http://127.0.0.1:9") as tokens:
        code = code_of(tokens.register, "clerk", workload_token="a.b.c")
    assert code == "service.unreachable"


@pytest.mark.parametrize("url", ["http://agents.example", "agents.example", "ftp://a", ""])
def test_a_service_that_others_could_read_is_refused(url):
    assert code_of(TokenService, url) == "config.invalid"


def registered_by_both(url: str, workload: str) -> list[str]:
    """Return what each of the two clients says: the URI of an identity, or the code of an error."""

    async def wait():
        async with AsyncTokenService(url) as tokens:
            return await tokens.register("clerk", workload_token=workload)

    def plain():
        with TokenService(url) as tokens:
            return tokens.register("clerk", workload_token=workload)

    said: list[str] = []
    for register in (plain, lambda: asyncio.run(wait())):
        try:
            said.append(register().uri)
        except AgentguardError as error:
            said.append(error.code)
    return said


def test_a_proxy_of_the_environment_sees_no_token_that_has_no_tls(service, monkeypatch):
    proxy = HttpIssuer(TokenIssuer())
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    said = registered_by_both(service.url, service.workload())
    assert [one.startswith("spiffe://") for one in said] == [True, True]
    assert proxy.requests == []
    proxy.close()


def test_a_packed_answer_is_not_unpacked(service):
    """A few bytes can become gigabytes."""
    other = HttpIssuer(TokenIssuer())
    packed = gzip.compress(b'{"uri":"spiffe://a","credential":"' + b"x" * 50_000_000 + b'"}')
    other.answers["/identities"] = (201, {"Content-Encoding": "gzip"}, packed)
    tracemalloc.start()
    try:
        assert registered_by_both(other.url, "x") == ["service.malformed"] * 2
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
        other.close()


def test_a_client_of_authlib_exchanges_a_token(service, key, credential):
    endpoint = f"{service.url}/token"
    with OAuth2Client("", token_endpoint_auth_method="none") as client:
        token = client.fetch_token(
            endpoint,
            grant_type=GRANT,
            subject_token=service.provider.token(),
            subject_token_type=f"{TYPES}access_token",
            scope="read",
            audience=PAYMENTS,
            headers={"Workload-Identity-Token": credential, "DPoP": key.proof(endpoint)},
        )
    assert token["token_type"] == "DPoP"
    assert token["scope"] == "read"
    assert claims(token["access_token"])["sub"] == "user:alice"
    assert len(token[CHAIN]["hops"]) == 2


def test_a_tool_s_server_takes_a_token_of_a_service_that_it_names(service, tmp_path):
    with TokenService(service.url) as tokens:
        identity = tokens.register("clerk", workload_token=service.workload())
        user = service.provider.token()
        issued = tokens.exchange(identity, user, audience=[PAYMENTS]).issued
    trust = keystore.load_trust(service.place.folder / "state")

    def caller(issuers, method="GET"):
        store = ProofStore(tmp_path / f"proofs-{len(issuers)}")
        receiver = Receiver(PAYMENTS, trust, store, issuers=issuers, accepts_plain_dpop=True)
        proof = identity.proof("GET", f"{PAYMENTS}/invoices", access_token=issued.token)
        sent = [
            ("authorization", f"DPoP {issued.token}"),
            ("dpop", proof),
            ("agentguard-chain", encode_chain(issued.chain)),
        ]
        return receiver.verify(method, "/invoices", "", sent, b"")

    known = {service.url: "acme.example"}
    assert (caller(known).principal, caller(known).assurance) == ("user:alice", "dpop")
    assert code_of(caller, known, "POST") == "proof.request"
    for others in ({}, {f"{service.url}/": "acme.example"}, {service.url: "evil.example"}):
        assert code_of(caller, others) == "proof.issuer"
