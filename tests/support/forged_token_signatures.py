"""Forged tokens with malleable signatures, and tokens that somebody else signs."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from token_forgery import (
    CREDENTIALS,
    DOMAIN,
    HOPS,
    PLACES,
    Case,
    Forgery,
    Part,
    alone,
    compact,
    dumps,
    family,
    forgery,
    twin,
)

from agentguard.delegation import access_token
from agentguard.signing.canonical import b64url_decode, b64url_encode
from agentguard.signing.keys import Ed25519Signer

ORDER = 2**252 + 27742317777372353535851937790883648493


# --- signatures -----------------------------------------------------------------------------------


def with_signature(change: Callable[[bytes], bytes]) -> Callable[[Part], str]:
    def raw(part: Part) -> str:
        head, _dot, signature = compact(part).rpartition(".")
        return f"{head}.{b64url_encode(change(b64url_decode(signature)))}"

    return raw


def shifted(signature: bytes, times: int) -> bytes:
    """S + times * L: the same signature to a verifier that does not look."""
    s = int.from_bytes(signature[32:], "little") + times * ORDER
    return signature[:32] + (s % 2**256).to_bytes(32, "little")


def flipped(signature: bytes, bit: int) -> bytes:
    changed = bytearray(signature)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@family
def malleable_signatures(world: Any) -> Iterator[Case]:
    yield from twin(world)
    changes: dict[str, Callable[[bytes], bytes]] = {
        **{f"S + {n} L": partial(shifted, times=n) for n in (1, 2, 3, 7, 15)},
        **{f"bit {n} flipped": partial(flipped, bit=n) for n in range(3, 512, 29)},
        "the sign of R": lambda s: flipped(s, 255),
        "the top bit of S": lambda s: flipped(s, 511),
        "S = 0": lambda s: s[:32] + bytes(32),
        "R of small order": lambda s: bytes([1]) + bytes(31) + s[32:],
        "all of small order": lambda _s: bytes([1]) + bytes(63),
        "zero": lambda _s: bytes(64),
        "ones": lambda _s: b"\xff" * 64,
        "halves swapped": lambda s: s[32:] + s[:32],
        "reversed": lambda s: s[::-1],
        "short": lambda s: s[:-1],
        "long": lambda s: s + b"\0",
        "twice": lambda s: s * 2,
        "empty": lambda _s: b"",
        "in DER": lambda s: b"\x30\x44\x02\x20" + s[:32] + b"\x02\x20" + s[32:],
    }
    for place, (name, change) in itertools.product(PLACES, changes.items()):
        forged = forgery(world)
        forged.part(place).raw = with_signature(change)
        yield from forged.offers(f"{name} at {place}", "signature.invalid", alone=alone(place))


@family
def signatures_of_others(world: Any) -> Iterator[Case]:
    """Of another token, over another type, over the claims alone."""
    yield from twin(world)
    forged = forgery(world)
    whole = dict(zip(PLACES[:-1], forged.tokens(PLACES[:-1]), strict=True))
    for place, other in itertools.permutations(PLACES[:-1], 2):
        mixed = forgery(world)
        mixed.signed[place] = whole[place].rpartition(".")[0] + "." + whole[other].split(".")[2]
        codes = ("signature.invalid", "hop.parent")
        yield from mixed.offers(f"{other}'s signature under {place}", *codes)
    for place in PLACES:
        for name, over in (
            ("the payload", lambda head: head.split(".")[1]),
            ("the header", lambda head: head.split(".")[0]),
            ("the digest", lambda head: hashlib.sha256(head.encode()).hexdigest()),
            ("a context", lambda head: f"SigEd25519 no Ed25519 collisions\1\0{head}"),
        ):
            forged = forgery(world)

            def raw(part: Part, over: Any = over) -> str:
                head = compact(part).rpartition(".")[0]
                return f"{head}.{b64url_encode(part.signer.sign(over(head).encode()))}"

            forged.part(place).raw = raw
            yield from forged.offers(
                f"a signature over {name} at {place}", "signature.invalid", alone=alone(place)
            )


@family
def claims_changed_under_a_signature(world: Any) -> Iterator[Case]:
    yield from twin(world)
    for place in PLACES:
        for claim, value in forgery(world).part(place).claims.items():
            if claim in (access_token.CHAIN_CLAIM, "par"):
                continue
            forged = forgery(world)

            def raw(part: Part, claim: str = claim, value: Any = value) -> str:
                signature = compact(part).rpartition(".")[2]
                changed = {**part.claims, claim: other_than(value)}
                head = f"{b64url_encode(dumps(part.header))}.{b64url_encode(dumps(changed))}"
                return f"{head}.{signature}"

            forged.part(place).raw = raw
            yield from forged.offers(
                f"{claim} of {place}",
                *("signature.invalid", "chain.credential", "credential.not_yet_valid"),
                alone=alone(place),
            )


def other_than(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value + "x"
        case list():
            return [*value, "x"]
        case dict():
            return {**value, "x": 1}
    return "x"


# --- who signs ------------------------------------------------------------------------------------


@family
def signed_by_somebody_else(world: Any) -> Iterator[Case]:
    yield from twin(world)
    others = {
        "a stranger": world.key(),
        "an agent that holds nothing": world.member("d").signer,
        "another instance of the same agent": world.instance("a").signer,
        "the last agent": world.member("c").signer,
        "the log": world.log_key,
        "the administrator": world.admin,
        "the issuer": world.issuer,
        "agent a": world.member("a").signer,
    }
    for place, (name, signer) in itertools.product(PLACES, others.items()):
        for claims_to_be in (True, False):
            forged = forgery(world)
            part = forged.part(place)
            if signer is part.signer:
                continue
            part.signer = signer
            if not claims_to_be:
                part.header["kid"] = signer.key_id
            yield from forged.offers(
                f"{place} by {name}{', who says so' if not claims_to_be else ''}",
                *("signature.invalid", "key.unknown", "hop.key"),
                alone=alone(place),
            )


@family
def signed_all_anew_by_a_stranger(world: Any) -> Iterator[Case]:
    """Consistent in itself, from a root that nobody trusts."""
    yield from twin(world)
    for first in range(1, 5):
        forged = forgery(world)
        thief = world.key()
        for place in (*HOPS[first - 1 :], *CREDENTIALS, "token"):
            part = forged.part(place)
            part.signer = thief
            part.header["kid"] = thief.key_id
            if place in HOPS:
                part.claims["cnf"] = {"jkt": thief.key_id}
        yield from forged.offers(
            f"from hop {first} on",
            *("key.unknown", "signature.invalid", "hop.name", "chain.credential"),
        )
    other = type(world)()
    forged = forgery(other)
    forged.world = world
    yield from forged.offers("all of another trust domain", "key.unknown")


@family
def names_that_only_the_delegator_claims(world: Any) -> Iterator[Case]:
    """The agent's URI with another name, or a key without a credential."""
    yield from twin(world)
    for place, agent in (("hop 2", "a"), ("hop 3", "b"), ("hop 4", "c")):
        own = world.member(agent)
        for name in ("root", "A", "a.", "admin", f"{agent}2", f"{agent}/x", "", "..", "%61"):
            forged = forgery(world)
            claimed = own.uri.replace(f"/agent/{agent}/", f"/agent/{name}/")
            handed_on(forged, place, claimed, own.signer.key_id)
            yield from forged.offers(
                f"{place} calls {agent} {name!r}", "chain.credential", "hop.name"
            )
        lone = world.key()
        forged = forgery(world)
        handed_on(forged, place, f"{DOMAIN}/agent/{agent}/{lone.key_id}", lone.key_id, lone)
        yield from forged.offers(f"{place} to a key without a credential", "chain.credential")
        for uri in (
            f"spiffe://evil.example/agent/{agent}/{own.signer.key_id}",
            f"spiffe://acme.example.evil/agent/{agent}/{own.signer.key_id}",
            f"https://acme.example/agent/{agent}/{own.signer.key_id}",
            f"agent:{agent}",
            "service:other",
            DOMAIN,
            own.uri + "/",
            own.uri.upper(),
            own.uri.removesuffix(own.signer.key_id) + lone.key_id,
        ):
            forged = forgery(world)
            handed_on(forged, place, uri, own.signer.key_id)
            yield from forged.offers(
                f"{place} to {uri}", "hop.name", "chain.credential", "hop.malformed"
            )
        for issued in ("none", "of another agent", "of another instance", "self-signed"):
            forged = forgery(world)
            part = forged.part(f"credential {agent}")
            if issued == "none":
                forged.credentials = [c for c in CREDENTIALS if c != f"credential {agent}"]
            elif issued == "of another agent":
                forged.signed[f"credential {agent}"] = world.member("d").credential.token
            elif issued == "of another instance":
                forged.signed[f"credential {agent}"] = world.instance(agent).credential.token
            else:
                part.signer = own.signer
            yield from forged.offers(
                f"a credential {issued} for {agent}", "chain.credential", "signature.invalid"
            )


