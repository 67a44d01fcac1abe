"""The long-lived keys of a trust domain, encrypted at rest in OpenSSH's format.

A state directory holds ``keys/issuer``, ``keys/log`` and ``keys/admin``, and the trust document
with the public keys. During a rotation or a revocation (``handover.py``) the state also holds
``keys/<use>.next``, the new key, or ``trust.next``, the new trust document. The passphrase is not
in the state: see ``[keys] passphrase_file`` and ``AGENTGUARD_PASSPHRASE``.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from agentguard.errors import DecodeError, KeyMaterialError, StorageError
from agentguard.identity.trust import TrustDocument, Use
from agentguard.signing.keys import Ed25519Signer, Secret
from agentguard.storage import files

TRUST: Final = "trust.json"
KEYS: Final = "keys"
_NEXT_TRUST: Final = "trust.next"
_UNANNOUNCED: Final = "trust.unannounced"

PASSPHRASE_VARIABLE: Final = "AGENTGUARD_PASSPHRASE"  # noqa: S105  a name, no secret
"""The environment variable with the passphrase of the long-lived keys."""

_environment_passphrase: Secret | None = None

LONG_LIVED: Final[tuple[Use, ...]] = ("issuer", "log", "admin")
"""The uses of the keys in a state directory."""


def save_key(state: Path, use: Use, signer: Ed25519Signer, passphrase: Secret | bytes) -> None:
    """Write the encrypted key of a new state; raises ``StorageError`` if the file exists."""
    files.write_new(state / KEYS / use, signer.to_openssh(passphrase))


def save_next_key(state: Path, use: Use, signer: Ed25519Signer, passphrase: Secret | bytes) -> None:
    """Write a new key, encrypted, beside the current key; raises ``StorageError``."""
    files.replace(_next(state, use), signer.to_openssh(passphrase))


def next_key(state: Path, use: Use, passphrase: Secret | bytes) -> Ed25519Signer | None:
    """Return the new key beside the current key, None without one; raises as ``load_key``."""
    return _load(_next(state, use), passphrase) if files.exists(_next(state, use)) else None


def adopt_next_key(state: Path, use: Use) -> None:
    """Replace the current key with the new key; ``drop_next_key`` then removes the copy."""
    files.replace(state / KEYS / use, files.read(_next(state, use)))


def drop_next_key(state: Path, use: Use) -> None:
    """Remove the new key's file beside the current key."""
    files.remove(_next(state, use))


def next_keys(state: Path, *, adopted: bool) -> list[Use]:
    """Return the uses with a new key beside the current key.

    With ``adopted`` True, return the uses whose new key has replaced the current key already;
    with ``adopted`` False, the other uses. Raises ``KeyMaterialError`` (``key.unreadable``).
    """
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
        return files.read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> KeyMaterialError:
    message = f"the key {path} can't be read ({error.strerror}): check the state"
    return KeyMaterialError(message, code="key.unreadable")


def load_key(state: Path, use: Use, passphrase: Secret | bytes) -> Ed25519Signer:
    """Return a decrypted key.

    Raises ``KeyMaterialError``: ``key.unreadable``, ``key.exposed``, ``key.passphrase``, and the
    codes of ``Ed25519Signer.from_openssh``.
    """
    return _load(state / KEYS / use, passphrase)


def _load(path: Path, passphrase: Secret | bytes) -> Ed25519Signer:
    try:
        data = files.read(path, require=partial(require_private, path))
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        return Ed25519Signer.from_openssh(data, passphrase)
    except KeyMaterialError as error:
        source = f"; {_sources()}" if error.code == "key.passphrase" else ""
        raise KeyMaterialError(f"the key {path}: {error}{source}", code=error.code) from error


