"""The servers' programs: named by a variable, on PATH, in the cache, or else built with Go, once.

Each has a module of its own here, whose ``go.mod`` and ``go.sum`` pin it: in one module they would
share their dependencies, and with OPA's Jaeger does not compile. What is built is kept under the
hash of both files in the user's cache, where all checkouts share it. A program gets its name there
only when it is whole and has run. Starting it as a server is for ``servers.py``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOOLS: Final = Path(__file__).resolve().parent
VERSION: Final = re.compile(r"\d+\.\d+\.\d+")
PACKAGE: Final = re.compile(r"[\w.~/-]+")
"""A line that has the name of a package alone."""
LEFT_BY_CRASH: Final = ".part"
TELL_EVERY: Final = 20.0
"""Seconds between two lines about the progress of a build."""


class UnavailableError(Exception):
    """A program is not on this machine, and can't be built here; says how to get it."""


@dataclass(frozen=True)
class Program:
    """What to look for, what to build with which flags of the linker, how else to come by it.

    ``takes`` says how long the first build takes.
    """

    name: str
    module: str
    package: str
    flags: str
    takes: str
    elsewhere: str

    @property
    def variable(self) -> str:
        """The environment variable that names the program's file."""
        return f"{self.name.upper()}_BIN"

    @property
    def pins(self) -> Path:
        """The folder of the Go module that pins it."""
        return TOOLS / self.name

    def pinned(self, line: str) -> str:
        """Return what go.mod says in the line of this form."""
        text = (self.pins / "go.mod").read_text("utf-8")
        found: list[str] = re.findall(rf"^\s*{line}", text, re.MULTILINE)
        return found[0]

    @property
    def version(self) -> str:
        """The version that go.mod pins."""
        return self.pinned(rf"{self.module} v(\S+)")

    def linker(self) -> str:
        """Return the flags, with the version: a program that is built from a module knows none."""
        return self.flags.format(version=self.version)

    def cache(self) -> Path:
        """Return the folder for what is built from the module as it stands."""
        files = (self.pins / "go.mod", self.pins / "go.sum")
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files))
        home = os.environ.get("XDG_CACHE_HOME", "")
        base = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
        return base / "agentguard" / "tools" / digest.hexdigest()[:16]


@dataclass(frozen=True)
class Binary:
    """A program that has run on this machine, and what it says is its version."""

    path: str
    version: str


def say(text: str) -> None:
    """Tell the person who waits what goes on."""
    print(f"scripts/services: {text}", file=sys.stderr, flush=True)


def find(program: Program) -> Binary:
    """Return the program of the variable, of PATH or the cache, or build the program.

    Raises UnavailableError.
    """
    found = present(program)
    if found:
        return found
    go = find_go(program)
    with alone(program.cache()):
        return tried(program.cache() / program.name) or build(program, go)  # somebody may just have


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
                f"file of {program.name}, to which `{program.name} version` is an answer"
            )
        say(f"takes {binary.path}, which {program.variable} names; its version is {binary.version}")
        return binary
    on_path = tried(shutil.which(program.name))
    if on_path is None or on_path.version == program.version:
        return on_path or tried(program.cache() / program.name)
    if os.environ.get("CI") == "true":
        say(f"{on_path.path} is {on_path.version}: CI takes {program.version}, as go.mod pins it")
        return tried(program.cache() / program.name)
    say(f"takes {on_path.path}, which is {on_path.version}; go.mod pins {program.version}")
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


def find_go(program: Program) -> str:
    """Return a Go that can build the module."""
    go = shutil.which("go")
    if go is None:
        raise unavailable(program, "there is no go on PATH to build it with")
    # Go reads go.mod first, and refuses, or fetches a newer Go, where its own version is too low.
    ran = call_go(program, go, "list", "-m")
    if ran.returncode != 0:
        raise unavailable(program, f"{go} can't build it: {ran.stderr.strip()}")
    return go


def unavailable(program: Program, why: str) -> UnavailableError:
    """Say what was looked for and how to get it."""
    return UnavailableError(
        f"found no {program.name} {program.version} on PATH or in {program.cache()}: {why}.\n"
        "Either\n"
        f"  - install Go {program.pinned('go (.*)')} or newer: it is then built here, once "
        f"({program.takes});\n"
        f"  - or {program.elsewhere}"
    )


def call_go(program: Program, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Go for this machine, in the module that pins the program."""
    return subprocess.run(
        command, cwd=program.pins, env=environment(), capture_output=True, text=True, check=False
    )


def environment() -> dict[str, str]:
    """Return the environment in which Go builds for this machine, without a C compiler."""
    kept = {name: value for name, value in os.environ.items() if name not in {"GOOS", "GOARCH"}}
    return {**kept, "CGO_ENABLED": "0", "GOWORK": "off"}


def build(program: Program, go: str) -> Binary:
    """Build into the cache; the caller holds its lock."""
    folder = program.cache()
    for left in folder.glob(f"*{LEFT_BY_CRASH}"):
        left.unlink()
    part = folder / f"{program.name}.{os.getpid()}{LEFT_BY_CRASH}"  # not what an orphan writes
    say(f"building {program.name} with {go}, once, into {folder}: {program.takes}")
    say(f"a release's program takes no build: stop this, and set {program.variable} to its file")
    began = time.monotonic()
    command = [go, "build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false"]
    command += [f"-ldflags={program.linker()}", "-o", str(part), program.package]
    code, said = call_and_tell(program, packages(program, go), *command)
    built = tried(part) if code == 0 else None
    if built is None:
        part.unlink(missing_ok=True)
        raise unavailable(program, "\n    ".join(["building it failed:", *said[-20:]]))
    descriptor = os.open(part, os.O_RDONLY)
    os.fsync(descriptor)  # the name must not outlive the content where the power fails
    os.close(descriptor)
    whole = part.rename(folder / program.name)
    say(f"built {program.name} {built.version} in {time.monotonic() - began:.0f} s")
    return Binary(str(whole), built.version)


def packages(program: Program, go: str) -> int:
    """Return how many packages Go has to compile at the most; it downloads their modules first."""
    say(f"Go downloads the modules of {program.name} that are not here yet")
    ran = call_go(program, go, "list", "-mod=readonly", "-deps", program.package)
    return len(ran.stdout.splitlines())


def call_and_tell(program: Program, most: int, *command: str) -> tuple[int, list[str]]:
    """Run a build of Go, tell how far it is, and return its exit code and its errors.

    ``most`` is the number of packages at the most; Go names on stderr each one that it compiles.
    """
    lines: list[str] = []
    began = time.monotonic()
    with subprocess.Popen(
        command, cwd=program.pins, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:

        def collect() -> None:
            lines.extend(line.rstrip() for line in process.stderr or ())

        reader = threading.Thread(target=collect)
        reader.start()
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(TELL_EVERY)
                break
            compiled = sum(map(is_package, lines))
            minutes, seconds = divmod(round(time.monotonic() - began), 60)
            far = f"{compiled} of {most} packages at the most"
            say(f"{program.name}: {far}, {minutes} min {seconds} s")
        reader.join()
    said = [line for line in lines if not is_package(line) and "go: downloading" not in line]
    return process.returncode, said


def is_package(line: str) -> bool:
    """Whether a line of Go's is the name of a package, and no message."""
    return PACKAGE.fullmatch(line) is not None


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
