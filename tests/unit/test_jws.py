"""Compact JWS: what verifies, and every way in which a good token can be spoilt.

PyJWT is the independent implementation: each side verifies what the other has signed.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agentguard.errors import AgentguardError, DecodeError, EncodeError, VerificationError
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import b64url_decode, b64url_encode
from agentguard.signing.keys import Ed25519Signer, PublicKey

ORDER = 2**252 + 27742317777372353535851937790883648493
CLAIMS: dict[str, canonical.JSON] = {
    "iss": "spiffe://acme.example",
    "exp": 1_800_000_000,
    "scope": ["a", "é"],
}
TYPE = "at+jwt"


def raw_token(signer: Ed25519Signer, header: bytes, payload: bytes = b"{}") -> str:
    """A token with any header, well signed by the right key: only its header is to blame."""
    signing_input = f"{b64url_encode(header)}.{b64url_encode(payload)}"
    return f"{signing_input}.{b64url_encode(signer.sign(signing_input.encode()))}"


def with_header(signer: Ed25519Signer, **members: object) -> str:
    return raw_token(signer, json.dumps({"alg": "EdDSA", "typ": TYPE, **members}).encode())


def refused(token: str, key: PublicKey, typ: str | None = TYPE) -> AgentguardError:
    with pytest.raises((DecodeError, VerificationError)) as caught:
        jws.verify(token, key, typ=typ)
    assert isinstance(caught.value, AgentguardError)
    return caught.value


def test_what_is_signed_is_verified(signer: Ed25519Signer) -> None:
    token = jws.sign(CLAIMS, signer, typ=TYPE, header={"kid": signer.key_id})

    verified = jws.verify(token, signer.public_key, typ=TYPE)

    assert verified.claims() == CLAIMS
    assert verified.payload == canonical.dumps(CLAIMS)
    assert verified.header == {"alg": "EdDSA", "typ": TYPE, "kid": signer.key_id}
    assert verified.signing_input == token.rpartition(".")[0].encode()
    assert verified == jws.parse(token)


def test_bytes_are_signed_as_they_are(signer: Ed25519Signer) -> None:
    token = jws.sign(b"\x00not json", signer, typ=None)

    verified = jws.verify(token, signer.public_key, typ=None)

    assert verified.payload == b"\x00not json"
    assert verified.header == {"alg": "EdDSA"}
    named = jws.sign(b"", signer, typ=None, header={"kid": "1"})
    assert jws.verify(named, signer.public_key, typ=None).header == {"alg": "EdDSA", "kid": "1"}
    with pytest.raises(DecodeError):
        verified.claims()


def test_a_verified_header_can_not_be_changed(signer: Ed25519Signer) -> None:
    verified = jws.verify(jws.sign({}, signer, typ=TYPE), signer.public_key, typ=TYPE)
    with pytest.raises(TypeError):
        verified.header["typ"] = "other"  # type: ignore[index]


def test_our_raw_tokens_are_good_ones(signer: Ed25519Signer) -> None:
    """The twin of every spoilt token below."""
    jws.verify(with_header(signer), signer.public_key, typ=TYPE)
    jws.verify(with_header(signer, kid="x"), signer.public_key, typ=TYPE)
    jws.verify(with_header(signer, alg="Ed25519"), signer.public_key, typ=TYPE)


@pytest.mark.parametrize(
    "alg",
    [
        "none", "None", "", "HS256", "HS512", "ES256", "RS256", "PS256", "Ed448", "eddsa", "EDDSA",
        "ed25519", "EdDSA ", "EdDSA\0", "ECDH-ES", None, 0, True, ["EdDSA"], {"EdDSA": 1},
    ],
)  # fmt: skip
def test_another_algorithm_is_refused(signer: Ed25519Signer, alg: object) -> None:
    assert refused(with_header(signer, alg=alg), signer.public_key).code == "jws.algorithm"


def test_a_token_without_an_algorithm_is_refused(signer: Ed25519Signer) -> None:
    token = raw_token(signer, b'{"typ":"at+jwt"}')
    assert refused(token, signer.public_key).code == "jws.algorithm"


def test_none_without_a_signature_is_refused(signer: Ed25519Signer) -> None:
    header = b64url_encode(b'{"alg":"none","typ":"at+jwt"}')
    assert refused(f"{header}.e30.", signer.public_key).code == "jws.algorithm"


def test_an_hmac_under_the_public_key_is_refused(signer: Ed25519Signer) -> None:
    token = jwt.encode({"a": 1}, signer.public_key.raw, algorithm="HS256", headers={"typ": TYPE})
    assert refused(token, signer.public_key).code == "jws.algorithm"


@pytest.mark.parametrize(
    "members",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": None},
        {"b64": False, "crit": ["b64"]},
        {"b64": False},
        {"b64": True},
        {"zip": "DEF"},
        {"enc": "A256GCM"},
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://evil.example/cert"},
        {"x5c": ["AAAA"]},
        {"jwk": None},
    ],
    ids=json.dumps,
)
def test_a_header_that_extends_or_names_its_own_key_is_refused(
    signer: Ed25519Signer, members: dict[str, object]
) -> None:
    assert refused(with_header(signer, **members), signer.public_key).code == "jws.header"


def test_a_key_in_the_header_is_never_used(signer: Ed25519Signer, stranger: Ed25519Signer) -> None:
    embedded = with_header(stranger, jwk=stranger.public_key.jwk())
    assert refused(embedded, signer.public_key).code == "jws.header"
    assert refused(embedded, stranger.public_key).code == "jws.header"


@pytest.mark.parametrize("kid", ["../../dev/null", "' OR 1=1 --", "", None, 5, ["x"], {"k": "v"}])
def test_kid_chooses_nothing(signer: Ed25519Signer, stranger: Ed25519Signer, kid: object) -> None:
    jws.verify(with_header(signer, kid=kid), signer.public_key, typ=TYPE)
    for named in (kid, signer.key_id):
        token = with_header(stranger, kid=named)
        assert refused(token, signer.public_key).code == "signature.invalid"


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (b'{"alg":"EdDSA","typ":"at+jwt","alg":"EdDSA"}', "json.duplicate_key"),
        (b'{"alg":"none","typ":"at+jwt","\\u0061lg":"EdDSA"}', "json.duplicate_key"),
        (b'{"alg":"EdDSA","typ":"at+jwt","x":{"a":1,"a":2}}', "json.duplicate_key"),
        (b'{"alg":"EdDSA","typ":"at+jwt","x":"\\ud800"}', "json.surrogate"),
        (b'{"alg":"EdDSA","typ":"at+jwt","x":NaN}', "json.number"),
        (b'{"alg":"EdDSA","typ":"at+jwt","x":1e400}', "json.number"),
        (b'{"alg":"EdDSA","typ":"at+jwt","x":' + b"[" * 64 + b"]" * 64 + b"}", "json.depth"),
        (b'{"alg":"EdDSA","typ":"at+jwt","x":' + b"[" * 50_000, "json.depth"),
        (b'{"alg":"EdDSA","typ":"at+jwt"} ', None),
        (b'{"alg":"EdDSA","typ":"at+jwt"}x', "json.malformed"),
        (b'{"alg":"EdDSA","typ":"at+jwt"}\0', "json.malformed"),
        (b'\xef\xbb\xbf{"alg":"EdDSA","typ":"at+jwt"}', "json.utf8"),
        (b'{"alg":"EdDSA","typ":"at+jwt","x":"\xff"}', "json.utf8"),
        ('{"alg":"EdDSA","typ":"at+jwt"}'.encode("utf-16"), "json.utf8"),
        (b'["alg","EdDSA"]', "json.not_object"),
        (b'"EdDSA"', "json.not_object"),
        (b"", "json.malformed"),
    ],
)
def test_the_header_is_strict_json(signer: Ed25519Signer, header: bytes, code: str | None) -> None:
    token = raw_token(signer, header)
    if code is None:  # white space is JSON, and under the signature
        jws.verify(token, signer.public_key, typ=TYPE)
    else:
        assert refused(token, signer.public_key).code == code


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b'{"sub":"alice","sub":"admin"}', "json.duplicate_key"),
        (b'{"exp":1e400}', "json.number"),
        (b'{"sub":"\\udc00"}', "json.surrogate"),
        (b"[]", "json.not_object"),
        (b"{}{}", "json.malformed"),
    ],
)
def test_claims_are_strict_json_too(signer: Ed25519Signer, payload: bytes, code: str) -> None:
    token = raw_token(signer, b'{"alg":"EdDSA","typ":"at+jwt"}', payload)
    verified = jws.verify(token, signer.public_key, typ=TYPE)
    with pytest.raises(DecodeError) as caught:
        verified.claims()
    assert caught.value.code == code


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt", "Application/At+Jwt"])
def test_the_type_is_compared_as_a_media_type(signer: Ed25519Signer, typ: str) -> None:
    token = with_header(signer, typ=typ)
    jws.verify(token, signer.public_key, typ="at+jwt")
    jws.verify(token, signer.public_key, typ="application/at+jwt")
    assert refused(token, signer.public_key, "ag-hop+jwt").code == "jws.type"
    assert refused(token, signer.public_key, None).code == "jws.type"


@pytest.mark.parametrize(
    "typ", ["JWT", "wit+jwt", "", "at+jwt ", "at+jw\u0167", "x/at+jwt", None, 1, ["at+jwt"], {}]
)
def test_another_type_is_refused(signer: Ed25519Signer, typ: object) -> None:
    assert refused(with_header(signer, typ=typ), signer.public_key).code == "jws.type"


def test_a_type_is_not_folded_beyond_ascii(signer: Ed25519Signer) -> None:
    # The Kelvin sign in lower case is a plain k.
    assert "\u212a".lower() == "k"
    jws.verify(with_header(signer, typ="K+jwt"), signer.public_key, typ="k+jwt")
    token = with_header(signer, typ="\u212a+jwt")
    assert refused(token, signer.public_key, "k+jwt").code == "jws.type"


@pytest.mark.parametrize("typ", ["at+jwt", "", None, 1, "\u0167"])
def test_a_type_where_none_is_expected_is_refused(signer: Ed25519Signer, typ: object) -> None:
    without = raw_token(signer, b'{"alg":"EdDSA"}')
    jws.verify(without, signer.public_key, typ=None)
    assert refused(without, signer.public_key, "at+jwt").code == "jws.type"
    assert refused(with_header(signer, typ=typ), signer.public_key, None).code == "jws.type"


def trailing_bits(part: str) -> str:
    """Another text that a lax decoder reads as the same bytes."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(part) % 4 in (2, 3)
    twin = part[:-1] + alphabet[alphabet.index(part[-1]) ^ 1]
    padding = "=" * (-len(part) % 4)
    assert base64.urlsafe_b64decode(twin + padding) == base64.urlsafe_b64decode(part + padding)
    return twin


