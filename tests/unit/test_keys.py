"""Public keys that are fit to verify with, and signers that keep their key to themselves."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from agentguard.errors import KeyMaterialError, VerificationError
from agentguard.signing.canonical import b64url_encode
from agentguard.signing.keys import MAX_ROUNDS, Ed25519Signer, PublicKey, Signer, require_encrypted

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
PASSPHRASE = b"correct horse"


def encode(y: int, sign: int = 0) -> bytes:
    return (y | sign << 255).to_bytes(32, "little")


def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """Add two points of the curve -x^2 + y^2 = 1 + d x^2 y^2 (RFC 8032, 5.1)."""
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + t, -1, P)
    y = (y1 * y2 + x1 * x2) * pow(1 - t, -1, P)
    return x % P, y % P


def times(factor: int, point: tuple[int, int]) -> tuple[int, int]:
    product = (0, 1)
    for bit in f"{factor:b}":
        product = add(product, product)
        if bit == "1":
            product = add(product, point)
    return product


def point_with(y: int) -> tuple[int, int] | None:
    """A point with this y, if there is one on the curve (RFC 8032, 5.1.3)."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    root = pow(square, (P + 3) // 8, P)
    for x in (root, root * pow(2, (P - 1) // 4, P) % P):
        if x * x % P == square:
            return x, y
    return None


def small_order_points() -> set[tuple[int, int]]:
    """The multiples of a point of order 8, which is found as the prime order's multiple of one."""
    for y in range(2, 1000):
        point = point_with(y)
        if point is not None and times(4, generator := times(ORDER, point)) != (0, 1):
            return {times(factor, generator) for factor in range(8)}
    raise AssertionError


# A weak key can be written with either sign bit; some libraries read both.
SMALL = sorted({encode(y, sign) for _, y in small_order_points() for sign in (0, 1)})
NON_CANONICAL = [encode(y, sign) for y in (P, P + 1, P + 3, 2**255 - 1) for sign in (0, 1)]


@pytest.mark.parametrize("raw", [*SMALL, *NON_CANONICAL], ids=bytes.hex)
def test_a_point_of_small_order_is_no_key(raw: bytes, signer: Ed25519Signer) -> None:
    PublicKey(signer.public_key.raw)
    for make in (PublicKey, from_x):
        with pytest.raises(KeyMaterialError) as refused:
            make(raw)
        assert refused.value.code == "key.weak"


def test_the_points_of_small_order_are_eight() -> None:
    points = small_order_points()
    assert len(points) == 8
    assert {times(8, point) for point in points} == {(0, 1)}


def from_x(raw: bytes) -> PublicKey:
    return PublicKey.from_jwk({"kty": "OKP", "crv": "Ed25519", "x": b64url_encode(raw)})


def test_why_small_order_is_refused() -> None:
    # What the check is there for: under the neutral point, one signature holds for any message.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    neutral = Ed25519PublicKey.from_public_bytes(encode(1))
    for message in (b"pay 1", b"pay 1000000"):
        neutral.verify(encode(1) + bytes(32), message)


@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33), bytearray(32)], ids=repr)
def test_a_key_is_32_bytes(raw: bytes) -> None:
    with pytest.raises(KeyMaterialError) as refused:
        PublicKey(raw)
    assert refused.value.code == "key.malformed"


def test_a_key_is_an_immutable_value(signer: Ed25519Signer, stranger: Ed25519Signer) -> None:
    key = signer.public_key

    assert PublicKey(key.raw) == key
    assert hash(PublicKey(key.raw)) == hash(key)
    assert key != stranger.public_key
    for again in (pickle.loads(pickle.dumps(key)), copy.deepcopy(key), copy.copy(key)):  # noqa: S301
        assert again == key
        again.verify(signer.sign(b"x"), b"x")
    assert repr(key) == f"<PublicKey {key.thumbprint}>"
    assert dataclasses.asdict(key) == {"raw": key.raw}
    for name in ("raw", "_key", "_thumbprint", "other"):
        with pytest.raises(AttributeError):
            setattr(key, name, stranger.public_key.raw)


