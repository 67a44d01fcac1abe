"""A proof is for one request: another method, path, query, body or receiver is refused.

Each altered request has its twin, the request as it was proved.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest
from proof_scene import URL, Sent, check, decoded, header, refused, resigned, with_header
from tool_servers import listed, proof_of

from agentguard.errors import ConfigError, ProofError
from agentguard.proof import Receiver
from agentguard.proof.headers import encode_chain
from agentguard.signing.canonical import JSON, b64url_encode, dumps
from agentguard.signing.keys import Ed25519Signer


def test_the_request_as_it_was_proved_is_accepted(scene):
    caller = check(scene.receiver, scene.request())
    assert (caller.principal, caller.assurance) == ("user:alice", "request")
    caller.require("payments:write")


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"method": "PUT"}, "proof.request"),
        ({"method": "post"}, "proof.malformed"),
        ({"path": "/pay/"}, "proof.audience"),
        ({"path": "//pay"}, "proof.audience"),
        ({"path": "/PAY"}, "proof.audience"),
        ({"path": "/%70ay"}, "proof.audience"),
        ({"path": "/x/../pay"}, "proof.malformed"),
        ({"path": "/x/%2e%2e/pay"}, "proof.malformed"),
        ({"path": "/pay;admin=1"}, "proof.audience"),
        ({"path": "pay"}, "proof.malformed"),
        ({"path": "@evil.example/pay"}, "proof.malformed"),
        ({"path": "/pay?currency=EUR", "query": ""}, "proof.malformed"),
        ({"path": "/pay#x"}, "proof.malformed"),
        ({"query": ""}, "proof.request"),
        ({"query": "currency=USD"}, "proof.request"),
        ({"query": "currency=EUR&currency=USD"}, "proof.request"),
        ({"query": "currency=%45UR"}, "proof.request"),
        ({"body": b""}, "proof.request"),
        ({"body": b'{"amount":30}'}, "proof.request"),
        ({"body": b'{"amount":3} '}, "proof.request"),
    ],
)
def test_an_altered_request_is_refused_and_uses_nothing_up(scene, changed, code):
    sent = scene.request()
    assert refused(scene.receiver, sent._replace(**changed)) == code
    assert check(scene.receiver, sent).principal == "user:alice"


@pytest.mark.parametrize(
    "url", ["https://payments.example:8443", "https://payments.example/v1", "https://pay.example"]
)
def test_another_receiver_refuses_the_proof(scene, url):
    sent = scene.request()
    assert refused(scene.new_receiver(url), sent) == "token.audience"
    # a receiver that the delegation names as well
    assert refused(scene.new_receiver(url, audience=URL), sent) == "proof.audience"
    assert check(scene.receiver, sent).principal == "user:alice"


def test_the_name_in_the_header_host_decides_nothing(scene):
    sent = scene.request()
    more = [("Host", "evil.example"), ("X-Forwarded-Host", "evil.example")]
    check(scene.receiver, sent._replace(headers=[*more, *sent.headers]))


def test_an_audience_in_the_clear_is_no_receiver(scene):
    for url in (
        "http://payments.example",
        "ftp://payments.example",
        "https://a@b.example",
        "https://payments.example?x=1",
        "https://payments.example#x",
        "x",
    ):
        with pytest.raises(ConfigError):
            scene.new_receiver(url)
    for url in (
        "http://localhost:8000",
        "http://127.0.0.1",
        "http://[::1]:80",
        "https://x.example",
    ):
        assert isinstance(scene.new_receiver(url), Receiver)


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "Workload-Identity-Token",
        "DPoP",
        "Agentguard-Chain",
    ],
)
def test_a_header_that_comes_twice_is_refused(scene, name):
    sent = scene.request()
    value = header(sent, name)
    for other in (value, "x", ""):
        for again in (name, name.lower(), name.replace("-", "_")):
            twice = [[*sent.headers, (again, other)], [(again, other), *sent.headers]]
            if again.lower() == name.lower() or "_" in again:
                codes = {refused(scene.receiver, sent._replace(headers=one)) for one in twice}
                assert codes == {"proof.malformed"}
    joined = with_header(sent, name, f"{value}, {value}")
    assert refused(scene.receiver, joined).split(".")[0] in ("proof", "base64")
    check(scene.receiver, sent)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("Authorization", "proof.missing"),
        ("Workload-Identity-Token", "proof.missing"),
        ("DPoP", "proof.missing"),
        ("Agentguard-Chain", "proof.chain_unknown"),
    ],
)
def test_a_request_without_a_header_is_refused(scene, name, code):
    sent = scene.request()
    assert refused(scene.receiver, with_header(sent, name, None)) == code
    check(scene.receiver, sent)


@pytest.mark.parametrize("scheme", ["", "Basic ", "Bearer ", "dpop  ", "WPT "])
def test_another_scheme_is_refused(scene, scheme):
    sent = scene.request()
    token = header(sent, "Authorization").removeprefix("DPoP ")
    code = refused(scene.receiver, with_header(sent, "Authorization", f"{scheme}{token}"))
    assert code in ("proof.missing", "proof.malformed")
    check(scene.receiver, with_header(sent, "Authorization", f"dpop {token}"))


def test_a_chain_that_unpacks_to_too_much_is_refused(scene):
    sent = scene.request()
    for bomb in (encode_chain(b" " * (1 << 20)), encode_chain(b"{}") + "AAAA", "AAAA", "!", ""):
        code = refused(scene.receiver, with_header(sent, "Agentguard-Chain", bomb))
        assert code in ("proof.malformed", "chain.malformed", "json.not_object")
    check(scene.receiver, sent)


def test_the_chain_of_another_delegation_is_refused(scene):
    sent, other = scene.request(), scene.request()
    swapped = with_header(sent, "Agentguard-Chain", header(other, "Agentguard-Chain"))
    assert refused(scene.receiver, swapped) == "token.mismatch"
    check(scene.receiver, sent)


def test_headers_that_are_too_long_are_refused(scene):
    sent = scene.request()
    for name, value in sent.headers:
        assert refused(scene.receiver, with_header(sent, name, value + "A" * 70_000)) in (
            "proof.malformed",
            "base64.malformed",
        )
    check(scene.receiver, sent)


def test_a_body_of_no_bytes_is_proved_as_any_other(scene):
    proof = proof_of(scene.guard, f"{URL}/", method="GET")
    sent = Sent(listed(proof), "GET", "/", "", b"")
    assert refused(scene.receiver, sent._replace(body=b"\0")) == "proof.request"
    check(scene.receiver, sent)


@pytest.mark.parametrize("part", ["Authorization", "Workload-Identity-Token", "chain"])
def test_a_token_writes_no_line_into_the_log_of_the_server(scene, part):
    """The reason of a refusal quotes the token, and the server's log has the reason."""
    sent, thief = scene.request(), Ed25519Signer.from_seed(os.urandom(32))
    lines = {"kid": "x\nINFO a request of the payer was accepted\r\x1b[2K"}
    if part == "chain":
        proof = scene.prove()
        chain = json.loads(proof.chain)
        hops = [resigned(hop, thief, {}, lines) for hop in chain["hops"]]
        data = json.dumps({**chain, "hops": hops}).encode()
        with pytest.raises(ProofError) as caught:
            scene.receiver.keep_chain(proof.chain_sha256, data)
        scene.receiver.keep_chain(proof.chain_sha256, proof.chain)
    else:
        scheme, _, token = header(sent, part).rpartition(" ")
        forged = f"{scheme} {resigned(token, thief, {}, lines)}".lstrip()
        with pytest.raises(ProofError) as caught:
            check(scene.receiver, with_header(sent, part, forged))
    assert caught.value.code == "key.unknown"
    assert str(caught.value).isprintable()
    assert "a request of the payer was accepted" in str(caught.value)
    check(scene.receiver, sent)


