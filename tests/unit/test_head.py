"""Heads: the bytes of a note, whose signature counts, and every departure from the form."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agentguard.audit import checkpoint, merkle
from agentguard.audit import head as heads
from agentguard.audit.checkpoint import Checkpoint
from agentguard.audit.head import Head
from agentguard.errors import DecodeError, VerificationError
from agentguard.signing.canonical import b64_decode, b64_encode
from agentguard.signing.keys import Ed25519Signer, PublicKey

ORIGIN = "acme.example/log/0"
ROOT = merkle.leaf_hash(b"entry")
MAP = merkle.leaf_hash(b"map")
AT = "2026-12-06T09:00:00.000000Z"
HEAD = Head(ORIGIN, 20852163, ROOT, MAP, AT)


def line(signer: Ed25519Signer, body: bytes, name: str = ORIGIN) -> bytes:
    """A signature line for any text."""
    signed = checkpoint.key_id(name, signer.public_key) + signer.sign(body)
    return f"\u2014 {name} {b64_encode(signed)}\n".encode()


def test_a_head_is_a_checkpoint_with_two_extension_lines() -> None:
    three = f"acme.example/log/0\n20852163\n{b64_encode(ROOT)}\n"
    assert HEAD.checkpoint.body() == three.encode()
    assert HEAD.text() == f"{three}map {b64_encode(MAP)}\ntime {AT}\n".encode()
    assert Checkpoint(ORIGIN, 0, merkle.EMPTY_ROOT).body().split(b"\n")[1] == b"0"


def test_a_note_ends_with_its_signature(signer: Ed25519Signer) -> None:
    note = heads.sign(HEAD, signer)

    assert note == HEAD.text() + b"\n" + line(signer, HEAD.text())
    assert heads.verify(note, [signer.public_key], ORIGIN)[0] == HEAD
    assert heads.parse(note) == HEAD
    text, signatures = checkpoint.read_note(note)
    assert text.encode() == HEAD.text()
    assert [s.name for s in signatures] == [ORIGIN]


def test_of_many_keys_the_one_that_the_note_names_counts(
    signer: Ed25519Signer, stranger: Ed25519Signer
) -> None:
    known = [stranger.public_key, signer.public_key]
    note = heads.sign(HEAD, signer)
    for keys in (known, known[::-1]):
        assert heads.verify(note, keys, ORIGIN) == (HEAD, signer.public_key)
    both = note + line(stranger, HEAD.text())
    assert heads.verify(both, known, ORIGIN)[1] == stranger.public_key


def test_a_bad_signature_of_a_known_key_is_that_keys_error(
    signer: Ed25519Signer, stranger: Ed25519Signer
) -> None:
    """And no other key's, of which the note has none; nor does another key make up for it."""
    body = HEAD.text()
    bad = body + b"\n" + line(signer, body + b"x")
    known = [signer.public_key, stranger.public_key]
    for note in (bad, bad + line(stranger, body)):
        with pytest.raises(VerificationError) as caught:
            heads.verify(note, known, ORIGIN)
        assert caught.value.code == "signature.invalid"
    with pytest.raises(VerificationError) as caught:
        heads.verify(bad, known[1:], ORIGIN)
    assert caught.value.code == "signature.missing"
    with pytest.raises(VerificationError) as caught:
        heads.verify(bad, (), ORIGIN)
    assert caught.value.code == "signature.missing"


@pytest.mark.parametrize(
    ("origin", "size", "root"),
    [
        ("", 1, ROOT),
        ("two words", 1, ROOT),
        ("a+b", 1, ROOT),
        ("a\nb", 1, ROOT),
        ("a\x00b", 1, ROOT),
        ("a\u2003b", 1, ROOT),
        ("a\ud800", 1, ROOT),
        (ORIGIN, -1, ROOT),
        (ORIGIN, 2**63, ROOT),
        (ORIGIN, 1, ROOT[:-1]),
        (ORIGIN, 1, b""),
    ],
)
def test_what_can_not_be_written_is_no_checkpoint(origin: str, size: int, root: bytes) -> None:
    Checkpoint(ORIGIN, 2**63 - 1, ROOT)
    with pytest.raises(DecodeError) as refused:
        Checkpoint(origin, size, root)
    assert refused.value.code == "note.malformed"


def test_the_key_id_depends_on_the_name_and_the_key(
    signer: Ed25519Signer, stranger: Ed25519Signer
) -> None:
    ids = {
        checkpoint.key_id(ORIGIN, signer.public_key),
        checkpoint.key_id(ORIGIN + "1", signer.public_key),
        checkpoint.key_id(ORIGIN, stranger.public_key),
    }
    assert len(ids) == 3
    assert {len(key_id) for key_id in ids} == {4}


