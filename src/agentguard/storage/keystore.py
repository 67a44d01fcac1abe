"""The long-lived keys of a trust domain, encrypted at rest in OpenSSH's format.

A state directory holds ``keys/issuer``, ``keys/log`` and ``keys/admin``, and the trust document
with their public halves; while a key is rotated (``succession.py``), ``keys/<use>.next`` too. The
passphrase lies elsewhere (``[keys] passphrase_file``, or ``AGENTGUARD_PASSPHRASE``).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from agentguard.errors import KeyMaterialError, StorageError
from agentguard.identity.trust import TrustDocument, Use
from agentguard.keys import Ed25519Signer

TRUST: Final = "trust.json"
KEYS: Final = "keys"

LONG_LIVED: Final[tuple[Use, ...]] = ("issuer", "log", "admin")
"""The uses of the keys that lie in a state."""


def write_new(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 that must not exist; raises ``StorageError``."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError as error:
        message = f"{path} exists already: it is not overwritten"
        raise StorageError(message, code="storage.exists") from error
    except OSError as error:
        message = f"{path} can't be written ({error.strerror}): give this user the right"
        raise StorageError(message, code="storage.readonly") from error


def replace(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 in place of another, whole or not; raises ``StorageError``."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        write_new(new, data)
        new.replace(path)
    except OSError as error:
        message = f"{path} can't be replaced ({error.strerror}): give this user the right"
        raise StorageError(message, code="storage.readonly") from error


def save_key(state: Path, use: Use, signer: Ed25519Signer, passphrase: bytes) -> None:
    """Keep a key, encrypted; raises ``StorageError`` if there is one already."""
    write_new(state / KEYS / use, signer.to_openssh(passphrase))


def save_next_key(state: Path, use: Use, signer: Ed25519Signer, passphrase: bytes) -> None:
    """Keep, beside a key, the one that is to take its place; raises ``StorageError``."""
    replace(_next(state, use), signer.to_openssh(passphrase))


def next_key(state: Path, use: Use, passphrase: bytes) -> Ed25519Signer | None:
    """Read the key that is to take a key's place, if there is one. Raises as ``load_key`` does."""
    return _load(_next(state, use), passphrase) if _next(state, use).exists() else None


def adopt_next_key(state: Path, use: Use) -> None:
    """Put the next key in its place; it stays beside it until ``drop_next_key``."""
    replace(state / KEYS / use, _next(state, use).read_bytes())


def drop_next_key(state: Path, use: Use) -> None:
    """Forget the next key: it is in its place, or will not be."""
    _next(state, use).unlink(missing_ok=True)


def next_keys(state: Path, *, adopted: bool) -> list[Use]:
    """Return the uses with a next key: those where it is in its place already, or the others."""
    return [
        use
        for use in LONG_LIVED
        if (data := _bytes(_next(state, use))) is not None
        and (data == _bytes(state / KEYS / use)) is adopted
    ]


def _next(state: Path, use: Use) -> Path:
    return state / KEYS / f"{use}.next"


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # whoever needs it says what is wrong
        return None


def load_key(state: Path, use: Use, passphrase: bytes) -> Ed25519Signer:
    """Read a key. Raises ``KeyMaterialError``: ``key.unreadable``, ``key.passphrase``, ..."""
    return _load(state / KEYS / use, passphrase)


def _load(path: Path, passphrase: bytes) -> Ed25519Signer:
    refuse_if_exposed(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"the key {path} can't be read ({error.strerror}): check the state"
        raise KeyMaterialError(message, code="key.unreadable") from error
    return Ed25519Signer.from_openssh(data, passphrase)


def load_trust(state: Path) -> TrustDocument:
    """Read the trust document. Raises ``StorageError`` or ``DecodeError``."""
    path = state / TRUST
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): run agentguard init"
        raise StorageError(message, code="storage.missing") from error
    return TrustDocument.loads(data)


def refuse_if_exposed(path: Path, *, reading: bool = True) -> None:
    """Raise if others can write ``path``, or (``reading``) even read it.

    Raises ``KeyMaterialError`` (``key.exposed``) or, where the file can't be looked at,
    ``key.unreadable``.
    """
    try:
        status = path.stat()
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): check the path and this user's rights"
        raise KeyMaterialError(message, code="key.unreadable") from error
    forbidden = stat.S_IRWXG | stat.S_IRWXO if reading else stat.S_IWGRP | stat.S_IWOTH
    if status.st_mode & forbidden or status.st_uid not in (os.getuid(), 0):
        who = "read or write" if reading else "write"
        mode = ("700" if path.is_dir() else "600") if reading else "go-w"
        message = f"others can {who} {path}: run chmod {mode} on it, and see that you own it"
        raise KeyMaterialError(message, code="key.exposed")