def test_a_chain_for_another_server_is_not_kept(scene):
    for audience, code in (("https://other.example", "token.audience"), (URL, None)):
        proof = proof_of(scene.guard, f"{audience}/pay")
        if code is None:
            scene.receiver.keep_chain(proof.chain_sha256, proof.chain)
            continue
        with pytest.raises(ProofError) as caught:
            scene.receiver.keep_chain(proof.chain_sha256, proof.chain)
        assert caught.value.code == code


def test_a_chain_of_a_clock_that_is_a_little_ahead_is_kept(scene):
    proof, start = scene.prove(), time.time()
    for shift, code in ((-40, "hop.not_yet_valid"), (-20, None)):
        scene.clock = lambda shift=shift: start + shift
        if code is None:
            scene.receiver.keep_chain(proof.chain_sha256, proof.chain)
            continue
        with pytest.raises(ProofError) as caught:
            scene.receiver.keep_chain(proof.chain_sha256, proof.chain)
        assert caught.value.code == code


TYPES: list[JSON] = [None, True, -1, 2**53 - 1, 1.5, "x", [], ["x"], {}, {"jwk": {}}]


def with_other_types(members: dict[str, JSON]) -> Iterator[dict[str, JSON]]:
    """Yield the members with each of them gone, or of each type."""
    for name in members:
        yield {other: value for other, value in members.items() if other != name}
        yield from ({**members, name: value} for value in TYPES)


@pytest.mark.parametrize("name", ["Authorization", "Workload-Identity-Token", "DPoP"])
def test_a_member_of_any_type_is_refused_and_never_breaks_the_receiver(scene, name):
    """Anybody can send such a token: the stranger's signature is the only one."""
    sent, stranger = scene.request(), Ed25519Signer.from_seed(os.urandom(32))
    scheme, _space, token = header(sent, name).rpartition(" ")
    of_header, claims = decoded(token)
    forged = [(of_header, other) for other in with_other_types(claims)]
    forged += [(other, claims) for other in with_other_types(of_header)]
    for parts in forged:
        data = ".".join(b64url_encode(dumps(part)) for part in parts)
        signed = f"{data}.{b64url_encode(stranger.sign(data.encode()))}"
        assert refused(scene.receiver, with_header(sent, name, f"{scheme} {signed}".strip()))
    check(scene.receiver, sent)
