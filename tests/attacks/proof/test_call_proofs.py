"""A request over MCP counts once, from its holder, at its server, and as it was proved."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from call_scene import AUDIENCE, PARAMS, CallScene, check, meta, refused, with_meta
from proof_scene import noting_signers, resigned, signer_of
from tool_servers import guard_in_memory, in_call

from agentguard.delegation import access_token
from agentguard.delegation.context import running_call
from agentguard.errors import ConfigError, ProofError, UnguardedCallError
from agentguard.proof import CallReceiver, ProofStore, prove_call, prove_request
from agentguard.proof.dpop import token_hash
from agentguard.signing import jws
from agentguard.signing.keys import Ed25519Signer


@pytest.fixture(autouse=True)
def known_keys(monkeypatch):
    yield from noting_signers(monkeypatch)


@pytest.fixture
def scene(tmp_path):
    scene = CallScene(tmp_path)
    with scene.guard:
        yield scene


def key_of(params) -> Ed25519Signer:
    return signer_of(meta(params, "token"))


def test_the_server_knows_the_agent_the_user_and_the_call(scene):
    caller = check(scene.receiver, scene.prove(task_id="T-1"))
    assert (caller.principal, caller.actors[-1]) == ("user:alice", "agent:payer")
    assert (caller.assurance, caller.task_id) == ("call", "T-1")
    claims = jws.parse(meta(scene.prove(), "proof")).claims()
    assert claims.keys() == {"aud", "iat", "jti", "wth", "ath", "mth", "mdg", "inv"}
    assert (claims["aud"], claims["mth"]) == (AUDIENCE, "tools/call")


def test_a_proof_counts_once_for_all_workers_and_after_a_restart(scene):
    params = scene.prove()
    workers = [scene.new_receiver() for _ in range(4)] * 2

    def code(receiver):
        try:
            check(receiver, params)
        except ProofError as error:
            return error.code
        return "accepted"

    with ThreadPoolExecutor(8) as threads:
        codes = list(threads.map(code, workers))
    assert sorted(codes) == ["accepted", *["proof.used"] * 7]
    assert refused(scene.new_receiver(), params) == "proof.used"
    check(scene.receiver, scene.prove())  # the same request with a fresh proof


def test_a_proof_for_one_server_is_refused_by_another(scene):
    def prove(audience):
        made = []
        in_call(
            scene.guard,
            lambda: made.append(prove_call(audience, "tools/call", PARAMS)),
            audience=[AUDIENCE, "mcp:other"],
        )
        return made[0]

    other, params = scene.new_receiver("mcp:other"), prove(AUDIENCE)
    assert refused(other, params) == "proof.audience"
    check(scene.receiver, params)
    check(other, prove("mcp:other"))


def test_no_proof_is_signed_for_a_server_that_the_delegation_does_not_name(scene):
    def prove(audience):
        in_call(
            scene.guard,
            lambda: prove_call(audience, "tools/call", PARAMS),
            audience=[AUDIENCE],
        )

    for audience in ("mcp:other", "mcp:payment", f"{AUDIENCE}/x", ""):
        with pytest.raises(ProofError) as caught:
            prove(audience)
        assert caught.value.code == "proof.audience"
    prove(AUDIENCE)


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": {**PARAMS["arguments"], "cents": 4201}},
        {"arguments": {**PARAMS["arguments"], "extra": None}},
        {"name": "refund"},
        {"requestState": "sealed-2"},
        {"inputResponses": {"a": {"action": "accept"}}},
        {"arguments": {**PARAMS["arguments"], "tags": ["b", "a"]}},
    ],
)
def test_changed_parameters_are_refused(scene, change):
    params = scene.prove()
    assert refused(scene.receiver, {**params, **change}) == "proof.request"
    check(scene.receiver, params)


@pytest.mark.parametrize(
    "change",
    [{"fastmcp": {"version": "1"}}, {"fastmcp": None}, {"io.example/x": 1}, {"dev.agentguard": 1}],
)
def test_an_added_changed_or_removed_member_of_meta_is_refused(scene, change):
    params = scene.prove()
    assert refused(scene.receiver, with_meta(params, **change)) == "proof.request"
    check(scene.receiver, params)


def test_a_gateway_may_write_the_unbound_members_of_meta_anew(scene):
    changed = with_meta(
        scene.prove(),
        progressToken="other",
        traceparent="00-1",
        **{"io.modelcontextprotocol/protocolVersion": "2026-07-28"},
    )
    assert check(scene.receiver, changed).principal == "user:alice"


def test_another_method_is_refused(scene):
    params = scene.prove()
    for method in ("prompts/get", "tools/Call", "", None, 7, "x" * 200):
        code = refused(scene.receiver, params, method)
        assert code in ("proof.request", "proof.malformed")
    check(scene.receiver, params)


@pytest.mark.parametrize("member", ["token", "credential", "chain", "proof"])
def test_a_request_without_one_of_the_members_is_refused(scene, member):
    params = scene.prove()
    assert refused(scene.receiver, with_meta(params, **{member: None})) == "proof.missing"
    for value in (7, "", "a.b", "x" * 70_000, [meta(params, member)]):
        code = refused(scene.receiver, with_meta(params, **{member: value}))
        assert code == "proof.malformed"
    check(scene.receiver, params)


@pytest.mark.parametrize("params", [None, {}, [], "x", {"_meta": 1}, {"_meta": {}}, {1: 2}])
def test_a_request_without_a_proof_is_refused(scene, params):
    assert refused(scene.receiver, params) in ("proof.missing", "proof.malformed")
    bare = scene.prove(None, method="ping")
    assert check(scene.receiver, bare, "ping").principal == "user:alice"


def test_a_stolen_token_without_the_key_is_of_no_use(scene):
    params, thief = scene.prove(), Ed25519Signer.from_seed(os.urandom(32))
    forged = resigned(meta(params, "proof"), thief, {"jti": "a" * 22}, {})
    assert refused(scene.receiver, with_meta(params, proof=forged)) == "signature.invalid"
    check(scene.receiver, params)


def test_another_instance_does_not_act_with_the_token(scene):
    params, other = scene.prove(), scene.prove(agent="other")
    ath = token_hash(meta(params, "token"))
    forged = resigned(meta(other, "proof"), key_of(other), {"ath": ath}, {})
    swapped = with_meta(params, credential=meta(other, "credential"), proof=forged)
    assert refused(scene.receiver, swapped) == "proof.key"
    check(scene.receiver, params)


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"wth": token_hash("x")}, "proof.token"),
        ({"ath": token_hash("x")}, "proof.token"),
        ({"aud": [AUDIENCE]}, "proof.audience"),
        ({"iat": 1}, "proof.expired"),
        ({"iat": 9_999_999_999}, "proof.expired"),
        ({"iat": True}, "proof.malformed"),
        ({"exp": 9_999_999_999}, "proof.malformed"),
        ({"jti": 7}, "proof.malformed"),
        ({"inv": "0"}, "proof.malformed"),
        ({"mdg": "0" * 64}, "proof.request"),
        ({"mth": "tools/list"}, "proof.request"),
        ({"more": 1}, "proof.malformed"),
    ],
)
def test_a_proof_with_another_claim_is_refused_though_the_key_has_signed(scene, claims, code):
    params = scene.prove()
    altered = resigned(meta(params, "proof"), key_of(params), claims, {})
    assert refused(scene.receiver, with_meta(params, proof=altered)) == code
    check(scene.receiver, params)


def test_the_proof_of_an_http_request_is_no_proof_of_a_call(scene):
    """The types of the two proofs differ, so that one signature never says two things."""
    made = []
    url = "https://payments.example"
    in_call(
        scene.guard,
        lambda: made.append((prove_request("POST", url, b""), prove_call(url, "x", None))),
        audience=[url],
    )
    request, params = made[0]
    receiver = scene.new_receiver(url)
    swapped = with_meta(
        params, proof=request.proof, token=request.access_token, credential=request.credential
    )
    assert refused(receiver, swapped, "x") == "jws.header"
    check(receiver, params, "x")


def test_a_proof_counts_for_its_seconds_alone(scene):
    params, start = scene.prove(), time.time()
    for shift, code in ((60, "proof.expired"), (-60, "token.not_yet_valid")):
        scene.clock = lambda shift=shift: start + shift
        assert refused(scene.receiver, params) == code
    scene.clock = lambda: start + 20
    check(scene.receiver, params)


def test_a_revoked_delegation_is_refused_where_the_server_gets_the_revocations(scene):
    class Revoked:
        def refusal(self, names):
            return ("delegation.revoked", "revoked") if "user:alice" in names else None

    params = scene.prove()
    assert refused(scene.new_receiver(revocations=Revoked()), params) == "delegation.revoked"
    check(scene.receiver, params)


def test_a_token_of_another_trust_domain_is_refused(scene):
    params = scene.prove()
    with guard_in_memory() as stranger:
        receiver = CallReceiver(AUDIENCE, stranger.trust, ProofStore(scene.folder / "other.sqlite"))
        assert refused(receiver, params) == "key.unknown"
    check(scene.receiver, params)


def test_only_a_running_call_under_a_delegation_is_proved(scene):
    with pytest.raises(UnguardedCallError):
        prove_call(AUDIENCE, "tools/call", PARAMS)
    alone = scene.guard.new_agent("alone")
    kept: list[Any] = []

    def keep():
        kept.append(running_call())
        return prove_call(AUDIENCE, "tools/call", PARAMS)

    with pytest.raises(ProofError) as caught:
        alone.call(scene.guard.tool(name="keep")(keep))
    assert caught.value.code == "proof.refused"
    in_call(scene.guard, keep, audience=[AUDIENCE])
    with pytest.raises(ProofError) as caught:
        kept[-1].releases.prove_call(AUDIENCE, "tools/call", "0" * 64)
    assert caught.value.code == "proof.refused"


def test_the_parameters_of_the_application_are_not_changed(scene):
    params = {"name": "pay", "arguments": {}, "_meta": {"a": 1}}
    proved = scene.prove(params)
    assert params == {"name": "pay", "arguments": {}, "_meta": {"a": 1}}
    again = scene.prove(proved)  # an earlier proof gives way to the new one
    check(scene.receiver, proved)
    check(scene.receiver, again)


@pytest.mark.parametrize(
    ("value", "place"),
    [(2**53, "'cents'"), (float("nan"), "'cents'"), ("\ud800", "'cents'"), (b"x", "'cents'")],
)
def test_an_argument_without_a_canonical_form_is_refused_by_its_name(scene, value, place):
    params = {"name": "pay", "arguments": {"to": "Zoë", "cents": value}}
    with pytest.raises(ProofError, match=f"the argument {place}") as caught:
        scene.prove(params)
    assert caught.value.code == "proof.malformed"
    assert refused(scene.receiver, {**params, "_meta": scene.prove()["_meta"]}) == (
        "proof.malformed"
    )
    largest = {"name": "pay", "arguments": {"to": "Zoë", "cents": 2**53 - 1}}
    check(scene.receiver, scene.prove(largest))


@pytest.mark.parametrize("audience", ["", "a b", "é", 7, None])
def test_a_receiver_has_an_audience_that_a_delegation_can_name(scene, audience):
    with pytest.raises(ConfigError):
        scene.new_receiver(audience)
    scene.new_receiver("https://payments.example/mcp")


def proved_with_one_token(scene, number, **terms):
    """Return requests with a proof each, and all with the same token."""
    made: list[Any] = []

    def prove() -> None:
        made.extend(prove_call(AUDIENCE, "tools/call", PARAMS) for _ in range(number))

    in_call(scene.guard, prove, audience=[AUDIENCE], **terms)
    assert len({meta(one, "token") for one in made}) == 1
    return made


def test_a_token_that_comes_again_is_verified_once(scene, monkeypatch):
    verified, verify = [], access_token.verify

    def counted(*given, **more):
        verified.append(given)
        return verify(*given, **more)

    monkeypatch.setattr(access_token, "verify", counted)
    first, second, third = proved_with_one_token(scene, 3)
    callers = [check(scene.receiver, one) for one in (first, second)]
    assert len(verified) == 1
    assert callers[0].token_jti == callers[1].token_jti
    assert refused(scene.receiver, second) == "proof.used"
    check(scene.new_receiver(), third)  # another receiver trusts nobody else's verification
    assert len(verified) == 2


def test_a_token_that_was_verified_before_ends_at_its_end(scene):
    first, second, third = proved_with_one_token(scene, 3, expires_in=20)
    start = time.time()
    check(scene.receiver, first)
    scene.clock = lambda: start + 10
    check(scene.receiver, second)
    scene.clock = lambda: start + 25
    assert refused(scene.receiver, third) == "token.expired"


def test_a_token_that_was_verified_before_ends_with_a_revocation(scene):
    class Revoked:
        names: frozenset[str] = frozenset()

        def refusal(self, names):
            return ("delegation.revoked", "revoked") if self.names & names else None

    revocations = Revoked()
    receiver = scene.new_receiver(revocations=revocations)
    first, second, third = proved_with_one_token(scene, 3)
    check(receiver, first)
    revocations.names = frozenset({"user:alice"})
    assert refused(receiver, second) == "delegation.revoked"
    revocations.names = frozenset()
    check(receiver, third)


def test_a_known_token_with_another_chain_is_refused(scene):
    first, second, third = proved_with_one_token(scene, 3)
    check(scene.receiver, first)
    other = meta(scene.prove(), "chain")
    assert refused(scene.receiver, with_meta(second, chain=other)) == "token.mismatch"
    assert refused(scene.receiver, with_meta(second, chain=None)) == "proof.missing"
    check(scene.receiver, third)


def test_a_token_that_was_verified_before_does_not_count_before_its_time(scene):
    """The clock goes back, and on again."""
    first, second, third = proved_with_one_token(scene, 3)
    start = time.time()
    check(scene.receiver, first)
    scene.clock = lambda: start - 100
    assert refused(scene.receiver, second) == "token.not_yet_valid"
    scene.clock = lambda: start
    check(scene.receiver, third)


def test_a_token_that_was_verified_before_ends_with_the_key_of_its_issuer(scene):
    start = now = int(time.time())
    keys = tuple(
        replace(key, compromised_since=start + 10 if key.use == "issuer" else None)
        for key in scene.guard.trust.keys
    )
    trust, store = replace(scene.guard.trust, keys=keys), ProofStore(scene.folder / "p.sqlite")
    receiver = CallReceiver(AUDIENCE, trust, store, clock=lambda: now)
    first, second, third = proved_with_one_token(scene, 3)
    check(receiver, first)
    now = start + 9
    check(receiver, second)
    now = start + 10
    assert refused(receiver, third) == "key.compromised"
