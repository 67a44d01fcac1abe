"""A guard server for programs of a test that work in a folder, as they would without a server.

``served_place.py`` has a trust domain of its own with a server. Here the trust domain is the
test's, and a program finds the server by ``SERVER`` in its ``agentguard.toml``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from preloaded import Preloaded, Process

SERVER = """
[server]
url = "unix:s"
reconnect = 1
"""
"""What ``agentguard.toml`` needs; the path of the folder has to be short, for the socket's sake."""


def serving(preloaded: Preloaded, folder: Path, passphrase: str) -> Process:
    """Start a guard server in a folder, and wait until the server listens."""
    env = {**os.environ, "AGENTGUARD_PASSPHRASE": passphrase, "PYTHONPATH": str(folder)}
    with Path(os.devnull).open("rb") as nothing, (folder / "server").open("wb") as output:
        words = ("-m", "agentguard.cli", "serve")
        server = preloaded.start(*words, cwd=folder, env=env, streams=(nothing, output, output))
    for _ in range(3000):
        if "serving" in (folder / "server").read_text("utf-8"):
            return server
        time.sleep(0.01)
    server.kill()
    server.wait()
    pytest.fail((folder / "server").read_text("utf-8"))
