"""The servers' programs: named by a variable, on PATH, in the cache, or else made here, once.

Each has a folder of its own here, whose files pin it. A program that is made here is kept under the
hash of these files in the user's cache, where all checkouts share it, and gets its name there only
when it is whole and has run. Go builds the programs of ``go_program.py``; that of
``packaged_program.py`` is in a package. Starting a program as a server is for ``servers.py``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOOLS: Final = Path(__file__).resolve().parent
VERSION: Final = re.compile(r"\d+\.\d+\.\d+")
LEFT_BY_CRASH: Final = ".part"


class UnavailableError(Exception):
    """A program is not on this machine, and can't be made here; says how to get it."""


@dataclass(frozen=True)
class Binary:
    """A program that has run on this machine, and what it says is its version."""

    path: str
    version: str


@dataclass(frozen=True)
class Program(ABC):
    """What to look for, and how else to come by it. ``command`` is its name on PATH."""

    name: str
    command: str
    elsewhere: str

    @property
    def variable(self) -> str:
        """The environment variable that names the program's file."""
        return f"{self.command.upper()}_BIN"

    @property
    def folder(self) -> Path:
        """The folder of the files that pin it."""
        return TOOLS / self.name

    @property
    @abstractmethod
    def pins(self) -> tuple[Path, ...]:
        """The files that pin it; the first has its version."""

    @property
    @abstractmethod
    def version(self) -> str:
        """The version that is pinned."""

    def lacks(self) -> str | None:
        """Return what the program in the cache needs to run, where PATH does not have it."""
        return None

    @abstractmethod
    def maker(self) -> Callable[[], Binary]:
        """Return what makes the program in the cache, whose lock the caller holds.

        Both raise UnavailableError.
        """

    def pinned(self, line: str) -> str:
        """Return what the first of the files says in the line of this form."""
        text = self.pins[0].read_text("utf-8")
        found: list[str] = re.findall(rf"^\s*{line}", text, re.MULTILINE)
        return found[0]

    def cache(self) -> Path:
        """Return the folder for what is made by the files as they stand."""
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in self.pins))
        home = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
        return base / "agentguard" / "tools" / digest.hexdigest()[:16]

    def part(self) -> Path:
        """Return where the program is made; what a crash has left there is removed."""
        for left in self.cache().glob(f"*{LEFT_BY_CRASH}"):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        # not what an orphan writes
        return self.cache() / f"{self.command}.{os.getpid()}{LEFT_BY_CRASH}"

    def unavailable(self, why: str, here: str) -> UnavailableError:
        """Say what was looked for, and how to get it: made ``here``, or elsewhere."""
        return UnavailableError(
            f"found no {self.command} {self.version} on PATH or in {self.cache()}: {why}.\n"
            "Either\n"
            f"  - {here};\n"
            f"  - or {self.elsewhere}"
        )


def say(text: str) -> None:
    """Tell the person who waits what goes on."""
    print(f"scripts/services: {text}", file=sys.stderr, flush=True)


def find(program: Program) -> Binary:
    """Return the program of the variable, of PATH or the cache, or make the program.

    Raises UnavailableError.
    """
    found = present(program)
    if found:
        return found
    make = program.maker()
    with alone(program.cache()):
        return cached(program) or make()  # somebody may just have made it


def cached(program: Program) -> Binary | None:
    """Return the program that was made before, if any, and if it can run."""
    return None if program.lacks() else tried(program.cache() / program.command)


def present(program: Program) -> Binary | None:
    """Return the program that the variable names, or that of PATH, or the cached one, if any.

    In CI, where CI=true, one of PATH counts only if it is of the pinned version. Raises
    UnavailableError where the variable names something else than a program that runs.
    """
    named = os.environ.get(program.variable)
    if named:
        binary = tried(shutil.which(named))
        if binary is None:
            raise UnavailableError(
                f"{program.variable} names {named}, which does not run as a program: expected the "
                f"file of {program.name}, to which `{program.command} version` is an answer"
            )
        say(f"takes {binary.path}, which {program.variable} names; its version is {binary.version}")
        return binary
    on_path = tried(shutil.which(program.command))
    if on_path is None or on_path.version == program.version:
        return on_path or cached(program)
    pin = program.pins[0].name
    if os.environ.get("CI") == "true":
        say(f"{on_path.path} is {on_path.version}: CI takes {program.version}, as {pin} pins it")
        return cached(program)
    say(f"takes {on_path.path}, which is {on_path.version}; {pin} pins {program.version}")
    return on_path


def tried(path: str | Path | None) -> Binary | None:
    """Run it: a name on PATH may lead to no program, and a file be another machine's."""
    if path is None or not Path(path).is_file():
        return None
    try:
        ran = subprocess.run(
            [path, "version"], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    version = VERSION.search(ran.stdout)
    return Binary(str(path), version[0] if version else "unknown")


def keep(program: Program, made: Binary) -> Binary:
    """Give a whole program, which has run, its name in the cache."""
    descriptor = os.open(made.path, os.O_RDONLY)
    os.fsync(descriptor)  # the name must not outlive the content where the power fails
    os.close(descriptor)
    whole = Path(made.path).rename(program.cache() / program.command)
    return Binary(str(whole), made.version)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process whatever happens to it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another one that works in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