def test_a_jwk_round_trips(signer: Ed25519Signer) -> None:
    jwk = signer.public_key.jwk()

    assert PublicKey.from_jwk(jwk) == signer.public_key
    assert PublicKey.from_jwk({**jwk, "alg": "EdDSA"}) == signer.public_key
    assert PublicKey.from_jwk({**jwk, "alg": "Ed25519", "use": "sig"}) == signer.public_key
    assert PublicKey.from_jwk({**jwk, "key_ops": ["verify"], "kid": "x"}) == signer.public_key


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"d": "AAAA"}, "key.private"),
        ({"d": None}, "key.private"),
        ({"kty": "EC"}, "key.malformed"),
        ({"kty": "okp"}, "key.malformed"),
        ({"kty": ["OKP"]}, "key.malformed"),
        ({"crv": "X25519"}, "key.malformed"),
        ({"crv": "Ed448"}, "key.malformed"),
        ({"alg": "ES256"}, "key.malformed"),
        ({"alg": "none"}, "key.malformed"),
        ({"alg": ["EdDSA"]}, "key.malformed"),
        ({"alg": None}, "key.malformed"),
        ({"use": "enc"}, "key.malformed"),
        ({"key_ops": ["sign"]}, "key.malformed"),
        ({"key_ops": "verify"}, "key.malformed"),
        ({"x": None}, "key.malformed"),
        ({"x": 5}, "key.malformed"),
        ({"x": ""}, "key.malformed"),
        ({"x": b64url_encode(bytes(31))}, "key.malformed"),
        ({"x": b64url_encode(bytes(33))}, "key.malformed"),
    ],
)
def test_a_jwk_for_something_else_is_refused(
    signer: Ed25519Signer, members: dict[str, object], code: str
) -> None:
    with pytest.raises(KeyMaterialError) as refused:
        PublicKey.from_jwk({**signer.public_key.jwk(), **members})
    assert refused.value.code == code


def test_a_jwk_without_a_member_or_with_another_text_of_x_is_refused(
    signer: Ed25519Signer,
) -> None:
    jwk = signer.public_key.jwk()
    # 32 bytes leave two unused bits in the last character.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = jwk["x"][:-1] + alphabet[alphabet.index(jwk["x"][-1]) | 1]
    for broken in (
        *({name: value for name, value in jwk.items() if name != left} for left in jwk),
        *({**jwk, "x": x} for x in (twin, jwk["x"] + "=", jwk["x"] + "\n", " " + jwk["x"])),
    ):
        with pytest.raises(KeyMaterialError) as refused:
            PublicKey.from_jwk(broken)
        assert refused.value.code == "key.malformed"


def test_a_signature_holds_for_its_bytes_and_its_key_alone(
    signer: Ed25519Signer, stranger: Ed25519Signer
) -> None:
    signature = signer.sign(b"message")
    scalar = int.from_bytes(signature[32:], "little") + ORDER
    signer.public_key.verify(signature, b"message")

    for key, claimed, message in (
        (signer.public_key, signature, b"massage"),
        (signer.public_key, signature, b""),
        (stranger.public_key, signature, b"message"),
        (signer.public_key, signature[:-1], b"message"),
        (signer.public_key, signature + b"\0", b"message"),
        (signer.public_key, b"", b"message"),
        (signer.public_key, bytes(64), b"message"),
        (signer.public_key, encode(1) + bytes(32), b"message"),
        (signer.public_key, signature[:32] + scalar.to_bytes(32, "little"), b"message"),
        (signer.public_key, signature[32:] + signature[:32], b"message"),
    ):
        with pytest.raises(VerificationError) as refused:
            key.verify(claimed, message)
        assert refused.value.code == "signature.invalid"


def test_every_bit_of_a_signature_counts(signer: Ed25519Signer) -> None:
    signature = signer.sign(b"message")
    for bit in range(512):
        flipped = (int.from_bytes(signature, "little") ^ 1 << bit).to_bytes(64, "little")
        with pytest.raises(VerificationError):
            signer.public_key.verify(flipped, b"message")


def test_a_signer_names_its_key(signer: Ed25519Signer) -> None:
    protocol: Signer = signer

    assert protocol.key_id == protocol.public_key.thumbprint
    assert repr(signer) == f"<Ed25519Signer {signer.key_id}>"


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_seed_is_32_bytes(size: int) -> None:
    with pytest.raises(KeyMaterialError) as refused:
        Ed25519Signer.from_seed(bytes(size))
    assert refused.value.code == "key.malformed"


def test_nothing_that_copies_or_prints_gets_at_the_private_key() -> None:
    seed = os.urandom(32)
    signer = Ed25519Signer.from_seed(seed)

    for copier in (copy.copy, copy.deepcopy, pickle.dumps, lambda s: s.__getstate__()):
        with pytest.raises(KeyMaterialError) as refused:
            copier(signer)
        assert refused.value.code == "key.private"
    for carrier in ([signer], {"key": signer}, (signer,)):
        for deep in (copy.deepcopy, pickle.dumps):
            with pytest.raises(KeyMaterialError):
                deep(carrier)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(KeyMaterialError):
            pickle.dumps(signer, protocol)
    with pytest.raises(TypeError):
        json.dumps(signer)
    with pytest.raises(TypeError):
        vars(signer)
    with pytest.raises(TypeError):
        dataclasses.asdict(signer)  # type: ignore[call-overload]
    assert not hasattr(signer, "__dict__")
    for text in (repr(signer), str(signer), f"{signer}", repr([signer])):
        assert seed.hex() not in text
        assert repr(seed) not in text
        assert b64url_encode(seed) not in text


