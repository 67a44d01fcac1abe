"""Takes from other processes of the same user what they could do to the server's process.

A process of the same user can read the memory of another one, attach a debugger, and copy its open
files, as long as the kernel lets it (``prctl(2)``, PR_SET_DUMPABLE). A core dump would hold keys.
"""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

from agentguard.errors import ServerError

_PR_SET_DUMPABLE: Final = 4
_PR_GET_DUMPABLE: Final = 3
_FILES: Final = 1 << 16
"""The most descriptors that the server needs: one for each connection."""


def harden() -> None:
    """Make this process undumpable, and switch core dumps off; let it open many connections.

    Raises ``ServerError`` (``server.exposed``) where the kernel does not do that.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = _FILES if most == resource.RLIM_INFINITY else min(most, _FILES)
    if resource.RLIM_INFINITY != now < many:
        resource.setrlimit(resource.RLIMIT_NOFILE, (many, most))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        message = f"other processes of this user can read the server's memory: {reason}"
        raise ServerError(message, code="server.exposed")