def refused(note: bytes, key: PublicKey, origin: str = ORIGIN) -> str:
    with pytest.raises((DecodeError, VerificationError)) as caught:
        heads.verify(note, [key], origin)
    return caught.value.code


def test_only_the_logs_own_key_and_origin_verify(
    signer: Ed25519Signer, stranger: Ed25519Signer
) -> None:
    note = heads.sign(HEAD, signer)
    heads.verify(note, [signer.public_key], ORIGIN)

    assert refused(note, stranger.public_key) == "signature.missing"
    assert refused(note, signer.public_key, "acme.example/log/1") == "checkpoint.origin"
    other_name = HEAD.text() + b"\n" + line(signer, HEAD.text(), "witness.example")
    assert refused(other_name, signer.public_key) == "signature.missing"
    borrowed = line(stranger, HEAD.text())
    claimed = (
        checkpoint.key_id(ORIGIN, signer.public_key) + b64_decode(borrowed.split()[2].decode())[4:]
    )
    forged = HEAD.text() + f"\n\u2014 {ORIGIN} {b64_encode(claimed)}\n".encode()
    assert refused(forged, signer.public_key) == "signature.invalid"


def test_a_witness_may_sign_too_and_is_not_needed(
    signer: Ed25519Signer, stranger: Ed25519Signer
) -> None:
    own = line(signer, HEAD.text())
    witness = line(stranger, HEAD.text(), "witness.example/w1")
    unknown = f"\u2014 other.example {b64_encode(b'abcdjunk')}\n".encode()

    for lines in (own + witness, witness + own, unknown + own, witness + unknown + own):
        note = HEAD.text() + b"\n" + lines
        assert heads.verify(note, [signer.public_key], ORIGIN)[0] == HEAD
    note = HEAD.text() + b"\n" + witness + own
    assert refused(HEAD.text() + b"\n" + witness, signer.public_key) == "signature.missing"


@pytest.mark.parametrize(
    "head",
    [
        HEAD._replace(size=20852164),
        HEAD._replace(size=2085216),
        HEAD._replace(root=merkle.leaf_hash(b"other")),
        HEAD._replace(map_root=merkle.leaf_hash(b"other")),
        HEAD._replace(at="2026-12-06T08:00:00.000000Z"),
    ],
)
def test_another_size_root_map_or_time_under_the_same_signature_is_refused(
    signer: Ed25519Signer, head: Head
) -> None:
    note = heads.sign(HEAD, signer)
    altered = note.replace(HEAD.text(), head.text())
    assert altered != note
    assert refused(altered, signer.public_key) == "signature.invalid"


BODIES: dict[str, Callable[[list[str]], list[str]]] = {
    "leading zero": lambda b: [b[0], "0" + b[1], *b[2:]],
    "plus sign": lambda b: [b[0], "+" + b[1], *b[2:]],
    "negative": lambda b: [b[0], "-1", *b[2:]],
    "hex": lambda b: [b[0], "0x10", *b[2:]],
    "not ascii digits": lambda b: [b[0], "\u0661", *b[2:]],
    "underscore": lambda b: [b[0], "1_0", *b[2:]],
    "space": lambda b: [b[0], b[1] + " ", *b[2:]],
    "too large": lambda b: [b[0], "9223372036854775808", *b[2:]],
    "far too large": lambda b: [b[0], "9" * 5000, *b[2:]],
    "no size": lambda b: [b[0], "", *b[2:]],
    "no origin": lambda b: ["", *b[1:]],
    "no root": lambda b: [b[0], b[1], *b[3:]],
    "empty root": lambda b: [b[0], b[1], "", *b[3:]],
    "short root": lambda b: [b[0], b[1], b64_encode(ROOT[:-1]), *b[3:]],
    "long root": lambda b: [b[0], b[1], b64_encode(ROOT + b"\0"), *b[3:]],
    "root unpadded": lambda b: [b[0], b[1], b[2].rstrip("="), *b[3:]],
    "root base64url": lambda b: [b[0], b[1], b64_encode(b"\xff" * 32).replace("/", "_"), *b[3:]],
    "root's unused bits": lambda b: [b[0], b[1], b64_encode(bytes(32))[:-2] + "B=", *b[3:]],
    "a checkpoint alone": lambda b: b[:3],
    "no map": lambda b: [*b[:3], b[4]],
    "short map": lambda b: [*b[:3], f"map {b64_encode(MAP[:-1])}", b[4]],
    "another word": lambda b: [*b[:3], b[3].replace("map", "tree"), b[4]],
    "no time": lambda b: b[:4],
    "no time of ours": lambda b: [*b[:4], "time yesterday"],
    "two times": lambda b: [*b, b[4]],
    "another extension line": lambda b: [*b, "extension"],
    "origin with a space": lambda b: ["two words", *b[1:]],
    "carriage returns": lambda b: [item + "\r" for item in b],
    "an empty line more": lambda b: [*b, ""],
    "lines in another order": lambda b: [b[0], b[2], b[1], *b[3:]],
    "extension lines in another order": lambda b: [*b[:3], b[4], b[3]],
}


