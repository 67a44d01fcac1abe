"""Ed25519 keys: the public key as a value, the ``Signer`` protocol, and the signer in memory.

Public keys are JWKs (RFC 8037), private keys encrypted OpenSSH files. ``domain/`` knows where files
lie and who may read them; ``jws.py`` and ``dsse.py`` know what is signed. The reader and writer of
OpenSSH's formats are imported where they are used: they load bcrypt and every cipher of
cryptography, which a guard in memory does not need.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agentguard.errors import DecodeError, KeyMaterialError, VerificationError
from agentguard.signing.canonical import b64url_decode, b64url_encode, dumps_record

ALGORITHMS: Final = frozenset({"EdDSA", "Ed25519"})
"""The names of the one algorithm: RFC 8037's, which ``sign`` sets, and RFC 9864's."""

MAX_ROUNDS: Final = 256
"""The most rounds of bcrypt's KDF for which a private key file is opened: seconds of work."""

_LABEL: Final = b"OPENSSH PRIVATE KEY"
_BEGIN: Final = b"-----BEGIN " + _LABEL + b"-----\n"
_END: Final = b"\n-----END " + _LABEL + b"-----\n"
_OPENSSH: Final = re.compile(_BEGIN.rstrip() + b"(.*?)" + _END.strip(), re.DOTALL)
_MAGIC: Final = b"openssh-key-v1\0"

_KEY_SIZE: Final = 32
_SSH_NAME: Final = b"ssh-ed25519"
_P: Final = 2**255 - 19
_SIGN_BIT: Final = 1 << 255
# The y coordinates of the eight points of small order (RFC 8032, 5.1). Under such a key one
# signature is valid for many messages. The points (x, y) and (-x, y) share a coordinate.
_ORDER_8_Y: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_Y: Final = frozenset({0, 1, _P - 1, _ORDER_8_Y, _P - _ORDER_8_Y})


