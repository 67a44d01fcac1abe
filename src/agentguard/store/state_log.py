"""Opens the log of a state directory: to write it with the log's key, or to look into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from agentguard.errors import StorageError
from agentguard.identity.trust import TrustedKey
from agentguard.signing.keys import Signer
from agentguard.storage import anchor, state_location
from agentguard.store.anchor import Anchor
from agentguard.store.log import StoreLog
from agentguard.store.sqlite import FileEngine, path_in
from agentguard.store.store import Store


def open_log(
    state: Path,
    anchors: Path | None,
    log: str,
    keys: Callable[[], Iterable[TrustedKey]],
    signer: Signer | None = None,
    *,
    writes_pages: bool = False,
    **how: Any,
) -> StoreLog:
    """Open the log of a state: only to read without a ``signer``, or to write pages alone.

    ``anchors`` is the folder of all anchors, None for nowhere; the others are as ``Store`` has
    them. Raises ``StorageError``, also (``storage.copied``) for the original of an adopted copy.
    """
    kept = None if anchors is None else Anchor(anchor.head_path(anchors, log), log, keys)
    engine = FileEngine(path_in(state), writes=writes_pages or signer is not None)
    try:
        store = Store(engine, log, keys, signer, anchor=kept, **how)
    except StorageError as error:
        if error.code == "storage.rolled_back" and anchors is not None:
            state_location.refuse_copy(anchor.log_folder(anchors, log), state)
        raise
    return StoreLog(store, state)
