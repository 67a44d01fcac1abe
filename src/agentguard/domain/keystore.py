"""The long-lived keys of a trust domain, encrypted at rest in OpenSSH's format.

A state directory holds ``keys/issuer``, ``keys/log`` and ``keys/admin``, and the trust document
with their public halves; while a key is rotated or revoked (``handover.py``), ``keys/<use>.next``
or ``trust.next`` too. The passphrase lies elsewhere (``[keys] passphrase_file``, or
``AGENTGUARD_PASSPHRASE``).
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

_taken: Secret | None = None

LONG_LIVED: Final[tuple[Use, ...]] = ("issuer", "log", "admin")
"""The uses of the keys that lie in a state."""


def save_key(state: Path, use: Use, signer: Ed25519Signer, passphrase: Secret | bytes) -> None:
    """Keep a key, encrypted; raises ``StorageError`` if there is one already."""
    files.write_new(state / KEYS / use, signer.to_openssh(passphrase))


def save_next_key(state: Path, use: Use, signer: Ed25519Signer, passphrase: Secret | bytes) -> None:
    """Keep, beside a key, the one that is to take its place; raises ``StorageError``."""
    files.replace(_next(state, use), signer.to_openssh(passphrase))


def next_key(state: Path, use: Use, passphrase: Secret | bytes) -> Ed25519Signer | None:
    """Read the key that is to take a key's place, if there is one. Raises as ``load_key`` does."""
    return _load(_next(state, use), passphrase) if _next(state, use).exists() else None


def adopt_next_key(state: Path, use: Use) -> None:
    """Put the next key in its place; it stays beside it until ``drop_next_key``."""
    files.replace(state / KEYS / use, files.read(_next(state, use)))


def drop_next_key(state: Path, use: Use) -> None:
    """Forget the next key: it is in its place, or will not be."""
    files.remove(_next(state, use))


def next_keys(state: Path, *, adopted: bool) -> list[Use]:
    """Return the uses with a next key: those where it is in its place already, or the others.

    Raises ``KeyMaterialError`` (``key.unreadable``).
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
    """Read a key. Raises ``KeyMaterialError``: ``key.unreadable``, ``key.passphrase``, ..."""
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
    """Take the passphrase out of the environment, None where it was never there.

    It is kept for whoever asks again in this process, or in a fork of it. Programs that the process
    starts from then on do not have it, and ``/proc/self/environ`` does not show it: of the string
    that the process began with the value is overwritten. The environment of the parent process,
    from which it came, is out of reach.
    """
    global _taken  # noqa: PLW0603  the environment is the process's own, too
    value = os.environb.get(os.fsencode(PASSPHRASE_VARIABLE))
    if value:
        _taken = Secret(value)  # first: another thread may ask while it is taken out
        _overwrite(os.fsencode(PASSPHRASE_VARIABLE))
        os.environ.pop(PASSPHRASE_VARIABLE, None)
    return _taken


def _overwrite(variable: bytes) -> None:
    """Overwrite the value of a variable where it lies: to unset it only forgets the place."""
    import ctypes  # noqa: PLC0415  only where there is something to overwrite

    with suppress(OSError, AttributeError):  # an interpreter without a C library to ask
        getenv = ctypes.CDLL(None).getenv
        getenv.argtypes, getenv.restype = [ctypes.c_char_p], ctypes.c_void_p
        where = getenv(variable)
        if where:
            ctypes.memset(where, 0, len(ctypes.string_at(where)))


def _sources() -> str:
    """Say where a passphrase comes from: which of them it was is not known here."""
    there = "is not set" if from_environment() is None else "is set"
    return (
        f"a passphrase is what the application passes, else that in {PASSPHRASE_VARIABLE} "
        f"(which {there}), else that in the file of [keys] passphrase_file"
    )


def load_trust(state: Path) -> TrustDocument:
    """Read the trust document. Raises ``StorageError`` or ``DecodeError``, which name it."""
    path = state / TRUST
    remedy = "restore it, from the copy with the anchors or from a backup"
    return parse_trust(_document(path), path, remedy)


def parse_trust(data: bytes, path: Path, remedy: str) -> TrustDocument:
    """Read the trust document in a file; raises ``DecodeError``, which names it and the remedy."""
    try:
        return TrustDocument.loads(data)
    except DecodeError as error:
        message = f"{path} can't be read ({error}): {remedy}"
        raise DecodeError(message, code=error.code) from error


def save_next_trust(state: Path, trust: TrustDocument) -> None:
    """Keep, beside the trust document, the one that is to take its place; ``StorageError``."""
    files.replace(state / _NEXT_TRUST, trust.dumps())


def next_trust(state: Path) -> bytes | None:
    """Return the trust document that is to take its place, None if there is none."""
    path = state / _NEXT_TRUST
    return _document(path) if path.exists() else None


def adopt_next_trust(state: Path) -> None:
    """Put the next trust document in its place; what it changes is to be announced from then on."""
    files.replace(state / TRUST, _document(state / _NEXT_TRUST))
    files.move(state / _NEXT_TRUST, state / _UNANNOUNCED)


def drop_next_trust(state: Path) -> None:
    """Forget the next trust document: it will not be put in its place."""
    files.remove(state / _NEXT_TRUST)


def is_unannounced(state: Path) -> bool:
    """Whether a trust document was put in its place that the log does not know of yet."""
    return (state / _UNANNOUNCED).exists()


def note_announced(state: Path) -> None:
    """Note that the log knows the trust document that was put in its place."""
    files.remove(state / _UNANNOUNCED)


def _document(path: Path) -> bytes:
    document = files.read_if_present(path)
    if document is None:
        message = f"there is no {path}: run agentguard init, or restore the state"
        raise StorageError(message, code="storage.missing")
    return document


def refuse_if_exposed(path: Path) -> None:
    """Raise if others can read or write ``path``.

    Raises ``KeyMaterialError`` (``key.exposed``) or, where the file can't be looked at,
    ``key.unreadable``.
    """
    try:
        status = path.stat()
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): check the path and this user's rights"
        raise KeyMaterialError(message, code="key.unreadable") from error
    require_private(path, status)


def require_private(path: Path, status: os.stat_result) -> None:
    """Raise ``KeyMaterialError`` (``key.exposed``) if others can use what has this status."""
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or status.st_uid not in (os.getuid(), 0):
        mode = "700" if stat.S_ISDIR(status.st_mode) else "600"
        message = (
            f"others can read or write {path}: run chmod {mode} on it, and see that you own it"
        )
        raise KeyMaterialError(message, code="key.exposed")