SPOILT: Mapping[str, Callable[[str, str, str], str]] = {
    "empty": lambda h, p, s: "",
    "dots": lambda h, p, s: "..",
    "two parts": lambda h, p, s: f"{h}.{p}",
    "four parts": lambda h, p, s: f"{h}.{p}.{s}.",
    "five parts": lambda h, p, s: f"{h}.{p}.{s}.{p}.{s}",
    "leading dot": lambda h, p, s: f".{h}.{p}.{s}",
    "doubled dot": lambda h, p, s: f"{h}..{p}.{s}",
    "detached": lambda h, p, s: f"{h}..{s}",
    "no header": lambda h, p, s: f".{p}.{s}",
    "no signature": lambda h, p, s: f"{h}.{p}.",
    "space before": lambda h, p, s: f" {h}.{p}.{s}",
    "newline after": lambda h, p, s: f"{h}.{p}.{s}\n",
    "newline inside": lambda h, p, s: f"{h}.{p[:4]}\n{p[4:]}.{s}",
    "tab inside": lambda h, p, s: f"{h}\t.{p}.{s}",
    "nul after": lambda h, p, s: f"{h}.{p}.{s}\0",
    "bearer": lambda h, p, s: f"Bearer {h}.{p}.{s}",
    "header padded": lambda h, p, s: f"{h}=.{p}.{s}",
    "payload padded": lambda h, p, s: f"{h}.{p}{'=' * (-len(p) % 4)}.{s}",
    "signature padded": lambda h, p, s: f"{h}.{p}.{s}==",
    "header's unused bits": lambda h, p, s: f"{trailing_bits(h)}.{p}.{s}",
    "payload's unused bits": lambda h, p, s: f"{h}.{trailing_bits(p)}.{s}",
    "signature's unused bits": lambda h, p, s: f"{h}.{p}.{trailing_bits(s)}",
    "standard alphabet": lambda h, p, s: f"{h}.{p}.{'+/' + s[2:]}",
    "lone character": lambda h, p, s: f"{h}.{p}.{s}AAA",
    "fullwidth dot": lambda h, p, s: f"{h}\uff0e{p}\uff0e{s}",
    "not ascii": lambda h, p, s: f"{h}.{p}é.{s}",
    "surrogate": lambda h, p, s: f"{h}.{p}\ud800.{s}",
    "upper case": lambda h, p, s: f"{h}.{p}.{s}".upper(),
    "lower case": lambda h, p, s: f"{h}.{p}.{s}".lower(),
    "signature truncated": lambda h, p, s: f"{h}.{p}.{b64url_encode(b64url_decode(s)[:-1])}",
    "signature halved": lambda h, p, s: f"{h}.{p}.{b64url_encode(b64url_decode(s)[:32])}",
    "signature extended": lambda h, p, s: f"{h}.{p}.{b64url_encode(b64url_decode(s) + bytes(1))}",
    "signature zero": lambda h, p, s: f"{h}.{p}.{b64url_encode(bytes(64))}",
    "signature in hex": lambda h, p, s: f"{h}.{p}.{b64url_decode(s).hex()}",
    "S plus L": lambda h, p, s: f"{h}.{p}.{b64url_encode(plus_order(b64url_decode(s)))}",
    "header and payload swapped": lambda h, p, s: f"{p}.{h}.{s}",
    "payload and signature swapped": lambda h, p, s: f"{h}.{s}.{p}",
    "payload changed": lambda h, p, s: f"{h}.{b64url_encode(b64url_decode(p) + b' ')}.{s}",
    "header respaced": lambda h, p, s: f"{b64url_encode(b64url_decode(h) + b' ')}.{p}.{s}",
    "json general": lambda h, p, s: json.dumps(
        {"payload": p, "signatures": [{"protected": h, "signature": s}]}
    ),
    "json flattened": lambda h, p, s: json.dumps({"payload": p, "protected": h, "signature": s}),
}


