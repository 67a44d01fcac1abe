"""Forged tokens whose headers name other algorithms, keys or types."""

from __future__ import annotations

import base64
import hmac
import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

from token_forgery import (
    CREDENTIALS,
    HOPS,
    PLACES,
    Case,
    Part,
    alone,
    compact,
    dumps,
    family,
    forgery,
    twin,
    verify_pair,
)

from agentguard.delegation.chain import CHAIN_TYPE
from agentguard.signing.canonical import b64url_encode

ALGORITHMS: list[Any] = [
    "none",
    "None",
    "NONE",
    "nOnE",
    "HS256",
    "HS384",
    "HS512",
    "RS256",
    "ES256",
    "ES256K",
    "PS256",
    "EdDSA ",
    " EdDSA",
    "eddsa",
    "EDDSA",
    "ed25519",
    "Ed448",
    "EdDSA\0",
    "Ed25519ph",
    "",
    5,
    0,
    None,
    True,
    ["EdDSA"],
    {"alg": "EdDSA"},
]


@family
def algorithm_confusion(world: Any) -> Iterator[Case]:
    yield from twin(world)
    for place, algorithm in itertools.product(PLACES, ALGORITHMS):
        forged = forgery(world)
        forged.part(place).header["alg"] = algorithm
        yield from forged.offers(
            f"alg {algorithm!a} at {place}", "jws.algorithm", alone=alone(place)
        )
    for place in PLACES:
        forged = forgery(world)
        del forged.part(place).header["alg"]
        yield from forged.offers(f"no alg at {place}", "jws.algorithm", alone=alone(place))


@family
def other_algorithms_signatures(world: Any) -> Iterator[Case]:
    """As the algorithm in the header asks for: with no key, or with the public one as a secret."""
    forged = forgery(world)
    for place in PLACES:
        forged.part(place).header["alg"] = "Ed25519"  # RFC 9864: the one other name
    yield from forged.offers("valid")
    for place in PLACES:
        public = forgery(world).part(place).signer.public_key
        secrets = {
            "raw": public.raw,
            "x": b64url_encode(public.raw).encode(),
            "jwk": dumps(public.jwk()),
            "kid": public.thumbprint.encode(),
            "nothing": b"",
        }
        for name, secret in secrets.items():
            forged = forgery(world)
            forged.part(place).header["alg"] = "HS256"
            forged.part(place).raw = lambda part, secret=secret: hmac_signed(part, secret)
            yield from forged.offers(
                f"HMAC with {name} at {place}", "jws.algorithm", alone=alone(place)
            )
        for algorithm in ("none", "EdDSA"):
            forged = forgery(world)
            forged.part(place).header["alg"] = algorithm
            forged.part(place).raw = lambda part: compact(part).rpartition(".")[0] + "."
            code = "jws.algorithm" if algorithm == "none" else "signature.invalid"
            yield from forged.offers(f"{algorithm}, unsigned at {place}", code, alone=alone(place))


def hmac_signed(part: Part, secret: bytes) -> str:
    head = compact(part).rpartition(".")[0]
    return f"{head}.{b64url_encode(hmac.digest(secret, head.encode(), 'sha256'))}"


def key_headers(world: Any) -> dict[str, list[Any]]:
    own = world.key().public_key
    certificate = base64.b64encode(own.raw).decode()
    return {
        "jku": ["https://evil.example/jwks", "file:///etc/passwd", "", None],
        "jwk": [own.jwk(), {**own.jwk(), "alg": "EdDSA"}, {}, None],
        "x5u": ["https://evil.example/x509", None],
        "x5c": [[certificate], [], None],
        "crit": [["exp"], ["b64"], [], None, "exp"],
        "b64": [False, True, None],
        "zip": ["DEF", None],
        "enc": ["A256GCM", None],
    }


@family
def header_keys(world: Any) -> Iterator[Case]:
    yield from twin(world)
    for place, (name, values) in itertools.product(PLACES, key_headers(world).items()):
        for value in values:
            forged = forgery(world)
            forged.part(place).header[name] = value
            yield from forged.offers(
                f"{name} {value!a} at {place}", "jws.header", alone=alone(place)
            )


