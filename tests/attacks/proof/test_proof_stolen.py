"""Whoever lacks the key of an agent instance proves nothing with the instance's tokens."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import jwt
import pytest
from proof_scene import (
    BODY,
    URL,
    Sent,
    check,
    decoded,
    header,
    noting_signers,
    refused,
    resigned,
    signer_of,
    with_header,
)
from tool_servers import guard_in_memory, in_call, listed, proof_of

from agentguard.delegation.context import running_call
from agentguard.errors import ConfigError, ProofError
from agentguard.identity import credential
from agentguard.identity.credential import AgentProfile
from agentguard.proof import ProofStore, Receiver
from agentguard.proof.bound_request import CLAIM
from agentguard.proof.dpop import token_hash
from agentguard.signing.canonical import JSON
from agentguard.signing.keys import Ed25519Signer

PROOF = "DPoP"


def bound_of(sent) -> dict[str, Any]:
    """Return the claim that binds a request to its call."""
    bound = decoded(header(sent, PROOF))[1][CLAIM]
    assert isinstance(bound, dict)
    return bound


def key_of(sent) -> Ed25519Signer:
    return signer_of(header(sent, "Authorization").split()[1])


@pytest.fixture(autouse=True)
def known_keys(monkeypatch):
    yield from noting_signers(monkeypatch)


def test_a_stolen_token_without_the_key_is_of_no_use(scene):
    sent, thief = scene.request(), Ed25519Signer.from_seed(os.urandom(32))
    key: dict[str, JSON] = {"jwk": {**thief.public_key.jwk()}}
    for own, code in (({}, "signature.invalid"), (key, "proof.key")):
        forged = resigned(header(sent, PROOF), thief, {"jti": "a" * 22}, own)
        assert refused(scene.receiver, with_header(sent, PROOF, forged)) == code
    assert refused(scene.receiver, with_header(sent, PROOF, None)) == "proof.missing"
    check(scene.receiver, sent)


def test_a_thief_with_a_credential_of_a_key_of_their_own_is_refused(scene):
    sent, thief = scene.request(), Ed25519Signer.from_seed(os.urandom(32))
    domain = "ephemeral.invalid"
    issuer, now = Ed25519Signer.from_seed(os.urandom(32)), int(time.time())
    profile = AgentProfile("payer")
    own = credential.issue(issuer, domain, profile, thief.public_key, now=now, jti="j" * 22).token
    forged = resigned(
        header(sent, PROOF), thief, {CLAIM: {**bound_of(sent), "wth": token_hash(own)}}, {}
    )
    swapped = with_header(with_header(sent, PROOF, forged), "Workload-Identity-Token", own)
    assert refused(scene.receiver, swapped) == "key.unknown"
    check(scene.receiver, sent)


def test_another_instance_does_not_act_with_the_token(scene):
    """Another agent of the same domain proves with its own key and credential."""
    sent = scene.request()
    other = Sent(listed(scene.prove(agent="other")))
    signer, wit = key_of(other), header(other, "Workload-Identity-Token")
    ath = token_hash(header(sent, "Authorization").split()[1])
    forged = resigned(header(other, PROOF), signer, {"ath": ath}, {})
    swapped = with_header(with_header(sent, "Workload-Identity-Token", wit), PROOF, forged)
    assert refused(scene.receiver, swapped) == "proof.key"
    assert check(scene.receiver, sent).agent != check(scene.receiver, other).agent


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"ath": token_hash("x")}, "proof.token"),
        ({"htm": "GET"}, "proof.request"),
        ({"htu": f"{URL}/other"}, "proof.audience"),
        ({"htu": [f"{URL}/pay"]}, "proof.audience"),
        ({"iat": 1}, "proof.expired"),
        ({"iat": 9_999_999_999}, "proof.expired"),
        ({"iat": "soon"}, "proof.malformed"),
        ({"iat": True}, "proof.malformed"),
        ({"jti": "short"}, "proof.malformed"),
        ({"jti": 7}, "proof.malformed"),
        ({CLAIM: None}, "proof.malformed"),
        ({CLAIM: {}}, "proof.malformed"),
        ({"exp": 9_999_999_999}, "proof.malformed"),
    ],
)
def test_a_proof_with_another_claim_is_refused_though_the_key_has_signed(scene, claims, code):
    sent = scene.request()
    altered = resigned(header(sent, PROOF), key_of(sent), claims, {})
    assert refused(scene.receiver, with_header(sent, PROOF, altered)) == code
    same = resigned(header(sent, PROOF), key_of(sent), {}, {})
    check(scene.receiver, with_header(sent, PROOF, same))


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"wth": token_hash("x")}, "proof.token"),
        ({"wth": None}, "proof.token"),
        ({"query": ""}, "proof.request"),
        ({"body_sha256": "0" * 64}, "proof.request"),
        ({"body_sha256": None}, "proof.request"),
        ({"more": 1}, "proof.request"),
        ({"invocation_sha256": "0"}, "proof.malformed"),
        ({"invocation_sha256": None}, "proof.malformed"),
    ],
)
def test_a_proof_of_another_request_is_refused_though_the_key_has_signed(scene, members, code):
    sent = scene.request()
    bound = {CLAIM: {**bound_of(sent), **members}}
    altered = resigned(header(sent, PROOF), key_of(sent), bound, {})
    assert refused(scene.receiver, with_header(sent, PROOF, altered)) == code
    check(scene.receiver, sent)


@pytest.mark.parametrize(
    "members",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "ES256"},
        {"typ": "at+jwt"},
        {"typ": "ag-call+jwt"},
        {"typ": "DPOP+JWT"},
        {"kid": "x"},
        {"crit": ["exp"]},
        {"jwk": {}},
    ],
)
def test_a_proof_with_another_header_is_refused_though_the_key_has_signed(scene, members):
    sent = scene.request()
    altered = resigned(header(sent, PROOF), key_of(sent), {}, members)
    assert refused(scene.receiver, with_header(sent, PROOF, altered)) == "proof.malformed"
    check(scene.receiver, sent)


def test_a_request_without_its_credential_is_no_request_of_a_smaller_proof(scene):
    """Whoever takes the credential away could otherwise change the query and the body."""
    taking = scene.new_receiver(accepts_plain_dpop=True)
    sent = scene.request()
    bare = with_header(sent, "Workload-Identity-Token", None)
    assert refused(scene.receiver, bare) == "proof.missing"
    for one in (bare, bare._replace(body=b"another")):
        assert refused(taking, one) == "proof.malformed"
    wit = ("Workload-Identity-Token", header(sent, "Workload-Identity-Token"))
    plain = dpop_request(scene)
    assert refused(taking, plain._replace(headers=[*plain.headers, wit])) == "proof.key"
    check(taking, plain)
    check(scene.receiver, sent)


def test_a_proof_counts_for_its_seconds_alone(scene):
    sent = scene.request()
    start = time.time()
    for shift, code in ((60, "proof.expired"), (-60, "token.not_yet_valid")):
        scene.clock = lambda shift=shift: start + shift
        assert refused(scene.receiver, sent) == code
    scene.clock = lambda: start + 20
    check(scene.receiver, sent)


@pytest.mark.parametrize(("shift", "is_accepted"), [(-1, True), (-25, True), (-40, False)])
def test_the_clock_of_a_caller_may_be_a_little_ahead(scene, shift, is_accepted):
    sent = scene.request()
    start = time.time()
    scene.clock = lambda: start + shift
    if is_accepted:
        assert check(scene.receiver, sent).principal == "user:alice"
    assert refused(scene.receiver, sent) == ("proof.used" if is_accepted else "token.not_yet_valid")


def test_a_token_without_a_time_is_refused_as_any_other(scene):
    """Whoever knows the name of the trust domain can write tokens that no key has signed."""
    sent = scene.request()
    stranger = Ed25519Signer.from_seed(bytes(32))
    timeless = [
        resigned(header(sent, name).removeprefix("DPoP "), stranger, {"iat": None}, {})
        for name in ("Authorization", "Workload-Identity-Token")
    ]
    forged = with_header(sent, "Authorization", f"DPoP {timeless[0]}")
    forged = with_header(forged, "Workload-Identity-Token", timeless[1])
    assert refused(scene.receiver, forged) == "token.malformed"
    check(scene.receiver, sent)


def test_a_clock_that_fails_refuses(scene):
    sent = scene.request()

    def broken():
        raise OSError("no clock")

    scene.clock = broken
    assert refused(scene.receiver, sent) == "proof.unavailable"
    scene.clock = time.time
    check(scene.receiver, sent)


def test_another_trust_domain_counts_only_where_it_is_trusted(scene, tmp_path):
    with guard_in_memory() as stranger:
        sent = Sent(listed(proof_of(stranger, f"{URL}/pay?currency=EUR", BODY)))
        assert refused(scene.receiver, sent) == "key.unknown"
        both = Receiver(URL, [stranger.trust], ProofStore(tmp_path / "other.sqlite"))
        check(both, sent)
    check(scene.receiver, scene.request())
    with pytest.raises(ConfigError, match="no trust document is given"):
        Receiver(URL, [], ProofStore(tmp_path / "third.sqlite"))


def test_a_receiver_trusts_any_number_of_domains_and_each_by_one_document(scene, tmp_path):
    ours, store = scene.guard.trust, ProofStore(tmp_path / "many.sqlite")
    others = [replace(ours, trust_domain=f"d{number}.example") for number in range(80)]
    check(Receiver(URL, [*others, ours], store), scene.request())
    with pytest.raises(ConfigError):  # which of the two would count?
        Receiver(URL, [ours, *others, ours], store)


def test_an_instance_of_another_trusted_domain_does_not_act_with_the_token(scene, tmp_path):
    """A receiver may trust two domains; the token and the credential are of one of them."""
    sent = scene.request()
    with guard_in_memory() as stranger:
        theirs = Sent(listed(proof_of(stranger, f"{URL}/pay?currency=EUR", BODY)))
        trust = [scene.guard.trust, replace(stranger.trust, trust_domain="other.example")]
        both = Receiver(URL, trust, ProofStore(tmp_path / "both.sqlite"))
        ath = token_hash(header(sent, "Authorization").split()[1])
        forged = resigned(header(theirs, PROOF), key_of(theirs), {"ath": ath}, {})
        wit = header(theirs, "Workload-Identity-Token")
        swapped = with_header(with_header(sent, "Workload-Identity-Token", wit), PROOF, forged)
        assert refused(both, swapped) == "key.unknown"
        chain = header(theirs, "Agentguard-Chain")
        assert refused(both, with_header(sent, "Agentguard-Chain", chain)) == "key.unknown"
    check(both, sent)


# --- DPoP ----------------------------------------------------------------------------------------


def dpop_request(scene, signer=None, **claims):
    """Return a request with a DPoP proof, which PyJWT has made."""
    sent = scene.request()
    token = header(sent, "Authorization").split()[1]
    key: Any = signer or key_of(sent)
    made = {
        "jti": os.urandom(16).hex(),
        "htm": "POST",
        "htu": f"{URL}/pay",
        "iat": int(time.time()),
        "ath": token_hash(token),
        **claims,
    }
    private = key._Ed25519Signer__key
    members = {"typ": "dpop+jwt", "jwk": key.public_key.jwk()}
    proof = jwt.encode(made, private, algorithm="EdDSA", headers=members)
    chain = header(sent, "Agentguard-Chain")
    named = {"Authorization": f"DPoP {token}", "DPoP": proof, "Agentguard-Chain": chain}
    return Sent([*named.items()])


def test_a_dpop_proof_counts_where_the_receiver_takes_it_and_says_less(scene):
    taking = scene.new_receiver(accepts_plain_dpop=True)
    caller = check(taking, dpop_request(scene))
    assert (caller.assurance, caller.invocation_sha256) == ("dpop", None)
    assert check(taking, scene.request()).assurance == "request"
    assert refused(scene.receiver, dpop_request(scene)) == "proof.missing"
    again = dpop_request(scene)
    check(taking, again)
    assert refused(taking, again) == "proof.used"


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"htm": "GET"}, "proof.request"),
        ({"htu": f"{URL}/other"}, "proof.audience"),
        ({"htu": f"{URL}/pay?currency=EUR"}, "proof.audience"),
        ({"htu": "https://evil.example/pay"}, "proof.audience"),
        ({"htu": 1}, "proof.audience"),
        ({"ath": token_hash("x")}, "proof.token"),
        ({"iat": 1}, "proof.expired"),
        ({"iat": 9_999_999_999}, "proof.expired"),
        ({"jti": "x"}, "proof.malformed"),
    ],
)
def test_a_dpop_proof_of_another_request_is_refused(scene, claims, code):
    taking = scene.new_receiver(accepts_plain_dpop=True)
    assert refused(taking, dpop_request(scene, **claims)) == code
    check(taking, dpop_request(scene, htu="HTTPS://Payments.Example:443/pay".lower()))


def test_a_dpop_proof_of_another_key_is_refused(scene):
    taking = scene.new_receiver(accepts_plain_dpop=True)
    thief = Ed25519Signer.from_seed(os.urandom(32))
    assert refused(taking, dpop_request(scene, thief)) == "proof.key"
    check(taking, dpop_request(scene))


# --- in the guard --------------------------------------------------------------------------------


def test_a_guard_proves_no_request_to_a_server_that_the_delegation_does_not_name(scene):
    def prove(url, body_sha256="0" * 64, method="POST"):
        running = running_call()
        assert running is not None
        return running.releases.prove(method, url, body_sha256)

    def refusal(*arguments, audience=(URL,)):
        with pytest.raises(ProofError) as caught:
            in_call(scene.guard, lambda: prove(*arguments), audience=audience)
        return caught.value.code

    assert in_call(scene.guard, lambda: prove(f"{URL}/pay"), audience=[URL]).proof
    for url in (
        "https://payments.example.evil/pay",
        "http://payments.example/pay",
        "https://payments.example:444/pay",
    ):
        assert refusal(url) == "proof.audience"
    assert refusal("https://payments.example@evil.example/") == "proof.malformed"
    assert refusal(f"{URL}/pay", "short") == "proof.malformed"
    assert refusal(f"{URL}/pay", "0" * 64, "GET\r\n") == "proof.malformed"
    base = f"{URL}/v1"
    assert refusal(f"{URL}/v2/pay", audience=[base]) == "proof.audience"
    assert refusal(f"{URL}/v1/../v2", audience=[base]) == "proof.malformed"
    assert refusal(f"{URL}/v1x", audience=[base]) == "proof.audience"
    assert in_call(scene.guard, lambda: prove(f"{URL}/v1/pay"), audience=[base]).proof
    plain = "http://payments.example"
    assert refusal(f"{plain}/pay", audience=[plain, "payments"]) == "proof.audience"