def plus_order(signature: bytes) -> bytes:
    scalar = int.from_bytes(signature[32:], "little") + ORDER
    return signature[:32] + scalar.to_bytes(32, "little")


@pytest.mark.parametrize("how", SPOILT)
def test_a_good_token_spoilt_is_refused(signer: Ed25519Signer, how: str) -> None:
    # The lengths leave unused bits in every part.
    token = jws.sign(b'{"sub":"alice"}!', signer, typ="at+jwt", header={"kid": "1"})
    header, payload, signature = token.split(".")
    jws.verify(f"{header}.{payload}.{signature}", signer.public_key, typ="at+jwt")

    spoilt = SPOILT[how](header, payload, signature)

    assert spoilt != token
    assert refused(spoilt, signer.public_key).code in {
        "jws.malformed",
        "base64.malformed",
        "json.malformed",
        "json.utf8",
        "json.not_object",
        "signature.invalid",
    }


def test_another_keys_or_tokens_signature_is_refused(
    signer: Ed25519Signer, stranger: Ed25519Signer
) -> None:
    token = jws.sign({"sub": "alice"}, signer, typ=TYPE)
    other = jws.sign({"sub": "admin"}, signer, typ=TYPE)
    jws.verify(token, signer.public_key, typ=TYPE)
    jws.verify(other, signer.public_key, typ=TYPE)

    assert refused(token, stranger.public_key).code == "signature.invalid"
    spliced = token.rpartition(".")[0] + "." + other.rpartition(".")[2]
    assert refused(spliced, signer.public_key).code == "signature.invalid"


