"""What strangers show to each verifier of a caller: hostile texts, and hostile JSON, well signed.

Each is refused with a code, soon, and the good token of the same verifier counts before and after.
The verifiers are those of proofs (HTTP, MCP, DPoP), of users, log-outs and programs, and
``Receiver.verify`` with each header that it reads. Chains, hops and credentials that are signed are
in ``test_hostile_tokens.py``.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hostile_texts import WRONG, payloads, texts
from login_provider import Provider
from proof_scene import URL, ProofScene, check, header, with_header
from token_issuer import NOW, SUBJECT, TokenIssuer
from token_service import Key

from agentguard import AgentguardError, Decision, Guard
from agentguard.domain.config import parse
from agentguard.domain.config.clients import ClientConfig
from agentguard.domain.key_sources import KeySources
from agentguard.domain.logouts import LogOutTokens
from agentguard.identity.jwks import parse_jwks
from agentguard.issuers.keys import FetchedKeys
from agentguard.issuers.trusted import Issuers, TrustedIssuer
from agentguard.proof import bound_request, call_proof, dpop
from agentguard.proof.bound_request import BoundRequest
from agentguard.proof.call_proof import BoundCall
from agentguard.proof.target import Target
from agentguard.server.tokens import TokenClients
from agentguard.signing import jws
from agentguard.signing.canonical import b64url_decode, b64url_encode

BOUND = 2.0
"""Seconds that no refusal may take."""


@dataclass(frozen=True)
class Door:
    """A verifier: ``offer`` raises for a token that does not count.

    ``sign`` signs bytes as header and payload with the right key; ``header`` and ``claims`` make a
    good token. Each claim in ``needed`` is one without which no token counts.
    """

    offer: Callable[[str], object]
    sign: Callable[[bytes, bytes], str]
    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    needed: tuple[str, ...]

    def token(self) -> str:
        return self.sign(compact(self.header), compact(self.claims))


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def signed_by(key: Any, header: bytes, payload: bytes) -> str:
    signing_input = f"{b64url_encode(header)}.{b64url_encode(payload)}"
    return f"{signing_input}.{b64url_encode(key.sign(signing_input.encode()))}"


def request_door(world) -> Door:
    member, request = world.member("payer"), BoundRequest.of("POST", f"{URL}/pay", b"{}")
    given = {"credential": member.credential.token, "access_token": "a.b.c"}
    good = bound_request.mint(
        request,
        member.signer,
        invocation_sha256="0" * 64,
        now=world.now,
        jti="j" * 22,
        **given,
    )
    of_header, claims = decoded(good)
    return Door(
        lambda token: request.verify(token, at=world.now, **given),
        lambda header, payload: signed_by(member.signer, header, payload),
        of_header,
        claims,
        tuple(claims),
    )


def call_door(world) -> Door:
    """The proof of a request of the Model Context Protocol."""
    member = world.member("payer")
    call = BoundCall.of(URL, "tools/call", {"name": "pay", "arguments": {}})
    given = {"credential": member.credential.token, "access_token": "a.b.c"}
    made = {"invocation_sha256": "0" * 64, "now": world.now, "jti": "j" * 22}
    parsed = jws.parse(call_proof.mint(call, member.signer, **given, **made))
    return Door(
        lambda token: call.verify(token, at=world.now, **given),
        lambda header, payload: signed_by(member.signer, header, payload),
        {**parsed.header},
        {**parsed.claims()},
        tuple(parsed.claims()),
    )


def dpop_door(_world) -> Door:
    key, target = Key(), Target.parse(f"{URL}/pay")
    header, claims = decoded(key.proof(f"{URL}/pay", "a.b.c"))
    now = claims["iat"]
    return Door(
        lambda token: dpop.verify(token, "POST", target, access_token="a.b.c", at=now),
        lambda header, payload: signed_by(key.signer, header, payload),
        header,
        claims,
        tuple(claims),
    )


def workload_door(_world) -> Door:
    issuer = TokenIssuer()
    keys = FetchedKeys("cluster", lambda: parse_jwks(issuer.jwks()))
    issuers = Issuers([TrustedIssuer(issuer.rule(name="cluster"), keys)], lambda: NOW)
    client = ClientConfig("web", None, ("clerk",), issuer="cluster", subject=SUBJECT)
    return Door(
        TokenClients(issuers, [client]).client_of,
        issuer.signed,
        {"alg": issuer.alg, "kid": issuer.kid, "typ": "JWT"},
        issuer.claims(),
        ("iss", "aud", "exp", "sub"),
    )


def decoded(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and the claims of a token."""
    header, claims = (json.loads(b64url_decode(part)) for part in token.split(".")[:2])
    return header, claims