def from_environment() -> Secret | None:
    """Remove the passphrase from the environment and return the passphrase, None if never set.

    Later calls in this process and in its forks return the same passphrase. Programs that the
    process starts afterwards do not inherit the variable. ``/proc/self/environ`` does not show the
    value either, because this function overwrites the bytes of the value in memory. The
    environment of the parent process still has the variable.
    """
    global _environment_passphrase  # noqa: PLW0603  one for the process, as the environment is
    value = os.environb.get(os.fsencode(PASSPHRASE_VARIABLE))
    if value:
        # set before the removal, for another thread that calls this function meanwhile
        _environment_passphrase = Secret(value)
        _overwrite(os.fsencode(PASSPHRASE_VARIABLE))
        os.environ.pop(PASSPHRASE_VARIABLE, None)
    return _environment_passphrase


def _overwrite(variable: bytes) -> None:
    """Overwrite a variable's value in memory; to unset a variable leaves the value's bytes."""
    import ctypes  # noqa: PLC0415  few processes have a value to overwrite

    with suppress(OSError, AttributeError):  # an interpreter without a C library
        getenv = ctypes.CDLL(None).getenv
        getenv.argtypes, getenv.restype = [ctypes.c_char_p], ctypes.c_void_p
        address = getenv(variable)
        if address:
            ctypes.memset(address, 0, len(ctypes.string_at(address)))


def _sources() -> str:
    """Return the part of a message that names all sources of a passphrase, in their order."""
    status = "is not set" if from_environment() is None else "is set"
    return (
        f"a passphrase is what the application passes, else that in {PASSPHRASE_VARIABLE} "
        f"(which {status}), else that in the file of [keys] passphrase_file"
    )


def load_trust(state: Path) -> TrustDocument:
    """Return the state's trust document; raises ``StorageError`` or ``DecodeError``."""
    path = state / TRUST
    remedy = "restore it, from the copy with the anchors or from a backup"
    return parse_trust(_document(path), path, remedy)


def parse_trust(data: bytes, path: Path, remedy: str) -> TrustDocument:
    """Parse a trust document; raises ``DecodeError`` that names ``path`` and ``remedy``."""
    try:
        return TrustDocument.loads(data)
    except DecodeError as error:
        message = f"{path} can't be read ({error}): {remedy}"
        raise DecodeError(message, code=error.code) from error


def save_next_trust(state: Path, trust: TrustDocument) -> None:
    """Write a new trust document beside the current document; raises ``StorageError``."""
    files.replace(state / _NEXT_TRUST, trust.dumps())


def next_trust(state: Path) -> bytes | None:
    """Return the bytes of the new trust document beside the current one, None without one."""
    path = state / _NEXT_TRUST
    return _document(path) if files.exists(path) else None


def adopt_next_trust(state: Path) -> None:
    """Replace the trust document with the new one, and note that the log has no entry of that."""
    files.replace(state / TRUST, _document(state / _NEXT_TRUST))
    files.move(state / _NEXT_TRUST, state / _UNANNOUNCED)


def drop_next_trust(state: Path) -> None:
    """Remove the new trust document beside the current document."""
    files.remove(state / _NEXT_TRUST)


def is_unannounced(state: Path) -> bool:
    """Return whether the log has no entry yet about the newest trust document."""
    return files.exists(state / _UNANNOUNCED)


def note_announced(state: Path) -> None:
    """Note that the log has an entry about the newest trust document."""
    files.remove(state / _UNANNOUNCED)


def _document(path: Path) -> bytes:
    document = files.read_if_present(path)
    if document is None:
        message = f"there is no {path}: run agentguard init, or restore the state"
        raise StorageError(message, code="storage.missing")
    return document


def refuse_if_exposed(path: Path) -> None:
    """Refuse a file that other users can read or write.

    Raises ``KeyMaterialError``: ``key.exposed`` for such a file, ``key.unreadable`` for a file
    whose status can't be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): check the path and this user's rights"
        raise KeyMaterialError(message, code="key.unreadable") from error
    require_private(path, status)


def require_private(path: Path, status: os.stat_result) -> None:
    """Raise ``KeyMaterialError`` (``key.exposed``) if ``status`` lets other users read or write."""
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or status.st_uid not in (os.getuid(), 0):
        mode = "700" if stat.S_ISDIR(status.st_mode) else "600"
        message = (
            f"others can read or write {path}: run chmod {mode} on it, and see that you own it"
        )
        raise KeyMaterialError(message, code="key.exposed")