def test_every_character_of_a_token_counts(signer: Ed25519Signer) -> None:
    token = jws.sign({"sub": "alice"}, signer, typ=TYPE)
    for place, character in enumerate(token):
        changed = "B" if character == "A" else "A"
        refused(token[:place] + changed + token[place + 1 :], signer.public_key)
        refused(token[:place] + token[place + 1 :], signer.public_key)
        refused(token[:place] + character + token[place:], signer.public_key)


def test_the_size_of_a_token_is_bounded(signer: Ed25519Signer) -> None:
    largest = b"x" * 190_000
    jws.verify(jws.sign(largest, signer, typ=None), signer.public_key, typ=None)

    with pytest.raises(EncodeError) as unencodable:
        jws.sign(b"x" * 200_000, signer, typ=None)
    assert unencodable.value.code == "jws.size"
    error = refused(raw_token(signer, b'{"alg":"EdDSA"}', b"x" * 200_000), signer.public_key, None)
    assert error.code == "jws.malformed"
    assert refused("." * 1_000_000, signer.public_key).code == "jws.malformed"
    assert refused("." * 200_000, signer.public_key).code == "jws.malformed"


@pytest.mark.parametrize("name", ["alg", "typ", "crit", "b64", "jku", "jwk", "x5u", "x5c", "zip"])
def test_a_header_that_we_would_refuse_is_not_made(signer: Ed25519Signer, name: str) -> None:
    with pytest.raises(EncodeError) as caught:
        jws.sign({}, signer, typ=TYPE, header={name: "x"})
    assert caught.value.code == "jws.header"


