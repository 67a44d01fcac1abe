"""Forged tokens in JSON, base64 and forms that no writer of tokens produces."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
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
    encoded,
    family,
    forgery,
    twin,
)

from agentguard.delegation import access_token
from agentguard.signing.canonical import b64url_encode

# --- JSON -----------------------------------------------------------------------------------------


def doubled(value: Mapping[str, Any], name: str, first: Any) -> bytes:
    """A JSON object with one key twice: the forger's value first, the signed one last."""
    return b"{" + dumps(name) + b":" + dumps(first) + b"," + dumps(dict(value))[1:]


@family
def duplicate_keys(world: Any) -> Iterator[Case]:
    yield from twin(world)
    for place in PLACES:
        for part_of in ("header", "claims"):
            for name in getattr(forgery(world).part(place), part_of):
                if name == access_token.CHAIN_CLAIM:
                    continue
                forged = forgery(world)

                def raw(part: Part, name: str = name, part_of: str = part_of) -> str:
                    header, claims = dumps(part.header), dumps(part.claims)
                    if part_of == "header":
                        header = doubled(part.header, name, part.header[name])
                    else:
                        claims = doubled(part.claims, name, part.claims[name])
                    return encoded(part, header, claims)

                forged.part(place).raw = raw
                yield from forged.offers(
                    f"{name} twice in the {part_of} of {place}",
                    "json.duplicate_key",
                    alone=alone(place),
                )
    for place in HOPS:
        forged = forgery(world)
        forged.part(place).raw = lambda part: encoded(
            part,
            dumps(part.header),
            dumps(part.claims).replace(b'"cnf": {', b'"cnf": {"jkt": "x", '),
        )
        yield from forged.offers(f"cnf.jkt twice at {place}", "json.duplicate_key")


NUMBERS = {
    "NaN": "json.number",
    "Infinity": "json.number",
    "-Infinity": "json.number",
    "1e400": "json.number",
    "-1e400": "json.number",
    "1" + "0" * 400: "json.number",
    "9007199254740993": "malformed",
    "1e30": "malformed",
    "1800000000.0": "malformed",
    "1.8e9": "malformed",
    "-1": "malformed",
    "-0": "malformed",
    "01": "json.malformed",
    "+1": "json.malformed",
    "0x10": "json.malformed",
    "1_000": "json.malformed",
}


@family
def numbers(world: Any) -> Iterator[Case]:
    yield from twin(world)
    for place in PLACES:
        part = forgery(world).part(place)
        for claim in [name for name, value in part.claims.items() if type(value) is int]:
            for number, code in NUMBERS.items():
                if (claim, place) == ("iat", "hop 1") and number == "-0":
                    continue  # it is old, and good
                forged = forgery(world)

                def raw(part: Part, claim: str = claim, number: str = number) -> str:
                    marked = dumps({**part.claims, claim: "<here>"})
                    return encoded(
                        part, dumps(part.header), marked.replace(b'"<here>"', number.encode())
                    )

                forged.part(place).raw = raw
                codes = [code] if code.startswith("json.") else refusals(place)
                yield from forged.offers(
                    f"{claim} {number[:20]} at {place}", *codes, alone=alone(place)
                )


def refusals(place: str) -> list[str]:
    """With which a token is refused at a place whose numbers are none that it could have."""
    if place == "token":
        return ["token.malformed", "key.expired", "token.lifetime", "token.expired"]
    if place in CREDENTIALS:
        return ["credential.malformed", "key.expired", "credential.lifetime", "credential.expired"]
    return [
        "hop.malformed",
        "hop.depth",
        "hop.expired",
        "hop.expiry",
        "hop.parent",
        "key.expired",
        "credential.not_yet_valid",
        "hop.calls",
    ]


TEXTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a byte order mark": (lambda text: b"\xef\xbb\xbf" + text, "json.utf8"),
    "not UTF-8": (lambda text: text.replace(b'"', b'"\xff', 1), "json.utf8"),
    "UTF-16": (lambda text: text.decode().encode("utf-16"), "json.utf8"),
    "trailing bytes": (lambda text: text + b"{}", "json.malformed"),
    "a trailing comma": (lambda text: text[:-1] + b",}", "json.malformed"),
    "a comment": (lambda text: text[:-1] + b"/**/}", "json.malformed"),
    "single quotes": (lambda text: text.replace(b'"', b"'"), "json.malformed"),
    "cut": (lambda text: text[:-1], "json.malformed"),
    "empty": (lambda _text: b"", "json.malformed"),
    "NUL": (lambda text: text + b"\0", "json.malformed"),
    "a list around it": (lambda text: b"[" + text + b"]", "json.not_object"),
    "a string": (lambda _text: b'"x"', "json.not_object"),
    "null": (lambda _text: b"null", "json.not_object"),
    "a lone surrogate": (lambda text: text[:-1] + b',"x":"\\ud800"}', "json.surrogate"),
    "a lone surrogate as a key": (lambda text: text[:-1] + b',"\\udc00":1}', "json.surrogate"),
    "65 levels": (lambda text: nested(text, 65), "json.depth"),
    "10,000 levels": (lambda text: nested(text, 10_000), "json.depth"),
    "60,000 levels": (lambda text: nested(text, 60_000), "json.depth"),
    "levels of objects": (
        lambda text: text[:-1] + b',"x":' + b'{"x":' * 9_000 + b"1" + b"}" * 9_000 + b"}",
        "json.depth",
    ),
    "brackets that never close": (lambda text: text[:-1] + b',"x":' + b"[" * 60_000, "json.depth"),
    "a string that never ends": (
        lambda text: text[:-1] + b',"x":"' + b"\\" * 90_001,
        "json.malformed",
    ),
    "too much": (lambda text: text + b" " * (256 * 1024), "json.size"),
}