def test_a_key_file_opens_with_its_passphrase_alone(signer: Ed25519Signer) -> None:
    file = signer.to_openssh(PASSPHRASE)

    assert Ed25519Signer.from_openssh(file, PASSPHRASE).key_id == signer.key_id
    for wrong in (b"", b"incorrect horse", PASSPHRASE + b"\n"):
        with pytest.raises(KeyMaterialError) as refused:
            Ed25519Signer.from_openssh(file, wrong)
        assert refused.value.code == "key.passphrase"
    with pytest.raises(KeyMaterialError) as refused:
        signer.to_openssh(b"")
    assert refused.value.code == "key.passphrase"


def test_a_key_file_that_is_not_encrypted_is_refused() -> None:
    plain = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
    )
    with pytest.raises(KeyMaterialError) as refused:
        Ed25519Signer.from_openssh(plain, PASSPHRASE)
    assert refused.value.code == "key.unencrypted"


def test_a_file_with_anything_else_is_unreadable(signer: Ed25519Signer) -> None:
    file = signer.to_openssh(PASSPHRASE)
    pkcs8 = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE)
    )
    encryption = PrivateFormat.OpenSSH.encryption_builder().kdf_rounds(1).build(PASSPHRASE)
    p256 = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.OpenSSH, encryption
    )
    for data in (b"", b"junk", b"\xff\x00", file[:100], file[:-40], pkcs8, p256):
        with pytest.raises(KeyMaterialError) as refused:
            Ed25519Signer.from_openssh(data, PASSPHRASE)
        assert refused.value.code == "key.unreadable"


def with_rounds(file: bytes, rounds: int) -> bytes:
    """The key file as somebody leaves it who writes another number of rounds into it."""
    begin, *lines, end = file.splitlines()
    body = base64.b64decode(b"".join(lines))
    at = body.index(b"bcrypt") + len(b"bcrypt") + 4
    at += 4 + int.from_bytes(body[at : at + 4])  # behind the salt
    body = body[:at] + rounds.to_bytes(4) + body[at + 4 :]
    return b"\n".join((begin, base64.b64encode(body), end, b""))


def test_a_key_file_that_asks_for_years_of_work_is_refused_at_once(signer: Ed25519Signer) -> None:
    file = signer.to_openssh(PASSPHRASE, rounds=2)
    assert Ed25519Signer.from_openssh(with_rounds(file, 2), PASSPHRASE).key_id == signer.key_id
    for rounds in (MAX_ROUNDS + 1, 2**31, 2**32 - 1):
        bomb = with_rounds(file, rounds)
        for data in (bomb, bomb + file, b"x" + bomb.replace(b"\n", b" \r\n")):
            with pytest.raises(KeyMaterialError, match=f"{rounds} rounds") as refused:
                Ed25519Signer.from_openssh(data, PASSPHRASE)
            assert refused.value.code == "key.unreadable"
        assert Ed25519Signer.from_openssh(file + bomb, PASSPHRASE).key_id == signer.key_id
        require_encrypted(bomb)


ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")


@ssh_keygen
def test_ssh_keygen_reads_our_key_files(signer: Ed25519Signer, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_bytes(signer.to_openssh(PASSPHRASE, rounds=4))

    command = ["ssh-keygen", "-y", "-P", PASSPHRASE.decode(), "-f", str(path)]
    public = subprocess.run(command, check=True, capture_output=True).stdout

    assert base64.b64decode(public.split()[1])[-32:] == signer.public_key.raw


@ssh_keygen
@pytest.mark.parametrize("cipher", ["aes256-ctr", "aes256-cbc", "aes256-gcm@openssh.com"])
def test_we_read_ssh_keygens_key_files(tmp_path: Path, cipher: str) -> None:
    path = tmp_path / "key"
    options = ["-t", "ed25519", "-N", PASSPHRASE.decode(), "-a", "1", "-Z", cipher, "-C", "us"]
    subprocess.run(["ssh-keygen", "-q", *options, "-f", str(path)], check=True)

    signer = Ed25519Signer.from_openssh(path.read_bytes(), PASSPHRASE)

    signer.public_key.verify(signer.sign(b"x"), b"x")
    with pytest.raises(KeyMaterialError) as refused:
        Ed25519Signer.from_openssh(path.read_bytes(), b"wrong")
    assert refused.value.code == "key.passphrase"
