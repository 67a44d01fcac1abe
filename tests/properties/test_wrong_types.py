"""Each member of what others send gets each type of JSON: only our own errors come out.

The values are made from good ones, signed again where the signature would hide what comes after
it. What a reader takes must be the good value, or one that only differs where nothing is bound.
"""

from __future__ import annotations

import copy
import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from embedded_parts import runtime_of

from agentguard import AgentguardError, Decision, Denied, Guard
from agentguard.audit import checkpoint, tlog_proof
from agentguard.audit import head as heads
from agentguard.audit.ahead import ReadEntry
from agentguard.audit.entry import CallPlace, StoredEntry
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.administration import (
    AdoptionEntry,
    ErasureEntry,
    FreezeEntry,
    LostEntries,
    ResolutionEntry,
    RevocationEntry,
    Unanchored,
)
from agentguard.audit.prove import prove_call
from agentguard.audit.verify import LogVerifier
from agentguard.delegation import access_token, grant, verification
from agentguard.delegation.chain import CHAIN_TYPE
from agentguard.identity import credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, dsse, jws
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Ed25519Signer

VALUES: list[Any] = [None, True, False, 0, 1, -1, 1.5, 2**53 - 1, "", "x", " ", [], ["x"], [[]], {}]
VALUES += [{"x": None}, {"jwk": {}}]
GONE = object()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, itself included."""
    yield path
    items: Any = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        items = enumerate(value)
    for name, inner in items:
        yield from places(inner, (*path, name))


def mutants(good: Any) -> Iterator[tuple[str, Any]]:
    """The value with something else at one place of it, or without that place."""
    for path in places(good):
        for value in (*VALUES, GONE):
            made = copy.deepcopy(good)
            if not path:
                if value is not GONE:
                    yield "all of it", value
                continue
            inside = made
            for step in path[:-1]:
                inside = inside[step]
            if value is GONE:
                del inside[path[-1]]
            else:
                inside[path[-1]] = copy.deepcopy(value)
            if json.dumps(made) != json.dumps(good):
                yield f"{path} is {value!r}", made


def outcome(read: Callable[..., object], *args: Any, **named: Any) -> object:
    """What a reader returns, or None where it refuses; any error but ours fails the test."""
    try:
        return read(*args, **named)
    except AgentguardError:
        return None


# --- tokens ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(world) -> dict[str, tuple[str, Any, Any]]:
    """For each kind: a good token, who signs it, and who reads it."""
    lent = world.chain("one", "two")
    member, short = world.member("one"), world.chain("one")
    minted = access_token.mint(short, world.issuer, now=world.now, jti="a" * 16)
    at = {"at": world.now}
    return {
        "credential": (
            member.credential.token,
            world.issuer,
            lambda text: credential.verify(text, world.trust, **at),
        ),
        "hop": (
            lent.hops[-1].token,
            member.signer,
            lambda text: grant.verify(text, member.signer.public_key),
        ),
        "token": (
            minted.token,
            world.issuer,
            lambda text: access_token.verify(text, short.dumps(), world.trust, **at),
        ),
    }


KINDS = ["credential", "hop", "token"]


@pytest.mark.parametrize("kind", KINDS)
def test_no_claim_of_another_type_is_taken(tokens, kind):
    good, signer, read = tokens[kind]
    parsed = jws.parse(good)
    header = {name: value for name, value in parsed.header.items() if name != "alg"}
    typ = str(header.pop("typ"))
    assert read(good)
    tried, taken = 0, []
    for what, claims in mutants(parsed.claims()):
        made = jws.sign(canonical.dumps(claims), signer, typ=typ, header=header)
        tried += 1
        if outcome(read, made) is not None:
            taken.append(what)
    assert tried > 200
    free = {  # what is chosen freely, or held against other hops (attenuation.py)
        "credential": ["'type'", "'version'", "'owner'", "('iat',) is", "('exp',) is"],
        "hop": [
            "'txn'",
            "'scope'",
            "'max_calls'",
            "('aud',",
            "'iat'",
            "('depth',) is 1",
            "('par',) is None",
        ],
        "token": [],
    }[kind]
    assert [what for what in taken if not any(one in what for one in free)] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("jti", ["", "a", " " * 16, "a" * 129, "a/b" * 4, "ä" * 12])
def test_an_id_that_none_of_us_gives_is_refused(tokens, kind, jti):
    good, signer, read = tokens[kind]
    parsed = jws.parse(good)
    header = {"kid": parsed.header["kid"]}
    typ = str(parsed.header["typ"])
    claims = {**parsed.claims(), "jti": jti}
    assert outcome(read, jws.sign(claims, signer, typ=typ, header=header)) is None
    claims["jti"] = "b" * 16
    assert outcome(read, jws.sign(claims, signer, typ=typ, header=header)) is not None


@pytest.mark.parametrize("claim", ["sub", "client_id"])
@pytest.mark.parametrize("name", ["", "alice", "user:", ":alice", "user", "User:alice", "robot:x"])
def test_a_first_hop_without_a_kind_is_refused(world, claim, name):
    first = world.begin("a").hops[0]
    claims = {**first.grant.claims(), claim: name}
    signed = jws.sign(claims, world.issuer, typ=grant.TYPE, header={"kid": world.issuer.key_id})
    verify = verification.verify
    assert outcome(verify, [signed], [], world.trust, at=world.now) is None
    assert outcome(verify, [first.token], [], world.trust, at=world.now) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_no_header_of_another_type_is_taken(tokens, kind):
    good, signer, read = tokens[kind]
    parsed = jws.parse(good)
    for what, header in mutants(dict(parsed.header)):
        signed = f"{canonical.b64url_encode(canonical.dumps(header))}.{good.split('.')[1]}"
        made = f"{signed}.{canonical.b64url_encode(signer.sign(signed.encode()))}"
        assert outcome(read, made) is None, what


@pytest.mark.parametrize("value", [*VALUES, b"x", b"", 1j, object(), ("x",)])
def test_what_is_no_text_is_refused_with_our_error(tokens, world, value):
    at = {"at": world.now}
    for _good, _signer, read in tokens.values():
        assert outcome(read, value) is None
    readers: list[Any] = [grant.read, grant.key_id, jws.parse, Envelope.parse, checkpoint.read_note]
    readers += [checkpoint.parse_line, tlog_proof.parse, parse_entry, TrustDocument.loads]
    readers += [heads.parse, lambda note: heads.verify(note, [], "")]
    for parse in readers:
        assert outcome(parse, value) is None
    assert outcome(verify_evidence, value, world.trust) is None
    assert outcome(verification.loads, value, world.trust, **at) is None
    assert outcome(verification.from_json, value, world.trust, **at) is None
    assert outcome(verification.verify, value, [], world.trust, **at) is None
    assert outcome(verification.verify, [value], [], world.trust, **at) is None
    if value not in ([], ()):
        hops = [hop.token for hop in world.chain("one").hops]
        assert outcome(verification.verify, hops, value, world.trust, **at) is None
        assert outcome(verification.verify, hops, [value], world.trust, **at) is None


def test_a_joint_signature_with_another_type_somewhere_does_not_verify():
    signer = Ed25519Signer.from_seed(os.urandom(32))
    payloads = [b"one", b"two", b"three"]
    joint = dsse.sign_jointly([canonical.sha256_hex(payload) for payload in payloads], signer)
    good = Envelope(dsse.PAYLOAD_TYPE, b"one", joint=joint).as_json()

    def verified(value: Any) -> object:
        return Envelope.parse(value, may_be_joint=True).verify(signer.public_key)

    assert verified(good) == b"one"
    for what, made in mutants(good):
        assert outcome(verified, made) is None, what


def test_a_chain_with_another_type_somewhere_is_refused(world):
    lent = world.chain("one")
    for what, made in mutants({"type": CHAIN_TYPE, **lent.as_json()}):
        data = canonical.dumps(made)
        assert outcome(verification.loads, data, world.trust, at=world.now) is None, what


def test_a_trust_document_with_another_type_somewhere_is_refused_or_read(world):
    for _what, made in mutants(json.loads(world.trust.dumps())):
        outcome(TrustDocument.loads, canonical.dumps(made))


# --- the log --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log():
    """A log with an allowed and a denied call under a delegation, and what verifies it."""

    def policy(document: Any) -> Decision:
        denied = document["tool"]["name"] == "denied"
        return Decision.deny("policy.denied", "no") if denied else Decision.allow()

    with Guard.ephemeral(policy) as guard:
        agent = guard.new_agent("reader")
        good = guard.tool(name="good")(lambda what: what)
        denied = guard.tool(name="denied")(lambda what: what)
        lent = agent.under(guard.delegate("user:alice", scope=["a"]))
        lent.call(good, "x")
        with pytest.raises(Denied):
            lent.call(denied, "x")
        reader: Any = guard.reader()
        admin = runtime_of(guard).domain.issuer
        stored = list(reader.stored())
        at = parse_entry(stored[-1].body).at
        lost = LostEntries(entries=1, anchored=reader.head().decode())
        newest = Unanchored(entries=1, newest=at)
        place = CallPlace(0, "x", "0" * 64)
        more = [
            RevocationEntry.new(admin, "agent:x", note="n", at=at),
            FreezeEntry.new(admin, "acme.example", frozen=True, sequence=1, note="n", at=at),
            AdoptionEntry.new(admin, "acme.example", lost=lost, unanchored=newest, note="n", at=at),
            ResolutionEntry.new(admin, place, ran=True, note="n", at=at),
            ErasureEntry.new(admin, place, note="n", at=at),
        ]
        stored += [StoredEntry(0, record.body, record.summary) for record in more]
        (call,) = (parse_entry(one.body) for one in stored if b'"decision":"allow"' in one.body)
        yield stored, guard.trust, guard, call


def opened(members: Any) -> Any:
    """An entry's members with the payload of each envelope as JSON."""
    if isinstance(members, dict):
        if members.keys() == {"payload", "payloadType", "signatures"}:
            payload = json.loads(b64decode(members["payload"]))
            return {**members, "payload": {"opened": payload}}
        return {name: opened(value) for name, value in members.items()}
    return [opened(value) for value in members] if isinstance(members, list) else members


