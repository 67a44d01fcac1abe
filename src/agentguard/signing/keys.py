"""Ed25519 keys: the public key as a value, the ``Signer`` protocol, and the signer in memory.

Formats are JWK (RFC 8037) for public keys and encrypted OpenSSH files for private ones. Where
a file lies and who may read it is the configuration's business; what is signed is ``jws.py``'s
and ``dsse.py``'s. What reads and writes OpenSSH's formats is imported where it is used: it
loads bcrypt and every cipher of cryptography, and a guard in memory needs neither.
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
"""The names of the one algorithm: RFC 8037's, which we write, and RFC 9864's."""

MAX_ROUNDS: Final = 256
"""Rounds of bcrypt's KDF, above which a private key file is not opened: some seconds of work."""

_BEGIN: Final = b"-----BEGIN OPENSSH PRIVATE KEY-----\n"
_END: Final = b"\n-----END OPENSSH PRIVATE KEY-----\n"
_OPENSSH: Final = re.compile(_BEGIN.rstrip() + b"(.*?)" + _END.strip(), re.DOTALL)
_MAGIC: Final = b"openssh-key-v1\0"

_KEY_SIZE: Final = 32
_P: Final = 2**255 - 19
_SIGN_BIT: Final = 1 << 255
# The y coordinates of the eight points of small order (RFC 8032, 5.1): under such a key one
# signature holds for many messages. Points come in pairs (x, y), (-x, -y).
_ORDER_8_Y: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER_Y: Final = frozenset({0, 1, _P - 1, _ORDER_8_Y, _P - _ORDER_8_Y})


@dataclass(frozen=True, repr=False)
class PublicKey:
    """An Ed25519 public key that is fit to verify with: ``raw`` is its 32 bytes (RFC 8032).

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
        """Make a key from a JWK (RFC 8037, 2), whose other members are ignored.

        Raises ``KeyMaterialError``: ``key.private`` if the private part is there, and
        ``key.malformed`` if it is for another algorithm or use, or its ``x`` is not canonical.
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
        """Read a line as in a file ``id_ed25519.pub`` (RFC 8709, 4); its comment is ignored.

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

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return if ``signature`` (64 bytes) holds for ``data`` (RFC 8032, 5.1.7).

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
    """What signs with one Ed25519 key, wherever that key is: memory, KMS, another process."""

    @property
    def key_id(self) -> str:
        """The public key's RFC 7638 thumbprint."""

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies what ``sign`` returns."""

    def sign(self, data: bytes) -> bytes:
        """Return the 64 bytes of the Ed25519 signature of ``data`` (RFC 8032, 5.1.6)."""


class Secret:
    """A passphrase on its way to the key that it opens.

    A traceback can show whatever its frames hold: nothing prints, copies or serialises this.
    ``reveal`` is for the call that needs the bytes, and no variable.
    """

    __slots__ = ("__value",)

    def __init__(self, value: bytes) -> None:
        self.__value = value

    @classmethod
    def of(cls, passphrase: Secret | bytes) -> Secret:
        """Wrap a passphrase that is not yet; raises ``KeyMaterialError`` for what is no bytes."""
        if isinstance(passphrase, Secret):
            return passphrase
        if not isinstance(passphrase, bytes):
            del passphrase  # type: ignore[unreachable]  # from a function that is asked for it
            raise KeyMaterialError("the passphrase must be bytes", code="key.passphrase")
        return cls(passphrase)

    def reveal(self) -> bytes:
        """Return the passphrase."""
        return self.__value

    def __repr__(self) -> str:
        return "<Secret>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise _not_copied("a passphrase", "ask for it again instead")

    def __getstate__(self) -> NoReturn:
        raise _not_copied("a passphrase", "ask for it again instead")


class Ed25519Signer:
    """A ``Signer`` whose key is in this process's memory.

    Nothing that prints, copies or serialises objects gets at the key. Code that runs in this
    process can (records.md: keys attribute, they do not isolate).
    """

    __slots__ = ("__key", "_public_key")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self.__key = key
        self._public_key = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def from_seed(cls, seed: bytes) -> Ed25519Signer:
        """Make the signer of a private key's 32 bytes (RFC 8032, 5.1.5).

        Raises ``KeyMaterialError`` (``key.malformed``) for another length.
        """
        if len(seed) != _KEY_SIZE:
            raise KeyMaterialError("an Ed25519 seed is 32 random bytes", code="key.malformed")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def from_openssh(cls, data: bytes, passphrase: Secret | bytes) -> Ed25519Signer:
        """Read an encrypted OpenSSH private key file, as ``ssh-keygen -t ed25519`` writes it.

        Raises ``KeyMaterialError``: ``key.passphrase`` if it is empty or wrong,
        ``key.unencrypted`` if the file is not encrypted, ``key.unreadable`` otherwise, also where
        the passphrase goes through more than ``MAX_ROUNDS``.
        """
        passphrase = _required(passphrase)
        try:
            key = _opened(_bounded(data), passphrase)
        except TypeError:
            raise _not_encrypted() from None
        except (ValueError, InvalidTag, UnsupportedAlgorithm) as error:
            # Under a wrong passphrase the plain text is noise: its two check numbers differ, or
            # an AEAD cipher's tag does not hold. cryptography has no exception of its own for it.
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

        passphrase = _required(passphrase)
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

    # pickle, copy.copy and copy.deepcopy all begin here.
    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise _not_copied("a signer", "pass its public_key instead")

    def __getstate__(self) -> NoReturn:
        raise _not_copied("a signer", "pass its public_key instead")


def _required(passphrase: Secret | bytes) -> Secret:
    passphrase = Secret.of(passphrase)
    if not passphrase.reveal():
        raise KeyMaterialError(
            "the passphrase is empty; private keys are kept encrypted only",
            code="key.passphrase",
        )
    return passphrase


def require_encrypted(data: bytes) -> None:
    """Refuse a private key file that needs no passphrase, before anybody is asked for one.

    Raises ``KeyMaterialError`` (``key.unencrypted``). What else is wrong with it, ``from_openssh``
    says.
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


