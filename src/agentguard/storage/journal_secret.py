"""The secret with which the log names journalled calls; the secret outlives each key of the log.

The secret is made from the log's first key. For a key that replaces another, a file of its own
holds the secret, encrypted under what only the new key can make. So the names of calls from before
a rotation are recognised after the rotation, whatever became of the calls' pages.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from agentguard.errors import StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.signing import dsse
from agentguard.signing.keys import Signer
from agentguard.storage import files

FOLDER: Final = "names"
_TYPE: Final = "application/vnd.agentguard.journal-names"
_NONCE: Final = 12
_MAX_BYTES: Final = 1024


def secret(state: Path, trust: TrustDocument, signer: Signer) -> bytes:
    """Return the secret, 32 bytes, for a holder of a log's key.

    Raises ``StorageError``: ``storage.missing`` where the key took another's place and its file is
    gone, ``storage.corrupt`` where somebody has changed the file.
    """
    first = next(iter(trust.keys_for("log")))  # a new key stands behind the one that it replaces
    if signer.public_key == first.key:
        return _key_of(signer, trust)
    path = _path(state, signer)
    sealed = files.read_if_present(path, limit=_MAX_BYTES)
    if sealed is None:
        message = (
            f"there is no {path}: without the file nobody knows whether a call that a run makes "
            "again has run. Restore it from a backup of the state"
        )
        raise StorageError(message, code="storage.missing")
    try:
        cipher = ChaCha20Poly1305(_key_of(signer, trust))
        return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], None)
    except (InvalidTag, ValueError) as error:
        message = f"{path} is not as it was written: restore it from a backup of the state"
        raise StorageError(message, code="storage.corrupt") from error


def hand_on(state: Path, trust: TrustDocument, old: Signer, new: Signer) -> None:
    """Write the file of a ``new`` key of the log, before that key counts.

    ``trust`` knows the ``old`` key. Raises ``StorageError`` as ``secret`` does.
    """
    nonce = os.urandom(_NONCE)
    cipher = ChaCha20Poly1305(_key_of(new, trust))
    sealed = nonce + cipher.encrypt(nonce, secret(state, trust, old), None)
    files.replace(_path(state, new), sealed)


def _key_of(signer: Signer, trust: TrustDocument) -> bytes:
    """Return 32 bytes that only this key can make: Ed25519 signs the same bytes in the same way."""
    return sha256(signer.sign(dsse.pae(_TYPE, trust.log.encode()))).digest()


def _path(state: Path, signer: Signer) -> Path:
    return state / FOLDER / signer.key_id
