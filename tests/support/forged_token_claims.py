"""Forged hops that claim a wider scope, another principal, odd names or values of a wrong type."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

from token_forgery import DOMAIN, HOPS, Case, alone, family, forgery, twin, verify_pair

from agentguard.delegation import access_token

WIDER: dict[str, tuple[str, Any, str]] = {
    "one scope more": ("scope", "a b c", "hop.scope"),
    "another scope": ("scope", "c", "hop.scope"),
    "every scope": ("scope", "*", "hop.scope"),
    "a scope that begins alike": ("scope", "a aa b", "hop.scope"),
    "a scope in capitals": ("scope", "A", "hop.scope"),
    "a second more": ("exp", 1_800_003_601, "hop.expiry"),
    "for ever": ("exp", 253_402_300_799, "hop.expiry"),
    "an audience more": ("aud", [DOMAIN, "spiffe://other.example"], "hop.audience"),
    "another audience": ("aud", ["spiffe://other.example"], "hop.audience"),
    "an audience that begins alike": ("aud", [DOMAIN + "/"], "hop.audience"),
    "a depth more": ("max_depth", 7, "hop.depth"),
    "all depths": ("max_depth", 16, "hop.depth"),
    "no depth": ("max_depth", 1, "hop.depth"),
    "the first depth": ("depth", 1, "hop.depth"),
    "a depth left out": ("depth", 6, "hop.depth"),
    "no calls": ("max_calls", 0, "hop.malformed"),
    "another principal": ("sub", "user:bob", "hop.subject"),
    "another task": ("txn", "t-2", "hop.task"),
    "no task": ("txn", None, "hop.task"),
    "vouched for again": ("assurance", "application", "hop.issuer"),
    "vouched for by a token": ("assurance", "oidc", "hop.malformed"),
    "the issuer's word": ("asserted_by", "issuer", "hop.key"),
    "by the user": ("iss", "user:alice", "hop.issuer"),
    "by the trust domain": ("iss", DOMAIN, "hop.issuer"),
    "by the service": ("iss", "service:ci", "hop.issuer"),
    "by one that begins alike": ("iss", "service:ci2", "hop.issuer"),
}


@family
def widened(world: Any) -> Iterator[Case]:
    """By the one whose turn it is, who signs what he pleases; the hops after it go along."""
    forged = forgery(world)
    for place in HOPS[1:]:
        forged.part(place).claims |= {"scope": "a", "exp": world.now + 99, "max_depth": 4}
    forged.part("token").claims |= {"scope": "a", "exp": world.now + 99}
    yield from forged.offers("valid, and narrower")
    for place, (name, (claim, value, code)) in itertools.product(HOPS[1:], WIDER.items()):
        forged = forgery(world)
        if forged.part(place).claims[claim] == value:
            continue
        for further in HOPS[HOPS.index(place) :]:
            if claim in ("scope", "exp", "aud", "sub", "txn", "max_depth") or further == place:
                forged.part(further).claims[claim] = value
        yield from forged.offers(f"{name} at {place}", code)
    for calls in (6, 2**53 - 1):
        forged = forgery(world)
        forged.part("hop 2").claims["max_calls"] = calls
        yield from forged.offers(f"{calls} calls", "hop.calls")
        forged = forgery(world)
        forged.part("hop 3").claims["max_calls"] = 2
        forged.part("hop 4").claims["max_calls"] = calls
        yield from forged.offers(f"{calls} calls of two", "hop.calls")


@family
def altered_principals(world: Any) -> Iterator[Case]:
    forged = forgery(world, principal="user:bob")
    yield from forged.offers("valid, of bob")
    others = ("user:bob", "user:Alice", "user:alice ", "user:alic", "user:alice2", "root", "")
    for name, first in itertools.product(others, range(4)):
        forged = forgery(world)
        for place in HOPS[first:]:
            forged.part(place).claims["sub"] = name
        if first == 0:  # the root was signed for alice: whoever alters it has no issuer's key
            forged.part("hop 1").signer = world.member("a").signer
        yield from forged.offers(
            f"{name!r} from hop {first + 1} on", "hop.subject", "hop.malformed", "signature.invalid"
        )
    for name in others[:-1]:
        forged = forgery(world)
        forged.part("token").claims["sub"] = name
        yield from forged.offers(f"{name!r} in the token", "token.mismatch", alone=False)


ODD = {
    "NUL": "\0",
    "a line feed": "\n",
    "a carriage return": "\r",
    "a space": " ",
    "a tab": "\t",
    "DEL": "\x7f",
    "an escape": "\x1b[2J",
    "a space that does not break": "\xa0",
    "nothing that is there": "\u200b",
    "a joiner": "\u200d",
    "right to left": "\u202e",
    "a mark": "\u0301",
    "a soft hyphen": "\xad",
    "a tag": "\U000e0061",
    "a byte order mark": "\ufeff",
    "another alphabet": "\u0430",
    "full width": "\uff41",
    "mathematics": "\U0001d41a",
    "a ligature": "\ufb01",
    "the Kelvin sign": "\u212a",
    "a dotless i": "\u0131",
}


@family
def names_in_other_characters(world: Any) -> Iterator[Case]:
    """All hops agree, and the issuer has signed: names are ASCII, so none looks like another."""
    yield from forgery(world, principal="https://idp.example#42|x").offers("valid")
    for (name, odd), where in itertools.product(
        ODD.items(), ("sub", "txn of none", "aud", "scope")
    ):
        claim = where.split()[0]
        if claim == "txn":
            continue
        forged = forgery(world)
        for place in HOPS:
            claims = forged.part(place).claims
            claims[claim] = (
                [claims[claim][0] + odd] if claim == "aud" else f"{claims[claim]}{odd}".lstrip()
            )
        yield from forged.offers(f"{name} in {claim}", "hop.malformed")
    for (name, odd), place in itertools.product(ODD.items(), HOPS):
        for claim in ("iss", "client_id"):
            forged = forgery(world)
            forged.part(place).claims[claim] += odd
            yield from forged.offers(f"{name} in {claim} of {place}", "hop.malformed", "hop.issuer")
        forged = forgery(world)
        forged.part(place).claims["jti"] = "jti-" + odd + "00000001"
        yield from forged.offers(f"{name} in jti of {place}", "hop.malformed")


WRONG: list[Any] = [None, True, False, 5, 1.5, "", "x", [], ["a"], {}, {"x": 1}, [[]], -1]


@family
def claims_of_the_wrong_type(world: Any) -> Iterator[Case]:
    yield from twin(world)
    for place in (*HOPS, "token"):
        for claim in forgery(world).part(place).claims:
            for value in WRONG:
                if is_fine(place, claim, value):
                    continue
                forged = forgery(world)
                forged.relink = claim != "par"
                forged.part(place).claims[claim] = value
                if claim == access_token.CHAIN_CLAIM:
                    pair = forged.part(place).sign(), forged.token()[1]
                    yield Case(
                        f"{claim} {value!r}",
                        partial(verify_pair, pair, trust=world.trust, at=world.now),
                        frozenset({"token.mismatch"}),
                    )
                    continue
                yield from forged.offers(
                    f"{claim} {value!r} at {place}",
                    *("hop.malformed", "hop.depth", "hop.issuer", "hop.subject", "hop.task"),
                    *("hop.parent", "hop.key", "hop.scope", "hop.audience", "hop.calls"),
                    *("hop.name", "hop.expired", "hop.expiry", "credential.not_yet_valid"),
                    *("token.malformed", "token.mismatch", "key.expired", "token.expired"),
                    *("token.lifetime",),
                    alone=alone(place),
                )
            if claim in (access_token.CHAIN_CLAIM, "par"):
                continue
            forged = forgery(world)
            del forged.part(place).claims[claim]
            yield from forged.offers(
                f"no {claim} at {place}", "hop.malformed", "token.malformed", alone=alone(place)
            )


def is_fine(place: str, claim: str, value: Any) -> bool:
    """Whether a claim may be so: no limit of its own, nothing at all to do, an id of a token."""
    if place == "token":
        return claim == "jti" and isinstance(value, str)
    original: dict[str, Any] = {"max_calls": None, "assurance": None, "asserted_by": None}
    if place == "hop 1":
        original = {"max_calls": None, "par": None}
    narrower: list[tuple[str, Any]] = [("max_calls", None), ("max_calls", 5), ("max_depth", 5)]
    if place == "hop 1":
        narrower.append(("iat", 5))
    if place == "hop 4":
        narrower.append(("scope", ""))
    return (claim in original and value is original[claim]) or any(
        claim == name and type(value) is type(other) and value == other for name, other in narrower
    )


@family
def empty_and_odd_scopes(world: Any) -> Iterator[Case]:
    forged = forgery(world, scope=())
    yield from forged.offers("valid: nothing may be done")
    for place, scope in itertools.product(HOPS[1:], ("a", "a b", "*")):
        forged = forgery(world, scope=())
        for further in HOPS[HOPS.index(place) :]:
            forged.part(further).claims["scope"] = scope
        yield from forged.offers(f"{scope} out of nothing at {place}", "hop.scope")
    forms: list[Any] = [
        " ",
        "  ",
        "a ",
        " a",
        "a  b",
        "b a",
        "a a",
        "a\tb",
        "a\\b",
        ["a"],
        {"a": 1},
    ]
    for place, scope in itertools.product(HOPS, forms):
        forged = forgery(world)
        for further in HOPS[HOPS.index(place) :]:
            forged.part(further).claims["scope"] = scope
        yield from forged.offers(f"scope {scope!r} from {place} on", "hop.malformed", "hop.scope")
    forged = forgery(world)
    forged.part("token").claims["scope"] = "a b c"
    yield from forged.offers("more in the token", "token.mismatch", alone=False)
