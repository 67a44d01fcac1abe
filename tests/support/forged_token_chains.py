"""Forged chains: spliced, reordered or too deep, for another audience, or at another time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from token_forgery import (
    CREDENTIALS,
    DOMAIN,
    HOPS,
    NONE,
    Case,
    Forgery,
    Part,
    alone,
    digest,
    dumps,
    encoded,
    family,
    forgery,
    twin,
    verify_pair,
)

from agentguard.delegation import access_token, verification
from agentguard.delegation import grant as grants
from agentguard.delegation.grant import MAX_DEPTH

# --- whose hops, and in which order ---------------------------------------------------------------


def other_chains(world: Any) -> dict[str, Forgery]:
    return {
        "another one of the same": forgery(world, number=1),
        "another user's": forgery(world, principal="user:bob"),
        "one with more": forgery(world, scope=("a", "b", "c")),
        "one with less": forgery(world, scope=("a",)),
    }


@family
def spliced(world: Any) -> Iterator[Case]:
    yield from twin(world)
    for name, other in other_chains(world).items():
        theirs = other.tokens(HOPS)
        for chosen in itertools.product((False, True), repeat=4):
            if len(set(chosen)) == 1:
                continue
            ours = forgery(world).tokens(HOPS)
            mixed = [b if pick else a for a, b, pick in zip(ours, theirs, chosen, strict=True)]
            forged = forgery(world)
            forged.signed = dict(zip(HOPS, mixed, strict=True))
            where = ", ".join(str(n) for n, pick in enumerate(chosen, 1) if pick)
            yield from forged.offers(f"hops {where} of {name}", "hop.parent")
        for place in HOPS[1:]:  # the holder himself appends his hop to another chain of his
            forged = forgery(world)
            forged.relink = False
            forged.part(place).claims["par"] = digest(forged.tokens(HOPS)[HOPS.index(place) - 1])
            forged.signed = dict(zip(HOPS, theirs, strict=True))
            del forged.signed[place]
            yield from forged.offers(f"{place} over {name}", "hop.parent")


@family
def reordered_repeated_and_dropped(world: Any) -> Iterator[Case]:
    yield from twin(world)
    orders = [order for order in itertools.permutations(HOPS) if order != HOPS]
    orders += [order for n in (1, 2, 3) for order in itertools.permutations(HOPS, n)]
    orders += [(*HOPS[:n], HOPS[n], *HOPS[n:]) for n in range(4)]
    orders += [(*HOPS, place) for place in HOPS[:3]]
    for order in orders:
        forged = forgery(world)
        forged.signed = dict(zip(HOPS, forged.tokens(HOPS), strict=True))
        forged.hops = order
        codes = ["hop.issuer", "hop.parent", "hop.key", "signature.invalid", "key.unknown"]
        if order == HOPS[: len(order)]:
            codes = ["chain.credential"]  # cut short, it is the holder's own chain: see below
        yield from forged.offers(", ".join(order), *codes, "chain.credential")
    for order in itertools.permutations(CREDENTIALS):
        if order != CREDENTIALS:
            forged = forgery(world)
            forged.credentials = order
            yield from forged.offers(", ".join(order), "chain.credential")
    forged = forgery(world)
    forged.part("hop 4").claims["jti"] = forged.part("hop 2").claims["jti"]
    yield from forged.offers("two hops of one id", "hop.repeated")


@family
def cut_short_in_a_token(world: Any) -> Iterator[Case]:
    """What agent b was given is b's; a token for c does not live on it."""
    chain = forgery(world)
    chain.hops, chain.credentials = HOPS[:3], CREDENTIALS[:2]
    made = chain.chain()
    yield Case(
        "valid: b's own chain",
        partial(verification.from_json, made, world.trust, at=world.now),
        NONE,
    )
    for hops, credentials in ((3, 2), (2, 1), (1, 0)):
        forged = forgery(world)
        forged.hops, forged.credentials = HOPS[:hops], CREDENTIALS[:credentials]
        yield from forged.offers(f"{hops} hops", "token.mismatch", alone=False)


# --- depth ----------------------------------------------------------------------------------------


