"""The guard in a server: ``agentguard demo --server`` starts ``agentguard serve``.

The server has the keys, the policy and the log. The agents' process has none of them in its memory.
Both processes have one user here; with two users the files are out of reach, too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from agentguard import ServerError
from agentguard_demo.setting import Setting, environment

_SECONDS: Final = 60
"""Seconds after which a server that does not end is killed."""


@contextmanager
def running(setting: Setting) -> Iterator[int]:
    """Run a guard server in the demo's folder; yield the number of its process.

    Raises ``ServerError`` (``server.unreachable``) where the server does not start.
    """
    server = subprocess.Popen(
        [sys.executable, "-m", "agentguard.cli", "serve"],
        cwd=setting.directory,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        if server.stdout is None or not server.stdout.readline():
            _output, said = server.communicate()
            message = f"the guard server does not start: {said.decode(errors='replace').strip()}"
            raise ServerError(message, code="server.unreachable")
        yield server.pid
    finally:
        server.terminate()
        try:
            server.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()
