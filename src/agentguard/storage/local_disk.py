"""Refuses file systems that other machines may write: their locks keep nobody there out.

Two machines that both write one log end it. Linux says what a folder lies on; elsewhere nothing is
refused.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from agentguard.errors import StorageError
from agentguard.storage import files

_MOUNTS: Final = Path("/proc/self/mountinfo")  # proc(5)
_SHARED: Final = re.compile(
    r"nfs4?|cifs|smb3?|smbfs|9p|virtiofs|fuse(\..+)?|afs|ceph|glusterfs|lustre|ocfs2|gfs2"
)
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


def require(folder: Path) -> None:
    """Raise ``StorageError`` (``storage.remote``) for a folder that other machines may write."""
    kind = _kind_of(os.path.realpath(folder))
    if kind is not None and _SHARED.fullmatch(kind):
        message = (
            f"{folder} lies on a file system that other machines may write as well ({kind}), where "
            "a lock of this machine keeps nobody out: keep the file on a local disk (for a state, "
            "set state in agentguard.toml), and share a state by a guard server (agentguard serve)"
        )
        raise StorageError(message, code="storage.remote")


def _kind_of(path: str) -> str | None:
    """Return the type of the file system at a path; None where the system does not say."""
    found: tuple[int, str | None] = (-1, None)
    with suppress(OSError):  # a jail without /proc has none
        for line in os.fsdecode(files.read(_MOUNTS)).splitlines():
            mounted, _dash, rest = line.partition(" - ")
            fields = mounted.split(" ")
            point = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), fields[4])
            is_above = path == point or path.startswith(point.rstrip("/") + "/")
            if is_above and len(point) >= found[0]:  # of two at one point, the later is seen
                found = len(point), rest.split(" ", 1)[0]
    return found[1]
