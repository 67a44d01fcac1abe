"""Runs ``agentguard ARGS`` inside the process of the tests, as a process of its own would run.

Working folder, environment, standard streams, import path and the passphrase that a process keeps
belong to one command and are put back after it. What a test says about processes themselves
(signals, terminals, rights, ends without an exit) needs ``subprocess``, not this.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path
from unittest import mock

from agentguard.cli.commands import main
from agentguard.domain import keystore

Result = subprocess.CompletedProcess[str]


def run(
    args: Iterable[str | Path], *, env: Mapping[str, str], cwd: str | Path, stdin: str = ""
) -> Result:
    """Run a command; its exit code and what it wrote are those of ``subprocess.run``."""
    words = [str(arg) for arg in args]
    given, out, err = _stream(stdin), _stream(), _stream()
    with (
        chdir(cwd),
        mock.patch.dict(os.environ, env, clear=True),
        mock.patch.object(sys, "argv", ["agentguard", *words]),
        mock.patch.object(sys, "stdin", given),
        mock.patch.object(keystore, "_environment_passphrase", None),
        redirect_stdout(out),
        redirect_stderr(err),
        _imports(cwd),
    ):
        code = _exit_code()
    return Result(["agentguard", *words], code, _written(out), _written(err))


def _exit_code() -> int:
    try:
        main()
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0
        sys.stderr.write(f"{left.code}\n")
    except BaseException:  # noqa: BLE001  as the interpreter ends a process
        traceback.print_exc()
    else:
        return 0
    return 1


@contextmanager
def _imports(cwd: str | Path) -> Iterator[None]:
    """Let a command import modules of its folder, and forget these modules after the command."""
    before = set(sys.modules)
    with mock.patch.object(sys, "path", [str(cwd), *sys.path]):
        yield
    inside = f"{Path(cwd)}{os.sep}"
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(inside):
            del sys.modules[name]


def _stream(text: str = "") -> TextIOWrapper:
    """Return a standard stream as Python opens one under ``LC_ALL=C.UTF-8``."""
    return TextIOWrapper(BytesIO(text.encode()), "utf-8", errors="surrogateescape", newline=None)


def _written(stream: TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, BytesIO)
    return stream.buffer.getvalue().decode()
