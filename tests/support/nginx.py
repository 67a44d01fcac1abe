"""A real nginx with one server block, for tests of servers behind a proxy."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WHY = "there is no nginx here: install nginx (nginx-light of Debian has all that the tests need)"

CONFIG = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{server}
}}
"""


def program() -> str:
    """Return the path of nginx; without one, the test fails in CI, and is skipped elsewhere."""
    found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is not None:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(WHY)
    pytest.skip(WHY)


@contextmanager
def running(folder: Path, port: int, server: str) -> Iterator[None]:
    """Run nginx until the block ends; ``server`` is its server block, which listens on ``port``."""
    config, errors = folder / "nginx.conf", folder / "error.log"
    config.write_text(CONFIG.format(folder=folder, server=server), encoding="utf-8")
    command: list[str | Path] = [program(), "-p", folder, "-c", config, "-e", errors]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(port, process, errors)
            yield
        finally:
            process.terminate()


def wait_for(port: int, process: subprocess.Popen[bytes], errors: Path) -> None:
    """Wait until nginx listens; the test fails with the errors of an nginx that has ended."""
    for _ in range(1000):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, errors.read_text()
            time.sleep(0.01)
        else:
            return
    pytest.fail("nginx does not listen")