def sealed(members: Any) -> Any:
    """The inverse of ``opened``, whatever stands there now."""
    if isinstance(members, dict):
        if members.keys() == {"opened"}:
            return b64encode(canonical.dumps(members["opened"])).decode()
        return {name: sealed(value) for name, value in members.items()}
    return [sealed(value) for value in members] if isinstance(members, list) else members


def test_no_entry_with_another_type_somewhere_stops_the_verifier(log):
    """It is a finding; signatures are left out, so that what they cover is looked at as well."""
    stored, trust, _guard, _call = log
    kinds = set()
    tried = 0
    for good in stored:
        kinds.add(parse_entry(good.body).kind)
        for _what, made in mutants(opened(json.loads(good.body))):
            verifier = LogVerifier(trust, since=2**40)
            stored = StoredEntry(good.index, canonical.dumps(sealed(made)), good.summary)
            verifier._verify_contents(ReadEntry(stored))
            tried += 1
    assert kinds >= {"key", "config", "policy", "identity", "delegation", "call"}
    assert kinds >= {"outcome", "revocation", "freeze", "adoption", "resolution", "erasure"}
    assert tried > 3000


def test_no_evidence_with_another_type_somewhere_is_taken(log):
    _stored, trust, guard, call = log
    statement = opened(call.members["invocation"])["payload"]["opened"]
    data = prove_call(guard.reader(), trust, statement["predicate"]["invocation_id"])
    assert verify_evidence(data, trust).call == call
    for what, made in mutants(json.loads(data)):
        assert outcome(verify_evidence, canonical.dumps(made), trust) is None, what