def nested(text: bytes, levels: int) -> bytes:
    return text[:-1] + b',"x":' + b"[" * levels + b"]" * levels + b"}"


@family
def what_is_no_JSON(world: Any) -> Iterator[Case]:  # noqa: N802  the name of the format
    yield from twin(world)
    for place, (name, (spoil, code)) in itertools.product(PLACES, TEXTS.items()):
        for part_of in ("header", "claims"):
            forged = forgery(world)

            def raw(part: Part, part_of: str = part_of, spoil: Any = spoil) -> str:
                header, claims = dumps(part.header), dumps(part.claims)
                if part_of == "header":
                    return encoded(part, spoil(header), claims)
                return encoded(part, header, spoil(claims))

            forged.part(place).raw = raw
            yield from forged.offers(
                f"{name} in the {part_of} of {place}",
                # too long a token ends before its parts are looked at
                *(code, "jws.malformed", "json.size"),
                alone=alone(place),
            )


# --- base64 and the form of a token ---------------------------------------------------------------


def unused_bits(text: str) -> str | None:
    """The same bytes in another spelling, where their number leaves bits over."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    if len(text) % 4 == 0:
        return None
    return text[:-1] + alphabet[alphabet.index(text[-1]) | 1]


SPELLINGS: dict[str, Callable[[str], str | None]] = {
    "padded": lambda text: text + "=" * (-len(text) % 4) if len(text) % 4 else text + "====",
    "padded once": lambda text: text + "=",
    "with a line feed": lambda text: text + "\n",
    "with a line feed inside": lambda text: text[:8] + "\n" + text[8:],
    "with a space": lambda text: " " + text,
    "with a tab inside": lambda text: text[:8] + "\t" + text[8:],
    "with NUL": lambda text: text + "\0",
    "with a character that counts for nothing": lambda text: text[:8] + "!" + text[8:],
    "in another alphabet": lambda text: text[:8] + "\u0430" + text[9:],
    "in full width": lambda text: "\uff45" + text[1:],
    "with a plus": lambda text: text[:-4] + "ab+/",
    "with unused bits": unused_bits,
    "with one character more": lambda text: text + "A" * (5 - len(text) % 4),
}


@family
def base64_in_other_spellings(world: Any) -> Iterator[Case]:
    yield from twin(world)
    for place, (name, spell), which in itertools.product(PLACES, SPELLINGS.items(), range(3)):
        forged = forgery(world)
        if respelt(forged.part(place), spell, which) is None:
            continue
        forged.part(place).raw = lambda part, spell=spell, which=which: (
            respelt(part, spell, which) or ""
        )
        segment = ("header", "payload", "signature")[which]
        yield from forged.offers(
            f"the {segment} of {place} {name}", "base64.malformed", alone=alone(place)
        )


def respelt(part: Part, spell: Callable[[str], str | None], which: int) -> str | None:
    """The token with one segment spelt otherwise, and signed as it is spelt then."""
    segments = compact(part).split(".")
    spelt = spell(segments[which])
    if spelt is None or spelt == segments[which]:
        return None
    segments[which] = spelt
    if which == 2:
        return ".".join(segments)
    head = ".".join(segments[:2])
    return f"{head}.{b64url_encode(part.signer.sign(head.encode()))}"


FORMS: dict[str, Callable[[str], str]] = {
    "two segments": lambda token: token.rpartition(".")[0],
    "four segments": lambda token: token + ".",
    "five segments": lambda token: token + "..",
    "nothing": lambda _token: "",
    "dots": lambda _token: "..",
    "a hundred thousand dots": lambda _token: "." * 100_000,
    "a word": lambda _token: "token",
    "white space": lambda token: f" {token}",
    "in JSON": lambda token: json.dumps(
        dict(zip(("protected", "payload", "signature"), token.split("."), strict=True))
    ),
    "longer than any token": lambda token: token + "A" * (256 * 1024),
    "Bearer": lambda token: f"Bearer {token}",
}


@family
def other_forms(world: Any) -> Iterator[Case]:
    yield from twin(world)
    for place, (name, form) in itertools.product(PLACES, FORMS.items()):
        forged = forgery(world)
        forged.part(place).raw = lambda part, form=form: form(compact(part))
        yield from forged.offers(
            f"{name} for {place}",
            *("jws.malformed", "base64.malformed", "json.malformed", "json.size"),
            alone=alone(place),
        )