def _bounded(data: bytes) -> bytes:
    """Return a key file whose rounds of bcrypt are few enough, framed anew.

    Nothing signs the number of rounds: whoever can write the file could keep its readers busy for
    years. What is returned has one frame, so that what is opened is what was looked at.
    """
    framed = _OPENSSH.search(data)
    if framed is None:
        return data  # of no such form, as its reader says
    body = base64.b64decode(framed[1])
    _cipher, rest = _text(body.removeprefix(_MAGIC))
    _kdf, rest = _text(rest)
    _salt, rest = _text(_text(rest)[0])
    rounds = int.from_bytes(rest[:4])
    if rounds > MAX_ROUNDS:
        raise KeyMaterialError(
            f"the private key file asks for {rounds} rounds of bcrypt, and more than {MAX_ROUNDS} "
            "are not made: restore the file from a backup, or, if you chose that number, lower it "
            f"with 'ssh-keygen -p -a {MAX_ROUNDS} -f FILE'",
            code="key.unreadable",
        )
    return _BEGIN + base64.b64encode(body) + _END


def _text(data: bytes) -> tuple[bytes, bytes]:
    """Split a string of SSH's (RFC 4251, 5) from what follows."""
    end = 4 + int.from_bytes(data[:4])
    return data[4:end], data[end:]


def _opened(data: bytes, passphrase: Secret) -> object:
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key  # noqa: PLC0415  slow

    try:
        return load_ssh_private_key(data, passphrase.reveal())
    except BaseException as error:
        _forget_frames(error)
        raise


def _forget_frames(error: BaseException) -> None:
    """Take cryptography's frames from an error, even an interrupt: they hold the passphrase."""
    error.__cause__ = error.__context__ = error.__traceback__ = None


def _not_copied(what: str, advice: str) -> KeyMaterialError:
    return KeyMaterialError(
        f"{what} is neither copied nor serialised; {advice}", code="key.private"
    )
