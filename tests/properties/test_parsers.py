"""Every parser of signed bytes, fed anything: a value that formats back to it, or our error."""

from __future__ import annotations

import json
import os

from hypothesis import given
from hypothesis import strategies as st

from agentguard.audit import head as heads
from agentguard.audit.head import Head
from agentguard.errors import DecodeError, KeyMaterialError, VerificationError
from agentguard.signing import canonical, dsse, jws
from agentguard.signing.canonical import b64url_encode
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Ed25519Signer, PublicKey

SIGNER = Ed25519Signer.from_seed(os.urandom(32))
REFUSALS = (DecodeError, VerificationError)
TOKEN = jws.sign({"sub": "alice"}, SIGNER, typ="at+jwt")
HEAD = Head("acme.example/log", 7, bytes(32), bytes(32), "2026-12-06T09:00:00.000000Z")
NOTE = heads.sign(HEAD, SIGNER)
STATEMENT = dsse.statement("invocation", "ab" * 32, "call", {"a": 1})

anything = st.text(st.characters(exclude_categories=()))
parts = st.binary(max_size=40).map(b64url_encode)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["payload", "payloadType", "signatures", "keyid", "sig", "joint", "subjects"]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


def edited(good: bytes) -> st.SearchStrategy[bytes]:
    """A good text with a slice of it replaced by other bytes."""
    places = st.integers(0, len(good))
    return st.builds(
        lambda a, b, new: good[: min(a, b)] + new + good[max(a, b) :],
        places,
        places,
        st.binary(max_size=8),
    )


@given(anything | st.builds("{}.{}.{}".format, parts, parts, parts))
def test_any_token_is_refused(token: str) -> None:
    try:
        verified = jws.verify(token, SIGNER.public_key, typ="at+jwt")
    except REFUSALS:
        return
    raise AssertionError(verified)


@given(edited(TOKEN.encode()))
def test_any_edited_token_is_refused(token: bytes) -> None:
    try:
        verified = jws.verify(token.decode("latin-1"), SIGNER.public_key, typ="at+jwt")
    except REFUSALS:
        assert token != TOKEN.encode()
    else:
        assert token == TOKEN.encode(), verified


@given(st.binary() | edited(NOTE))
def test_any_note_but_the_signed_one_is_refused(note: bytes) -> None:
    try:
        verified = heads.verify(note, [SIGNER.public_key], "acme.example/log")
    except REFUSALS:
        assert note != NOTE
    else:
        assert note == NOTE, verified


@given(st.binary() | edited(STATEMENT))
def test_a_statement_that_is_read_has_one_spelling(payload: bytes) -> None:
    try:
        read = dsse.parse_statement(payload, "invocation")
    except DecodeError:
        assert payload != STATEMENT
    else:
        again = dsse.statement(
            "invocation",
            read.subject_sha256,
            json.loads(payload)["subject"][0]["name"],
            canonical.loads_object(canonical.dumps(dict(read.predicate))),
        )
        assert again == payload


@given(values, st.booleans())
def test_an_envelope_that_is_read_has_one_spelling(
    value: canonical.JSON, may_be_joint: bool
) -> None:
    try:
        read = Envelope.parse(value, may_be_joint=may_be_joint)
    except DecodeError:
        return
    assert read.as_json() == value


@given(st.binary(min_size=32, max_size=32))
def test_any_32_bytes_are_a_key_or_our_error(raw: bytes) -> None:
    try:
        key = PublicKey(raw)
    except KeyMaterialError as error:
        assert error.code == "key.weak"  # noqa: PT017
    else:
        assert PublicKey.from_jwk(key.jwk()) == key
