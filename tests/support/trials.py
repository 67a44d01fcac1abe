"""Tries a Rego policy in a fork of a process that has imported the engine.

The gate starts a new interpreter for each policy, and hundreds of policies are tried by the tests.
``Trials`` stands in for the module ``subprocess`` there. A process that a test forks or starts, and
a test that gives the gate another Python, have the gate as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from preloaded import Preloaded


class Trials:
    """What the gate uses of ``subprocess``; ``close`` ends the process that forks."""

    TimeoutExpired = subprocess.TimeoutExpired

    def __init__(self) -> None:
        self._own = (os.getpid(), sys.executable)
        self._turn = threading.Lock()

    @cached_property
    def _engines(self) -> Preloaded:
        return Preloaded("regorus", "resource")

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Do what ``subprocess.run`` does with the gate's command."""
        if self._own != (os.getpid(), command[0]):
            return subprocess.run(command, **options)  # noqa: PLW1510  the gate says it
        with self._turn:
            return self._forked(command, options["input"], options["timeout"], options["env"])

    def _forked(
        self, command: list[str], given: bytes, timeout: float, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[bytes]:
        with (
            tempfile.TemporaryFile() as asked,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            asked.write(given)
            asked.seek(0)
            streams = (asked, out, err)
            trial = self._engines.start(command[-1], cwd=Path.cwd(), env=env, streams=streams)
            late = threading.Event()

            def end() -> None:
                late.set()
                trial.kill()

            timer = threading.Timer(timeout, end)
            timer.start()
            code = trial.wait()
            timer.cancel()
            out.seek(0)
            err.seek(0)
            if late.is_set():
                raise subprocess.TimeoutExpired(command, timeout, out.read())
            return subprocess.CompletedProcess(command, code, out.read(), err.read())

    def close(self) -> None:
        """End the process."""
        if "_engines" in self.__dict__:
            self._engines.close()
