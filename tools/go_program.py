"""A program that Go builds, from the module in whose ``go.mod`` and ``go.sum`` it is pinned.

The program is a package of other people, or ``HERE``, one of the module that stands on theirs.

Each has a module of its own: in one module they would share their dependencies, and with OPA's
Jaeger does not compile.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from binaries import Binary, Program, UnavailableError, keep, say, tried

PACKAGE: Final = re.compile(r"[\w.~/-]+")
"""A line that has the name of a package alone."""
HERE: Final = "."
"""The package of a program that is written in the module itself."""
TELL_EVERY: Final = 20.0
"""Seconds between two lines about the progress of a build."""


@dataclass(frozen=True)
class GoProgram(Program):
    """What to build with which flags of the linker; ``takes`` says how long the first build is."""

    module: str
    package: str
    flags: str
    takes: str

    @property
    def pins(self) -> tuple[Path, ...]:
        """The files of the module, with the program itself where it is written here."""
        written = sorted(self.folder.glob("*.go"))
        return (self.folder / "go.mod", self.folder / "go.sum", *written)

    @property
    def version(self) -> str:
        """The version that go.mod pins."""
        return self.pinned(rf"(?:require )?{self.module} v(\S+)")

    def linker(self) -> str:
        """Return the flags, with the version: a program that is built from a module knows none."""
        return self.flags.format(version=self.version)

    def maker(self) -> Callable[[], Binary]:
        """Return what builds the program."""
        go = find_go(self)
        return lambda: build(self, go)


def find_go(program: GoProgram) -> str:
    """Return a Go that can build the module."""
    go = shutil.which("go")
    if go is None:
        raise unavailable(program, "there is no go on PATH to build it with")
    # Go reads go.mod first, and refuses, or fetches a newer Go, where its own version is too low.
    ran = call_go(program, go, "list", "-m")
    if ran.returncode != 0:
        raise unavailable(program, f"{go} can't build it: {ran.stderr.strip()}")
    return go


def unavailable(program: GoProgram, why: str) -> UnavailableError:
    """Say what was looked for and how to get it."""
    here = (
        f"install Go {program.pinned('go (.*)')} or newer: it is then built here, once "
        f"({program.takes})"
    )
    return program.unavailable(why, here)


def call_go(program: GoProgram, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Go for this machine, in the module that pins the program."""
    return subprocess.run(
        command, cwd=program.folder, env=environment(), capture_output=True, text=True, check=False
    )


def environment() -> dict[str, str]:
    """Return the environment in which Go builds for this machine, without a C compiler."""
    kept = {name: value for name, value in os.environ.items() if name not in {"GOOS", "GOARCH"}}
    return {**kept, "CGO_ENABLED": "0", "GOWORK": "off"}


def build(program: GoProgram, go: str) -> Binary:
    """Build into the cache; the caller holds its lock."""
    part = program.part()
    say(f"building {program.name} with {go}, once, into {part.parent}: {program.takes}")
    if program.package != HERE:
        say(
            f"a release's program takes no build: stop this, and set {program.variable} to its file"
        )
    began = time.monotonic()
    command = [go, "build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false"]
    command += [f"-ldflags={program.linker()}", "-o", str(part), program.package]
    code, said = call_and_tell(program, packages(program, go), *command)
    built = tried(part) if code == 0 else None
    if built is None:
        part.unlink(missing_ok=True)
        raise unavailable(program, "\n    ".join(["building it failed:", *said[-20:]]))
    kept = keep(program, built)
    say(f"built {program.name} {kept.version} in {time.monotonic() - began:.0f} s")
    return kept


def packages(program: GoProgram, go: str) -> int:
    """Return how many packages Go has to compile at the most; it downloads their modules first."""
    say(f"Go downloads the modules of {program.name} that are not here yet")
    ran = call_go(program, go, "list", "-mod=readonly", "-deps", program.package)
    return len(ran.stdout.splitlines())


def call_and_tell(program: GoProgram, most: int, *command: str) -> tuple[int, list[str]]:
    """Run a build of Go, tell how far it is, and return its exit code and its errors.

    ``most`` is the number of packages at the most; Go names on stderr each one that it compiles.
    """
    lines: list[str] = []
    began = time.monotonic()
    with subprocess.Popen(
        command, cwd=program.folder, env=environment(), stderr=subprocess.PIPE, text=True
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