@pytest.mark.parametrize("claims", [{"x": float("nan")}, {"x": 2**53}, {"x": "\ud800"}])
def test_claims_without_a_canonical_form_are_not_signed(
    signer: Ed25519Signer, claims: dict[str, Any]
) -> None:
    with pytest.raises(EncodeError) as caught:
        jws.sign(claims, signer, typ=TYPE)
    assert caught.value.code == "json.unencodable"


def test_pyjwt_verifies_our_token(signer: Ed25519Signer, stranger: Ed25519Signer) -> None:
    token = jws.sign(CLAIMS, signer, typ=TYPE, header={"kid": signer.key_id})
    ours = Ed25519PublicKey.from_public_bytes(signer.public_key.raw)
    theirs = Ed25519PublicKey.from_public_bytes(stranger.public_key.raw)

    assert jwt.decode(token, ours, algorithms=["EdDSA"]) == CLAIMS
    assert jwt.get_unverified_header(token)["typ"] == TYPE
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, theirs, algorithms=["EdDSA"])


def test_we_verify_pyjwts_token(signer: Ed25519Signer) -> None:
    private = Ed25519PrivateKey.generate()
    public = PublicKey(private.public_key().public_bytes_raw())
    token = jwt.encode(dict(CLAIMS), private, algorithm="EdDSA", headers={"typ": TYPE})

    assert jws.verify(token, public, typ=TYPE).claims() == CLAIMS
    assert refused(token, signer.public_key).code == "signature.invalid"