@pytest.mark.parametrize("how", BODIES)
def test_a_body_in_another_form_is_refused_though_well_signed(
    signer: Ed25519Signer, how: str
) -> None:
    lines = HEAD.text().decode().splitlines()
    good = ("\n".join(lines) + "\n").encode()
    heads.verify(good + b"\n" + line(signer, good), [signer.public_key], ORIGIN)

    body = ("\n".join(BODIES[how](lines)) + "\n").encode()

    code = refused(body + b"\n" + line(signer, body), signer.public_key)
    assert code in {"note.malformed", "base64.malformed", "entry.malformed"}


NOTES: dict[str, Callable[[bytes, bytes], bytes]] = {
    "empty": lambda body, sig: b"",
    "newlines": lambda body, sig: b"\n\n",
    "no signatures": lambda body, sig: body + b"\n",
    "text alone": lambda body, sig: body,
    "signatures alone": lambda body, sig: b"\n" + sig,
    "no empty line": lambda body, sig: body + sig,
    "no last newline": lambda body, sig: body + b"\n" + sig[:-1],
    "newline more": lambda body, sig: body + b"\n" + sig + b"\n",
    "junk after": lambda body, sig: body + b"\n" + sig + b"junk\n",
    "two signatures by one key": lambda body, sig: body + b"\n" + sig + sig,
    "hyphen": lambda body, sig: body + b"\n" + sig.replace("\u2014".encode(), b"-"),
    "two spaces": lambda body, sig: body + b"\n" + sig.replace(b" ", b"  ", 1),
    "space after": lambda body, sig: body + b"\n" + sig[:-1] + b" \n",
    "tab": lambda body, sig: body + b"\n" + sig.replace(b" ", b"\t", 1),
    "carriage return": lambda body, sig: body + b"\n" + sig[:-1] + b"\r\n",
    "nul": lambda body, sig: body + b"\n" + sig + b"\0",
    "byte order mark": lambda body, sig: b"\xef\xbb\xbf" + body + b"\n" + sig,
    "not utf-8": lambda body, sig: b"\xff" + body + b"\n" + sig,
    "no base64": lambda body, sig: body + f"\n\u2014 {ORIGIN}\n".encode(),
    "key id alone": lambda body, sig: body + f"\n\u2014 {ORIGIN} AAAAAA==\n".encode(),
    "base64 unpadded": lambda body, sig: body + b"\n" + sig[:-3].rstrip(b"=") + b"\n",
    "name with a plus": lambda body, sig: body + b"\n" + sig + "\u2014 a+b AAAAAAA=\n".encode(),
    "too long": lambda body, sig: b"x" * 300_000 + b"\n" + body + b"\n" + sig,
}


@pytest.mark.parametrize("how", NOTES)
def test_a_note_in_another_form_is_refused(signer: Ed25519Signer, how: str) -> None:
    body, signature = HEAD.text(), line(signer, HEAD.text())
    heads.verify(body + b"\n" + signature, [signer.public_key], ORIGIN)

    note = NOTES[how](body, signature)

    assert refused(note, signer.public_key) in {
        "note.malformed",
        "base64.malformed",
        "checkpoint.origin",
    }


def test_every_byte_of_a_note_counts(signer: Ed25519Signer) -> None:
    note = heads.sign(HEAD, signer)
    for place in range(len(note)):
        for changed in (bytes([note[place] ^ 1]), b"", note[place : place + 1] * 2):
            refused(note[:place] + changed + note[place + 1 :], signer.public_key)


@pytest.mark.parametrize("text", ["hello\n", "a\tb\n", "a\x1b[31m\n", "a\r\n", "a\0\n", "é\n\n"])
def test_a_note_with_another_text_is_no_checkpoint_though_well_signed(
    signer: Ed25519Signer, text: str
) -> None:
    note = text.encode() + b"\n" + line(signer, text.encode())
    assert refused(note, signer.public_key) == "note.malformed"