@dataclass(frozen=True, repr=False)
class PublicKey:
    """An Ed25519 public key that is safe for verification; ``raw`` is its 32 bytes (RFC 8032).

    Raises ``KeyMaterialError``: ``key.malformed`` for another length, ``key.weak`` for a point
    of small order or in a non-canonical encoding.
    """

    __slots__ = ("_key", "_thumbprint", "raw")

    raw: bytes

    def __post_init__(self) -> None:
        if type(self.raw) is not bytes or len(self.raw) != _KEY_SIZE:
            raise KeyMaterialError("an Ed25519 public key is 32 bytes", code="key.malformed")
        y = int.from_bytes(self.raw, "little") & ~_SIGN_BIT
        if y >= _P or y in _SMALL_ORDER_Y:
            raise KeyMaterialError(
                "the public key has small order or is not canonical; make a new key",
                code="key.weak",
            )
        digest = hashlib.sha256(dumps_record(self.jwk())).digest()
        object.__setattr__(self, "_key", Ed25519PublicKey.from_public_bytes(self.raw))
        object.__setattr__(self, "_thumbprint", b64url_encode(digest))

    def __repr__(self) -> str:
        return f"<PublicKey {self.thumbprint}>"

    def __reduce__(self) -> tuple[type[PublicKey], tuple[bytes]]:
        return PublicKey, (self.raw,)

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, object]) -> PublicKey:
        """Return the key of a JWK (RFC 8037, 2); unknown members are ignored.

        Raises ``KeyMaterialError``: ``key.private`` for a JWK with a private part, and
        ``key.malformed`` for another algorithm or use, or an ``x`` that is not canonical.
        """
        if "d" in jwk:
            raise KeyMaterialError(
                "the JWK holds a private key: treat that key as stolen, and pass only its "
                "public part",
                code="key.private",
            )
        x = jwk.get("x")
        operations = jwk.get("key_ops", ["verify"])
        if (
            jwk.get("kty") != "OKP"
            or jwk.get("crv") != "Ed25519"
            or not isinstance(x, str)
            or jwk.get("alg", "EdDSA") not in tuple(ALGORITHMS)
            or jwk.get("use", "sig") != "sig"
            or not isinstance(operations, list)
            or "verify" not in operations
        ):
            raise KeyMaterialError(
                "expected a JWK with kty OKP, crv Ed25519 and x, for verifying signatures",
                code="key.malformed",
            )
        try:
            return cls(b64url_decode(x))
        except DecodeError as error:
            raise KeyMaterialError(f"the JWK's x: {error}", code="key.malformed") from None

    @classmethod
    def from_openssh(cls, line: str) -> PublicKey:
        """Return the key of a line of a file ``id_ed25519.pub`` (RFC 8709, 4), comment ignored.

        Raises ``KeyMaterialError`` (``key.malformed``, ``key.weak``).
        """
        from cryptography.hazmat.primitives.serialization import load_ssh_public_key  # noqa: PLC0415  slow

        try:
            key = load_ssh_public_key(line.strip().encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyMaterialError(
                "expected a line as in a file id_ed25519.pub: 'ssh-ed25519 AAAA...'",
                code="key.malformed",
            ) from error
        if not isinstance(key, Ed25519PublicKey):
            raise KeyMaterialError(
                "the public key is of another type; expected ssh-ed25519", code="key.malformed"
            )
        return cls(key.public_bytes_raw())

    def openssh(self) -> str:
        """Return the key as a line of a file ``id_ed25519.pub``, without a comment."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415  slow

        key: Ed25519PublicKey = self._key  # type: ignore[attr-defined]  # a slot, not a field
        return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    def jwk(self) -> dict[str, str]:
        """Return the key as a JWK with the members that RFC 7638 requires, and no others."""
        return {"crv": "Ed25519", "kty": "OKP", "x": b64url_encode(self.raw)}

    @property
    def thumbprint(self) -> str:
        """The SHA-256 thumbprint (RFC 7638; RFC 8037, Appendix A.3), in base64url."""
        thumbprint: str = self._thumbprint  # type: ignore[attr-defined]  # a slot, not a field
        return thumbprint

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the key's OpenSSH form (RFC 4253, 6.6), as ``ssh-keygen -lf`` shows it."""
        blob = b"".join(len(part).to_bytes(4, "big") + part for part in (_SSH_NAME, self.raw))
        digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
        return f"SHA256:{digest}"

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return if ``signature`` (64 bytes) is valid for ``data`` (RFC 8032, 5.1.7).

        Raises ``VerificationError`` (``signature.invalid``).
        """
        key: Ed25519PublicKey = self._key  # type: ignore[attr-defined]  # a slot, not a field
        try:
            key.verify(signature, data)
        except InvalidSignature:
            raise VerificationError(
                f"the signature does not hold under the key {self.thumbprint}",
                code="signature.invalid",
            ) from None


class Signer(Protocol):
    """Signs with one Ed25519 key, which may be in memory, in a KMS or in another process."""

    @property
    def key_id(self) -> str:
        """The public key's RFC 7638 thumbprint."""

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies what ``sign`` returns."""

    def sign(self, data: bytes) -> bytes:
        """Return the 64 bytes of the Ed25519 signature of ``data`` (RFC 8032, 5.1.6)."""


class Secret:
    """A passphrase, or another secret text, which can't be printed, copied or serialised.

    A traceback can show the variables of its frames. So pass ``reveal()`` directly to the function
    that needs the bytes, and assign the result to no variable.
    """

    __slots__ = ("__value",)

    def __init__(self, value: bytes) -> None:
        self.__value = value

    @classmethod
    def of(cls, passphrase: Secret | bytes) -> Secret:
        """Return a passphrase as a ``Secret``; raises ``KeyMaterialError`` for another type."""
        if isinstance(passphrase, Secret):
            return passphrase
        if not isinstance(passphrase, bytes):
            del passphrase  # type: ignore[unreachable]  # the application's function may return anything
            raise KeyMaterialError("the passphrase must be bytes", code="key.passphrase")
        return cls(passphrase)

    def reveal(self) -> bytes:
        """Return the bytes of the text."""
        return self.__value

    def __repr__(self) -> str:
        return "<Secret>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise _not_copied("a secret", "ask for it again instead")

    def __getstate__(self) -> NoReturn:
        raise _not_copied("a secret", "ask for it again instead")


class Ed25519Signer:
    """A ``Signer`` whose key is in this process's memory.

    Printing, copying and serialisation can't reach the key. Other code in this process can
    (records.md: keys attribute, they do not isolate).
    """

    __slots__ = ("__key", "_public_key")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self.__key = key
        self._public_key = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def from_seed(cls, seed: bytes) -> Ed25519Signer:
        """Return the signer of a private key's 32 bytes (RFC 8032, 5.1.5).

        Raises ``KeyMaterialError`` (``key.malformed``) for another length.
        """
        if len(seed) != _KEY_SIZE:
            raise KeyMaterialError("an Ed25519 seed is 32 random bytes", code="key.malformed")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_openssh(cls, data: bytes, passphrase: Secret | bytes) -> Ed25519Signer:
        """Return the signer of an encrypted OpenSSH key file, such as ``ssh-keygen`` writes.

        Raises ``KeyMaterialError``: ``key.passphrase`` for an empty or wrong passphrase,
        ``key.unencrypted`` for a file without encryption, ``key.unreadable`` for any other file,
        also for one with more than ``MAX_ROUNDS`` of bcrypt.
        """
        passphrase = _require_nonempty(passphrase)
        try:
            key = _decrypt(_check_rounds(data), passphrase)
        except TypeError:
            raise _not_encrypted() from None
        except (ValueError, InvalidTag, UnsupportedAlgorithm) as error:
            # cryptography has no exception for a wrong passphrase: the two check numbers of the
            # decrypted file differ, or the tag of an AEAD cipher is invalid.
            if isinstance(error, InvalidTag) or "checksum" in str(error):
                raise KeyMaterialError(
                    "the passphrase is not this private key file's, or the file is damaged",
                    code="key.passphrase",
                ) from None
            raise KeyMaterialError(
                f"can't read the private key file: {error}", code="key.unreadable"
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyMaterialError(
                "the file holds a key of another type; expected ssh-ed25519",
                code="key.unreadable",
            )
        return cls(key)

    def to_openssh(self, passphrase: Secret | bytes, *, rounds: int = 24) -> bytes:
        """Return the key as an OpenSSH file, encrypted under ``rounds`` of bcrypt's KDF.

        Raises ``KeyMaterialError`` (``key.passphrase``) if the passphrase is empty.
        """
        from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat  # noqa: PLC0415  slow

        passphrase = _require_nonempty(passphrase)
        encryption = PrivateFormat.OpenSSH.encryption_builder().kdf_rounds(rounds)
        try:
            return self.__key.private_bytes(
                Encoding.PEM, PrivateFormat.OpenSSH, encryption.build(passphrase.reveal())
            )
        except BaseException as error:
            _forget_frames(error)
            raise

    @property
    def key_id(self) -> str:
        """The public key's RFC 7638 thumbprint."""
        return self._public_key.thumbprint

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies what ``sign`` returns."""
        return self._public_key

    def sign(self, data: bytes) -> bytes:
        """Return the 64 bytes of the Ed25519 signature of ``data`` (RFC 8032, 5.1.6)."""
        return self.__key.sign(data)

    def __repr__(self) -> str:
        return f"<Ed25519Signer {self.key_id}>"

    # pickle, copy.copy and copy.deepcopy all call this method.
    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise _not_copied("a signer", "pass its public_key instead")

    def __getstate__(self) -> NoReturn:
        raise _not_copied("a signer", "pass its public_key instead")


def _require_nonempty(passphrase: Secret | bytes) -> Secret:
    passphrase = Secret.of(passphrase)
    if not passphrase.reveal():
        raise KeyMaterialError(
            "the passphrase is empty; private keys are kept encrypted only",
            code="key.passphrase",
        )
    return passphrase


def require_encrypted(data: bytes) -> None:
    """Raise ``KeyMaterialError`` (``key.unencrypted``) for a key file that needs no passphrase.

    This check comes before anybody types a passphrase. ``from_openssh`` reports other problems.
    """
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key  # noqa: PLC0415  slow

    try:
        load_ssh_private_key(data, None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return
    raise _not_encrypted()


def _not_encrypted() -> KeyMaterialError:
    return KeyMaterialError(
        "the private key file is not encrypted; encrypt it with 'ssh-keygen -p -f FILE'",
        code="key.unencrypted",
    )


def _check_rounds(data: bytes) -> bytes:
    """Return the one OpenSSH key in a file; raise ``KeyMaterialError`` for too many rounds.

    No signature protects the number of rounds, so whoever can write the file could keep its readers
    busy for years. The result is the checked key alone, so that no other key of the file is opened.
    """
    match = _OPENSSH.search(data)
    if match is None:
        return data  # the decryption reports another form
    body = base64.b64decode(match[1])
    _cipher, rest = _split_string(body.removeprefix(_MAGIC))
    _kdf, rest = _split_string(rest)
    _salt, rest = _split_string(_split_string(rest)[0])
    rounds = int.from_bytes(rest[:4])
    if rounds > MAX_ROUNDS:
        raise KeyMaterialError(
            f"the private key file asks for {rounds} rounds of bcrypt, and more than {MAX_ROUNDS} "
            "are not made: restore the file from a backup, or, if you chose that number, lower it "
            f"with 'ssh-keygen -p -a {MAX_ROUNDS} -f FILE'",
            code="key.unreadable",
        )
    return _BEGIN + base64.b64encode(body) + _END


def _split_string(data: bytes) -> tuple[bytes, bytes]:
    """Split an SSH string (RFC 4251, 5) from the bytes that follow."""
    end = 4 + int.from_bytes(data[:4])
    return data[4:end], data[end:]


def _decrypt(data: bytes, passphrase: Secret) -> object:
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key  # noqa: PLC0415  slow

    try:
        return load_ssh_private_key(data, passphrase.reveal())
    except BaseException as error:
        _forget_frames(error)
        raise


def _forget_frames(error: BaseException) -> None:
    """Remove the frames from an error, an interrupt included: they hold the passphrase."""
    error.__cause__ = error.__context__ = error.__traceback__ = None


def _not_copied(what: str, advice: str) -> KeyMaterialError:
    return KeyMaterialError(
        f"{what} is neither copied nor serialised; {advice}", code="key.private"
    )