@family
def a_key_that_the_token_brings_along(world: Any) -> Iterator[Case]:
    yield from twin(world)
    thief = world.key()
    for place in PLACES:
        for name, value in (
            ("jwk", thief.public_key.jwk()),
            ("jku", "https://evil.example/jwks"),
            ("x5c", [base64.b64encode(thief.public_key.raw).decode()]),
        ):
            for kid in (thief.key_id, None):
                forged = forgery(world)
                part = forged.part(place)
                part.signer = thief
                part.header[name] = value
                if kid is not None:
                    part.header["kid"] = kid
                yield from forged.offers(
                    f"{name} of {place}'s own", "jws.header", alone=alone(place)
                )


@family
def key_ids(world: Any) -> Iterator[Case]:
    yield from twin(world)
    others = {
        "the log's": world.log_key.key_id,
        "the admin's": world.admin.key_id,
        "an agent's": world.member("d").signer.key_id,
        "a stranger's": world.key().key_id,
        "nobody's": "x" * 43,
        "a path": "../../keys/issuer",
        "a device": "/dev/null",
        "SQL": "' OR 1=1 --",
        "a URL": "https://evil.example/key",
        "empty": "",
        "with NUL": world.issuer.key_id + "\0",
        "with a space": world.issuer.key_id + " ",
        "in another case": world.issuer.key_id.swapcase(),
    }
    for place, (name, kid) in itertools.product(PLACES, others.items()):
        forged = forgery(world)
        forged.part(place).header["kid"] = kid
        code = "hop.key" if place in ("hop 3", "hop 4") else "key.unknown"
        yield from forged.offers(f"kid {name} at {place}", code, alone=alone(place))
    malformed = {"token": "token.malformed", **dict.fromkeys(CREDENTIALS, "credential.malformed")}
    wrong: list[Any] = [5, None, True, [], {}, ["x"]]
    for place, kid in itertools.product(PLACES, wrong):
        forged = forgery(world)
        forged.part(place).header["kid"] = kid
        code = malformed.get(place, "hop.malformed")
        yield from forged.offers(f"kid {kid!r} at {place}", code, alone=alone(place))
    for place in PLACES:
        forged = forgery(world)
        del forged.part(place).header["kid"]
        code = malformed.get(place, "hop.malformed")
        yield from forged.offers(f"no kid at {place}", code, alone=alone(place))


@family
def types_for_one_another(world: Any) -> Iterator[Case]:
    forged = forgery(world)
    for place in PLACES:
        forged.part(place).header["typ"] = "application/" + forged.part(place).header["typ"].upper()
    yield from forged.offers("valid")  # RFC 7515, 4.1.9
    own = {**dict.fromkeys(HOPS, "ag-hop+jwt"), **dict.fromkeys(CREDENTIALS, "wit+jwt")}
    types: list[Any] = [
        "ag-hop+jwt",
        "wit+jwt",
        "at+jwt",
        "JWT",
        "dpop+jwt",
        "",
        None,
        5,
        ["at+jwt"],
    ]
    for place, typ in itertools.product(PLACES, types):
        if typ != own.get(place, "at+jwt"):
            forged = forgery(world)
            forged.part(place).header["typ"] = typ
            yield from forged.offers(f"typ {typ!r} at {place}", "jws.type", alone=alone(place))
    for place in PLACES:
        forged = forgery(world)
        del forged.part(place).header["typ"]
        yield from forged.offers(f"no typ at {place}", "jws.type", alone=alone(place))


@family
def tokens_for_one_another(world: Any) -> Iterator[Case]:
    """Whole tokens, as they were issued, in the places of others."""
    yield from twin(world)
    forged = forgery(world)
    token, chain = forged.token()
    whole = {**dict(zip(PLACES, forged.tokens(PLACES), strict=True)), "token": token}
    for place, other in itertools.permutations(PLACES, 2):
        if place == "token":
            pair = whole[other], chain
            yield Case(
                f"{other} as token",
                partial(verify_pair, pair, trust=world.trust, at=world.now),
                frozenset({"jws.type", "token.malformed", "key.unknown"}),
            )
            continue
        forged = forgery(world)
        forged.signed[place] = whole[other]
        yield from forged.offers(
            f"{other} as {place}",
            *("jws.type", "key.unknown", "hop.issuer", "hop.parent", "signature.invalid"),
            *("chain.credential", "credential.malformed", "hop.malformed", "credential.subject"),
        )
    for place in HOPS:
        stored = dumps({"type": CHAIN_TYPE, **forgery(world).chain()}).decode()
        forged = forgery(world)
        forged.signed[place] = stored
        yield from forged.offers(f"a chain as {place}", "jws.malformed", "jws.algorithm")
