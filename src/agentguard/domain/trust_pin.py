"""A log's trust document, pinned outside the state: in the folder of the log's anchors.

Whoever writes the state can change the state's trust document, and can make the state claim to be
another log, of which no anchor exists. Therefore the folder of a log's anchors, made with the log,
holds a copy of the trust document, which decides, and the location of the log's state
(``storage/state_location.py``). A state is refused where its log has no copy here, and where
another log's state is recorded at its path.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from agentguard.domain import keystore
from agentguard.errors import StorageError, VerificationError
from agentguard.identity.trust import TrustDocument
from agentguard.storage import anchor, files, state_location


def keep(anchors: Path, state: Path, trust: TrustDocument, *, made_in: Path | None = None) -> None:
    """Pin the log to its keys, and record ``state`` as the place of the log's state.

    A state that is being founded still lies in ``made_in``. Raises ``StorageError``;
    ``VerificationError`` (``trust.changed``) where other keys are pinned: only a rotation replaces
    them.
    """
    path = anchor.trust_path(anchors, trust.log)
    kept = _read(path)
    if kept is None:
        files.replace(path, trust.dumps())
    elif kept != trust.dumps():
        message = f"the trust document in {state} is not the one in {path}: find out who changed it"
        raise VerificationError(message, code="trust.changed")
    state_location.record(path.parent, state, made_in=made_in)


def forget(anchors: Path, log: str) -> None:
    """Take away what is kept of a log that is not founded after all."""
    shutil.rmtree(anchor.log_folder(anchors, log), ignore_errors=True)


def find(anchors: Path, state: Path, log: str) -> TrustDocument | None:
    """Return the trust document that is pinned for the log that ``state`` says it is, if any is.

    Raises ``VerificationError`` (``trust.changed``) where the state's place is another log's, or
    there can be no such log; ``StorageError``; ``DecodeError``.
    """
    try:
        path = anchor.trust_path(anchors, log)
    except StorageError as error:
        message = f"the trust document in {state} was changed ({error}): restore the state"
        raise VerificationError(message, code="trust.changed") from error
    kept = _read(path)
    if not state_location.knows(path.parent, state):
        for other in _holders(anchors, os.fspath(state.resolve())):
            message = (
                f"the state {state} says that it is the log {log}, but {anchors} knows it as the "
                f"log {other.name}: it was changed or replaced. Restore it; if you have put "
                "another one there yourself, run agentguard trust pin"
            )
            raise VerificationError(message, code="trust.changed")
    if kept is None:
        return None
    remedy = "find out who changed it, and put the right one back"
    trust = keystore.parse_trust(kept, path, remedy)
    if trust.log != log:
        message = f"the state {state} says that it is the log {log}, and {path} {trust.log}"
        raise VerificationError(f"{message}: restore the state", code="trust.changed")
    return trust


def require(anchors: Path, state: Path, log: str) -> TrustDocument:
    """Return what ``find`` does; where that is None, raise ``VerificationError``, too."""
    trust = find(anchors, state, log)
    if trust is None:
        message = (
            f"the state {state} says that it is the log {log}, of which the anchor {anchors} keeps "
            "no trust document: the state was changed, or this is not the anchor that it had. "
            "Restore what is missing; if the anchor is a new one, see to it that the log is whole, "
            "and run agentguard trust pin"
        )
        raise VerificationError(message, code="trust.changed")
    return trust


def _holders(anchors: Path, path: str) -> Iterator[Path]:
    """Yield the folders of the logs whose state is recorded at this path."""
    try:
        folders = sorted(anchors.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unreadable(anchors, error) from error
    for folder in folders:
        # what this user may not open is another's, who has no say about a state of this one's
        if os.access(folder, os.X_OK) and state_location.path_in(folder) == path:
            yield folder


def _read(path: Path) -> bytes | None:
    try:
        return files.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> StorageError:
    message = files.unreadable(path, error)
    return StorageError(message, code="anchor.unreadable")