def test_pyjwt_reads_our_jwk(signer: Ed25519Signer) -> None:
    key = jwt.PyJWK({**signer.public_key.jwk(), "alg": "EdDSA"})
    token = jws.sign(CLAIMS, signer, typ=TYPE)
    assert jwt.decode(token, key, algorithms=["EdDSA"]) == CLAIMS


class AlwaysEqual(str):
    """A text that says that it equals every other one."""

    __slots__ = ()
    hashed = 0

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return self.hashed


def test_a_verified_token_lends_its_verification_to_no_other_text():
    """What was found of a token is kept for the next look at this very text, key and type."""
    signer, other = (Ed25519Signer.from_seed(os.urandom(32)) for _ in range(2))
    good = jws.sign({"a": 1}, signer, typ=TYPE)
    forged = jws.sign({"a": 2}, other, typ=TYPE)
    for _ in range(2):
        assert jws.verify(good, signer.public_key, typ=TYPE).claims() == {"a": 1}
        for token, key, typ, code in (
            (forged, signer.public_key, TYPE, "signature.invalid"),
            (good, other.public_key, TYPE, "signature.invalid"),
            (good, signer.public_key, "other+jwt", "jws.type"),
            (good, signer.public_key, None, "jws.type"),
        ):
            with pytest.raises(VerificationError) as refused:
                jws.verify(token, key, typ=typ)
            assert refused.value.code == code
    AlwaysEqual.hashed = hash(good)
    with pytest.raises(VerificationError):
        jws.verify(AlwaysEqual(forged), signer.public_key, typ=TYPE)


@pytest.mark.parametrize("iat", [0, 1_800_000_000])
def test_the_claimed_time_is_a_whole_number(signer: Ed25519Signer, iat: int) -> None:
    token = jws.sign({**CLAIMS, "iat": iat}, signer, typ=TYPE)
    assert [jws.claimed(token).issued_at, jws.claimed(token).issued_at] == [iat, iat]


@pytest.mark.parametrize("iat", [None, True, 1.5, "1800000000", [1]])
def test_a_token_that_claims_anything_else_claims_no_time(
    signer: Ed25519Signer, iat: canonical.JSON
) -> None:
    token = jws.sign({**CLAIMS, "iat": iat}, signer, typ=TYPE)
    assert jws.claimed(token).issued_at is None


@pytest.mark.parametrize(
    ("claims", "issuer", "subject"),
    [
        ({"iss": "spiffe://a", "sub": "user:alice"}, "spiffe://a", "user:alice"),
        ({"iss": ["spiffe://a"], "sub": {"name": "alice"}}, None, None),
        ({"iss": 1, "sub": None}, None, None),
        ({"sub": "user:alice"}, None, "user:alice"),
    ],
)
def test_a_token_claims_an_issuer_and_a_subject_that_are_texts(
    signer: Ed25519Signer, claims: dict[str, canonical.JSON], issuer: str, subject: str
) -> None:
    token = jws.sign(claims, signer, typ=TYPE)
    for _ in range(2):  # the second time from what was kept
        assert jws.claimed(token) == (None, issuer, subject)


@pytest.mark.parametrize(("members", "is_kept"), [(1, True), (1000, False)])
def test_nothing_is_kept_of_a_token_whose_header_takes_much_memory(
    signer: Ed25519Signer, members: int, is_kept: bool
) -> None:
    """Whoever sends tokens decides what is kept, before a signature is looked at."""
    token = jws.sign(CLAIMS, signer, typ=TYPE, header={"x": [{} for _ in range(members)]})
    assert len(token) < 8192
    assert (jws.parse(token) is jws.parse(token)) is is_kept
    first, second = (jws.verify(token, signer.public_key, typ=TYPE) for _ in range(2))
    assert (first is second) is is_kept
    assert first == second