def handed_on(
    forged: Forgery, place: str, uri: str, key_id: str, signer: Ed25519Signer | None = None
) -> None:
    """Have a hop name another delegatee, and the next one go on from there."""
    forged.part(place).claims |= {"client_id": uri, "cnf": {"jkt": key_id}}
    following = HOPS[HOPS.index(place) + 1 :][:1]
    for further in following:
        forged.part(further).claims["iss"] = uri
        if signer is not None:
            forged.part(further).signer = signer
            forged.part(further).header["kid"] = signer.key_id


@family
def credentials_with_other_keys(world: Any) -> Iterator[Case]:
    """Signed by the issuer, which would never: keys that verify anything, or tell too much."""
    yield from twin(world)
    keys: dict[str, dict[str, Any]] = {
        "the identity": {"x": b64url_encode(bytes([1]) + bytes(31))},
        "zero": {"x": b64url_encode(bytes(32))},
        "not canonical": {"x": b64url_encode(b"\xff" * 32)},
        "short": {"x": "AAAA"},
        "another curve": {"crv": "Ed448"},
        "another type": {"kty": "EC"},
        "private": {"d": "AAAA"},
        "for another algorithm": {"alg": "ES256"},
        "for encryption": {"use": "enc"},
        "without alg": {"alg": None},
        "another one": {"x": b64url_encode(world.key().public_key.raw)},
    }
    for place, (name, change) in itertools.product(CREDENTIALS, keys.items()):
        forged = forgery(world)
        forged.part(place).claims["cnf"]["jwk"] |= change
        yield from forged.offers(
            f"{name} in {place}",
            *("key.weak", "key.malformed", "key.private", "credential.malformed"),
            *("credential.subject", "chain.credential"),
        )
