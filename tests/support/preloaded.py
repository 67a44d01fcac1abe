"""A process that has imported what programs need, and forks for each of them.

Importing a framework costs a second and more, a fork next to nothing. Each program has a process of
its own all the same, with the working folder, the environment and the streams that it is given.
What an interpreter reads at its start (``PYTHONPATH``, its locale) is that of a first process;
the modules of this folder can be imported.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import importlib
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any

Result = subprocess.CompletedProcess[str]
_LONGEST = 1 << 20
_HANGS = 600
"""Seconds after which a program is killed that is waited for."""


class _First:
    """A first process, with these modules imported and this seed of ``hash``."""

    def __init__(self, modules: Sequence[str], seed: int) -> None:
        self.asks, there = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(there.fileno()), *modules],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        there.close()
        self._answers = self.asks.makefile("r", encoding="utf-8")
        self._lock = threading.Lock()
        assert self._answers.readline() == "ready\n"

    def has_ended(self) -> int | None:
        """Return the exit code of the process; None while the process runs."""
        return self._process.poll()

    def ask(self, question: bytes, descriptors: Sequence[int] = ()) -> int:
        """Return the number with which a question is answered.

        Another thread's question waits, also while this one waits for the end of a program.
        """
        with self._lock:
            socket.send_fds(self.asks, [question + b"\n"], descriptors)
            return int(self._answers.readline())

    def close(self) -> None:
        """End the process."""
        self._answers.close()
        self.asks.close()
        self._process.wait()


class Preloaded:
    """The first processes, with these modules imported; ``close`` ends them.

    With ``AGENTGUARD_ROUNDS=full`` two first processes fork by turns: text and bytes have another
    ``hash`` in each, as in any two processes of Python, and no program may rely on the ``hash`` of
    another program. By default one first process forks, since each imports a framework for seconds.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._count = 2 if os.environ.get("AGENTGUARD_ROUNDS") == "full" else 1
        self._first: dict[int, _First] = {}
        self._turns = 0
        self._lock = threading.Lock()

    def _next(self) -> _First:
        with self._lock:
            return self._of_turn()

    def _of_turn(self) -> _First:
        turn, self._turns = self._turns % self._count, self._turns + 1
        first = self._first.get(turn)
        if first is not None and (code := first.has_ended()) is not None:
            first.close()
            first = None
            message = f"the first process has ended with the code {code}: another one takes over"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        if first is None:
            first = self._first[turn] = _First(self._modules, seed=turn + 1)
        return first

    def start(
        self,
        *words: str | Path,
        cwd: Path,
        streams: Sequence[IO[Any] | int],
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Run ``python WORDS``: a file, or ``-m MODULE``, or ``-c CODE``, each with arguments.

        ``streams`` are the three standard streams.
        """
        asked = {
            "words": [str(word) for word in words],
            "cwd": str(cwd),
            "env": dict(os.environ if env is None else env),
        }
        given = [one if isinstance(one, int) else one.fileno() for one in streams]
        first = self._next()
        return Process(first, first.ask(json.dumps(asked).encode(), given))

    def begin(self, *words: str | Path, cwd: Path) -> Process:
        """Run ``python WORDS``; a file ``output`` in its folder takes what it prints."""
        with (
            Path(os.devnull).open("rb") as nothing,
            (cwd / "output").open("ab") as output,
        ):
            return self.start(*words, cwd=cwd, streams=(nothing, output, output))

    def run(self, *words: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> Result:
        """Run ``python WORDS`` to its end, as ``subprocess.run`` does; end one that hangs."""
        with (
            Path(os.devnull).open("rb") as nothing,
            tempfile.TemporaryFile("w+", encoding="utf-8") as out,
            tempfile.TemporaryFile("w+", encoding="utf-8") as err,
        ):
            program = self.start(*words, cwd=cwd, env=env, streams=(nothing, out, err))
            hangs = threading.Timer(_HANGS, program.kill)
            hangs.start()
            code = program.wait()
            hangs.cancel()
            for written in (out, err):
                written.seek(0)
            return Result([str(word) for word in words], code, out.read(), err.read())

    def talk(self, *words: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> Talk:
        """Run ``python WORDS`` with pipes to it, as ``subprocess.Popen`` does."""
        reads, given = os.pipe()
        said, writes = os.pipe()
        err = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  closed with the talk
        process = self.start(*words, cwd=cwd, env=env, streams=(reads, writes, err))
        os.close(reads)
        os.close(writes)
        return Talk(process.of, process.pid, os.fdopen(given, "w"), os.fdopen(said), err)

    def close(self) -> None:
        """End the first processes."""
        for first in self._first.values():
            first.close()


class Process:
    """A program at work."""

    def __init__(self, of: _First, pid: int) -> None:
        self.of = of
        self.pid = pid

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)  # it is no other process's id before it was waited for

    def wait(self) -> int:
        """Wait for the end; return the exit code, as ``subprocess`` does."""
        return os.waitstatus_to_exitcode(self.of.ask(b"%d" % self.pid))


class Talk(Process):
    """A program that is talked to, with what a test uses of ``subprocess.Popen``."""

    def __init__(
        self, of: _First, pid: int, stdin: IO[str], stdout: IO[str], errors: IO[str]
    ) -> None:
        super().__init__(of, pid)
        self.stdin, self.stdout, self._errors = stdin, stdout, errors
        self.returncode: int | None = None

    def kill(self) -> None:
        """Send SIGKILL, if its end was not waited for."""
        if self.returncode is None:
            super().kill()

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        if self.returncode is None:
            self.returncode = super().wait()
        return self.returncode

    def communicate(self, given: str = "") -> tuple[str, str]:
        """Say the last words and wait for the end; return what it printed since, and its errors."""
        with self.stdin, self.stdout, self._errors:
            with suppress(BrokenPipeError):
                self.stdin.write(given)
                self.stdin.close()
            out = self.stdout.read()
            self.wait()
            self._errors.seek(0)
            return out, self._errors.read()


def _serve(asks: socket.socket) -> list[str] | None:
    """Fork for each program; return in its process what it is, and None after the last one."""
    asks.sendall(b"ready\n")
    while True:
        asked, streams = _received(asks)
        if asked is None:
            return None
        if isinstance(asked, int):
            answer = os.waitpid(asked, 0)[1]
        else:
            answer = os.fork()
            if answer == 0:
                asks.close()
                _become(asked, streams)
                return list(asked["words"])
        for stream in streams:
            os.close(stream)
        asks.sendall(b"%d\n" % answer)


def _received(asks: socket.socket) -> tuple[Any, list[int]]:
    data, streams, _flags, _address = socket.recv_fds(asks, _LONGEST, 3)
    while data and not data.endswith(b"\n"):
        data += asks.recv(_LONGEST)
    return json.loads(data or b"null"), streams


def _become(asked: Any, streams: Sequence[int]) -> None:
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    tempfile.tempdir = None  # TMPDIR is that of the program
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)


def _play(words: list[str]) -> None:
    """Be the program, as the interpreter would."""
    first, *others = words
    if first == "-W":
        action, message, category = (*others[0].split(":", 2), "", "")[:3]
        kind = getattr(builtins, category or "Warning")
        warnings.filterwarnings(action, re.escape(message), kind)  # type: ignore[arg-type]
        _play(others[1:])
    elif first == "-m":
        sys.argv[:] = others
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv[:] = ["-c", *others[1:]]
        sys.path.insert(0, "")
        program = sys.modules["__main__"] = ModuleType("__main__")  # which lives until the end
        exec(compile(others[0], "<string>", "exec"), vars(program))  # noqa: S102
    else:
        sys.argv[:] = words
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")


_CODES: list[int] = []
"""The exit code of a program that is over; of the first process, none."""


def _end() -> None:
    """End a program's process without taking apart, object by object, what was imported for it.

    It runs as the last of all handlers of ``atexit``, and takes the program's own objects apart.
    """
    if _CODES:
        program = vars(sys.modules["__main__"])
        if program is not globals():
            program.clear()
        gc.collect()
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        except (OSError, ValueError):
            return  # nobody reads any more, or it is closed: the interpreter says so, or does not
        os._exit(_CODES[0])


def _play_to_the_end(words: list[str]) -> None:
    """Be the program, and note its exit code; one that is interrupted dies of the signal."""
    try:
        _play(words)
    except SystemExit as left:
        number = 0 if left.code is None else left.code
        _CODES[:] = [number & 0xFF if isinstance(number, int) else 1]
        raise
    except Exception:
        _CODES[:] = [1]
        raise
    _CODES[:] = [0]


def main() -> None:
    """Import the modules, and serve."""
    channel, *modules = sys.argv[1:]
    atexit.register(_end)  # before all others, which run in the opposite order
    for name in modules:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork has the thread alone that forks"
    gc.collect()
    gc.freeze()
    words = _serve(socket.socket(fileno=int(channel)))
    if words is not None:
        _play_to_the_end(words)


if __name__ == "__main__":
    main()
