"""A valid chain and an access token over it, which a forger changes and re-signs.

A forger may hold any key but the key that the attack lacks. ``family`` registers a generator of
cases; the generators are in the modules ``forged_token_*``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from agentguard.delegation import access_token, verification
from agentguard.delegation.chain import CHAIN_TYPE, hops_digest
from agentguard.signing import jws
from agentguard.signing.canonical import b64url_encode
from agentguard.signing.keys import Ed25519Signer

DOMAIN = "spiffe://acme.example"
HOPS = ("hop 1", "hop 2", "hop 3", "hop 4")
CREDENTIALS = ("credential a", "credential b", "credential c")
PLACES = (*HOPS, *CREDENTIALS, "token")


class Case(NamedTuple):
    """What is offered; ``codes`` are those with which it may be refused, empty for the twin.

    ``forge`` signs what ``offer`` then takes: at its turn, and never where it is left out.
    """

    name: str
    offer: Callable[..., object]
    codes: frozenset[str]
    forge: Callable[[], Any] | None = None

    def ready(self) -> Callable[[], object]:
        return self.offer if self.forge is None else partial(self.offer, self.forge())


Family = Callable[[Any], Iterator[Case]]
FAMILIES: dict[str, Family] = {}


def family(generator: Family) -> Family:
    FAMILIES[generator.__name__.replace("_", " ")] = generator
    return generator


@dataclass
class Part:
    """One token before it is signed. ``raw`` makes it of header, claims and signer, if need be."""

    header: dict[str, Any]
    claims: dict[str, Any]
    signer: Ed25519Signer
    raw: Callable[[Part], str] | None = None

    def sign(self) -> str:
        return self.raw(self) if self.raw is not None else compact(self)


@dataclass
class Forgery:
    """A chain and an access token over it, in the hands of a forger; each hop names its parent.

    ``relink`` False leaves ``par`` as it is.
    """

    world: Any
    parts: dict[str, Part]
    hops: Sequence[str] = HOPS
    credentials: Sequence[str] = CREDENTIALS
    relink: bool = True
    signed: dict[str, str] = field(default_factory=dict)

    def part(self, place: str) -> Part:
        return self.parts[place]

    def tokens(self, places: Sequence[str]) -> list[str]:
        found: list[str] = []
        for place in places:
            part = self.parts[place]
            if place in HOPS and found and self.relink:
                part.claims["par"] = digest(found[-1])
            found.append(self.signed.get(place) or part.sign())
        return found

    def chain(self) -> dict[str, Any]:
        return {"hops": self.tokens(self.hops), "credentials": self.tokens(self.credentials)}

    def token(self) -> tuple[str, bytes]:
        """The token, and the chain beside it, whose digest the token has."""
        part, chain = self.parts["token"], self.chain()
        part.claims[access_token.CHAIN_CLAIM] = hops_digest(list(map(str, chain["hops"])))
        return part.sign(), dumps({"type": CHAIN_TYPE, **chain})

    def offers(self, name: str, *codes: str, alone: bool = True) -> Iterator[Case]:
        """Offer it as a chain by itself, and as a token."""
        given: Any = {"trust": self.world.trust, "at": self.world.now}
        expected = frozenset(codes)
        if alone:
            taken = partial(verification.from_json, **given)
            yield Case(f"{name}, a chain", taken, expected, self.chain)
        yield Case(f"{name}, a token", partial(verify_pair, **given), expected, self.token)


def verify_pair(pair: tuple[str, bytes], **given: Any) -> object:
    return access_token.verify(*pair, **given)


def digest(token: str) -> str:
    return hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()


def compact(part: Part) -> str:
    return encoded(part, dumps(part.header), dumps(part.claims))


def dumps(value: Any) -> bytes:
    """JSON as a forger writes it: NaN and all."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


def encoded(part: Part, header: bytes, payload: bytes) -> str:
    """Any header and payload, well signed."""
    return signed_text(part, b64url_encode(header), b64url_encode(payload))


def signed_text(part: Part, header: str, payload: str) -> str:
    head = f"{header}.{payload}"
    return f"{head}.{b64url_encode(part.signer.sign(head.encode()))}"


def forgery(
    world: Any,
    *,
    scope: Sequence[str] = ("a", "b"),
    principal: str = "user:alice",
    number: int = 0,
) -> Forgery:
    """Valid as it is: user:alice, service:ci, and the agents a, b and c, with five calls.

    Another ``number`` is another chain, of which all but the ids and signatures is the same.
    """
    key = (world, tuple(scope), principal, number)
    if key not in MADE:
        parts = made(world, scope, principal)
        MADE[key] = {place: (part, json.dumps(part.claims)) for place, part in parts.items()}
    copies = {
        place: replace(part, header=dict(part.header), claims=json.loads(claims))
        for place, (part, claims) in MADE[key].items()
    }
    return Forgery(world, copies)


MADE: dict[Any, dict[str, tuple[Part, str]]] = {}


def made(world: Any, scope: Sequence[str], principal: str) -> dict[str, Part]:
    chain = world.chain(
        "a", "b", "c", scope=scope, principal=principal, task_id="t-1", max_calls=5, max_depth=6
    )
    signers = [world.issuer, world.issuer, world.member("a").signer, world.member("b").signer]
    parts: dict[str, Part] = {}
    for place, hop, signer in zip(HOPS, chain.hops, signers, strict=True):
        parts[place] = taken_apart(hop.token, signer)
    for place, issued in zip(CREDENTIALS, chain.credentials, strict=True):
        parts[place] = taken_apart(issued.token, world.issuer)
    minted = access_token.mint(chain, world.issuer, now=world.now, jti="token-0001")
    parts["token"] = taken_apart(minted.token, world.issuer)
    parts["token"].claims[access_token.CHAIN_CLAIM] = None  # put in when it is signed
    return parts


def taken_apart(token: str, signer: Ed25519Signer) -> Part:
    parsed = jws.parse(token)
    return Part(dict(parsed.header), parsed.claims(), signer)


def alone(place: str) -> bool:
    """Whether an attack at a place is one on the chain by itself, too."""
    return place != "token"


def twin(world: Any) -> Iterator[Case]:
    yield from forgery(world).offers("valid")


NONE: frozenset[str] = frozenset()