@family
def depth_bombs(world: Any) -> Iterator[Case]:
    names = [f"deep-{n}" for n in range(MAX_DEPTH - 1)]
    deepest = world.chain(*names, max_depth=MAX_DEPTH)
    minted = access_token.mint(deepest, world.issuer, now=world.now, jti="token-0001")
    yield Case(
        "valid: 16 hops",
        partial(access_token.verify, minted.token, deepest.dumps(), world.trust, at=world.now),
        NONE,
    )
    last, holder = deepest.leaf, world.member(names[-1])
    for more in (1, 2, 8, 64):
        hops, parent = [hop.token for hop in deepest.hops], deepest.hops[-1]
        for n in range(more):
            beyond = world.member("a")
            grant = replace(
                last,
                delegator=parent.grant.delegatee,
                delegatee=beyond.uri,
                key_id=beyond.signer.key_id,
                parent=parent.digest,
                depth=MAX_DEPTH + 1 + n,
                max_depth=MAX_DEPTH + more,
                jti=world.jti(),
            )
            parent = grants.sign(grant, holder.signer)
            holder = beyond
            hops.append(parent.token)
        holder = world.member(names[-1])
        held = [issued.token for issued in deepest.credentials]
        yield Case(
            f"{16 + more} hops",
            partial(verification.verify, hops, held, world.trust, at=world.now),
            frozenset({"chain.malformed"}),
        )
    held = [issued.token for issued in deepest.credentials]
    hops = [hop.token for hop in deepest.hops]
    big = encoded(
        Part({}, {}, world.key()), b"{}", dumps({"sub": world.member("a").uri, "x": "y" * 190_000})
    )
    many: dict[str, tuple[list[str], list[str], str]] = {
        "33 credentials": (hops, held * 2 + held[:3], "chain.malformed"),
        "30 credentials": (hops, held * 2, "chain.credential"),
        "a thousand hops": (hops * 63, held, "chain.malformed"),
        "one hop a thousand times": (hops[:1] * 1000, [], "chain.malformed"),
        "32 big credentials": (hops, [*held, *[big] * 17], "chain.credential"),
        "big credentials first": (hops, [*[big] * 17, *held], "chain.credential"),
    }
    for name, (some, credentials, code) in many.items():
        yield Case(
            name,
            partial(verification.verify, some, credentials, world.trust, at=world.now),
            frozenset({code}),
        )
    for levels in (17, 63, 70, 1000, 20_000):
        forged = forgery(world)
        act = b'{"sub":"x","act":' * levels + b"{}" + b"}" * levels

        def raw(part: Part, act: bytes = act) -> str:
            marked = dumps({**part.claims, "act": "<here>"})
            return encoded(part, dumps(part.header), marked.replace(b'"<here>"', act))

        forged.part("token").raw = raw
        yield from forged.offers(
            f"{levels} actors",
            *("token.mismatch", "json.depth", "json.size", "jws.malformed"),
            alone=False,
        )


# --- for whom a token is --------------------------------------------------------------------------


@family
def wrong_audience_and_issuer(world: Any) -> Iterator[Case]:
    yield from twin(world)
    pair = forgery(world).token()
    for audience in (
        "",
        "*",
        "spiffe://other.example",
        DOMAIN + "/",
        DOMAIN.upper(),
        "acme.example",
        DOMAIN + "\0",
        DOMAIN + " ",
        DOMAIN[:-1],
        "spiffe://acme.example.evil",
    ):
        yield Case(
            f"at {audience!r}",
            partial(verify_pair, pair, trust=world.trust, at=world.now, audience=audience),
            frozenset({"token.audience"}),
        )
    named = world.chain("a", audience=("https://a.example",))
    minted = access_token.mint(named, world.issuer, now=world.now, jti="token-0001").token
    given: dict[str, Any] = {"trust": world.trust, "at": world.now}
    other = (minted, named.dumps())
    yield Case(
        "valid where it is for",
        partial(verify_pair, other, audience="https://a.example", **given),
        NONE,
    )
    for asked in (None, DOMAIN, "https://b.example", "https://a.example.evil", "https://A.example"):
        yield Case(
            f"for https://a.example at {asked}",
            partial(verify_pair, other, audience=asked, **given),
            frozenset({"token.audience"}),
        )
    issuers = ("spiffe://evil.example", DOMAIN + "/", DOMAIN.upper(), "user:alice", "acme.example")
    for place, issuer in itertools.product(("hop 1", *CREDENTIALS, "token"), issuers):
        forged = forgery(world)
        forged.part(place).claims["iss"] = issuer
        yield from forged.offers(
            f"{place} issued by {issuer}",
            *("hop.issuer", "credential.issuer", "token.mismatch", "hop.malformed"),
            alone=alone(place),
        )
    elsewhere = replace(world.trust, trust_domain="other.example")
    offers: dict[str, Callable[[], object]] = {
        "the token": partial(verify_pair, pair, trust=elsewhere, at=world.now),
        "the token, as it names itself": partial(
            verify_pair, pair, trust=elsewhere, at=world.now, audience=DOMAIN
        ),
        "the chain": lambda: verification.from_json(
            forgery(world).chain(), elsewhere, at=world.now
        ),
    }
    for name, offer in offers.items():
        yield Case(f"{name} in another domain", offer, frozenset({"hop.issuer"}))


@family
def at_other_times(world: Any) -> Iterator[Case]:
    yield from twin(world)
    pair, made = forgery(world).token(), forgery(world).chain()
    for at in (world.now - 1, 0, -1, -(2**70), world.now + 300, world.now + 3600, 2**63, 2**100):
        yield Case(
            f"the token at {at}",
            partial(verify_pair, pair, trust=world.trust, at=at),
            frozenset({"token.expired", "token.not_yet_valid"}),
        )
        if not world.now <= at < world.now + 3600:
            yield Case(
                f"the chain at {at}",
                partial(verification.from_json, made, world.trust, at=at),
                frozenset({"hop.expired", "hop.not_yet_valid"}),
            )
    for place, (iat, exp) in itertools.product(
        HOPS, ((0, 1), (0, world.now), (world.now + 1, world.now + 2), (5, 5), (9, 8))
    ):
        forged = forgery(world)
        forged.part(place).claims |= {"iat": iat, "exp": exp}
        yield from forged.offers(
            f"{place} from {iat} to {exp}",
            *("hop.expired", "hop.not_yet_valid", "hop.malformed", "hop.expiry"),
            *("credential.not_yet_valid",),
        )
    for lifetime in (301, 3600, 10**9):
        forged = forgery(world)
        forged.part("token").claims["exp"] = world.now + lifetime
        yield from forged.offers(f"{lifetime} s", "token.lifetime", alone=False)