def logout_door(provider: Provider) -> Door:
    tables = {"trust_domain": "acme.example", "issuers": {"acme": provider.table()}}
    settings = parse(tables, source="a test", base=provider.path.parent)
    tokens = LogOutTokens(settings, KeySources(settings))
    header, claims = decoded(provider.logout_token())
    return Door(
        lambda token: tokens.verify(token, now=claims["iat"]),
        provider.signed,
        header,
        claims,
        ("iss", "aud", "exp", "iat", "jti", "events", "sub"),
    )


DOORS = {
    "request": request_door,
    "MCP": call_door,
    "DPoP": dpop_door,
    "workload token": workload_door,
}


@pytest.fixture(params=[*DOORS, "log-out token", "user's token"])
def door(request, world, tmp_path):
    if request.param in DOORS:
        yield DOORS[request.param](world)
        return
    provider = Provider(tmp_path)
    if request.param == "log-out token":
        yield logout_door(provider)
        return
    config: dict[str, Any] = {"agents": {"clerk": {}}, "issuers": {"acme": provider.table()}}
    with Guard.ephemeral(lambda _call: Decision.allow(), config=config) as guard:
        header, claims = decoded(provider.token())
        yield Door(
            lambda token: guard.delegate(subject_token=token, scope=["read"]),
            provider.signed,
            header,
            claims,
            ("iss", "aud", "exp", "sub", "preferred_username"),
        )


def refusal(offer: Callable[[str], object], token: str) -> str | None:
    """Return the code of a refusal, None for a token that counts."""
    began = time.thread_time()
    found = None
    try:
        offer(token)
    except AgentguardError as error:
        found = error
    assert time.thread_time() - began < BOUND
    assert len(str(found)) < 2000
    return None if found is None else found.code


def accepted(offer: Callable[[str], object], tokens: Mapping[str, str]) -> dict[str, str]:
    """Return those of the tokens that are not refused."""
    return {name: token[:200] for name, token in tokens.items() if refusal(offer, token) is None}


def test_a_hostile_text_is_refused(door):
    good = door.token()
    assert refusal(door.offer, good) is None
    assert accepted(door.offer, texts(good)) == {}
    assert refusal(door.offer, good) is None


def test_hostile_json_is_refused_though_the_right_key_has_signed(door):
    header, claims = compact(door.header), compact(door.claims)
    signed = {name: door.sign(header, each) for name, each in payloads(door.claims).items()}
    heads = {name: door.sign(each, claims) for name, each in payloads(door.header).items()}
    assert accepted(door.offer, signed) == {}
    assert accepted(door.offer, heads) == {}
    assert refusal(door.offer, door.token()) is None


def test_a_claim_of_another_kind_is_refused_though_the_right_key_has_signed(door):
    header = compact(door.header)
    changed = {
        f"{name}: {what}": door.sign(header, compact({**door.claims, name: value}))
        for name in door.claims
        for what, value in WRONG.items()
    }
    counts = {each.partition(":")[0] for each in accepted(door.offer, changed)}
    assert counts.isdisjoint(door.needed)
    assert refusal(door.offer, door.token()) is None


NAMES = ["Authorization", "Workload-Identity-Token", "DPoP", "Agentguard-Chain"]


@pytest.mark.parametrize("name", NAMES)
def test_a_request_with_a_hostile_header_is_refused(tmp_path, name):
    scene = ProofScene(tmp_path, accepts_plain_dpop=True)
    with scene.guard:
        sent = scene.request()
        good = scene.request()
        value = header(good, "DPoP" if name == "Agentguard-Chain" else name)
        scheme, _space, token = value.rpartition(" ")
        hostile = texts(token) | {
            "a packed bomb": b64url_encode(zlib.compress(b"[" * 10_000_000)),
            "a packed list": b64url_encode(zlib.compress(b"[]")),
        }
        hostile = {what: f"{scheme} {text}".lstrip() for what, text in hostile.items()}
        found = accepted(lambda text: check(scene.receiver, with_header(sent, name, text)), hostile)
        assert found == {}
        check(scene.receiver, good)
