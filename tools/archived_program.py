"""A program that is an archive of a repository for Java, which Maven fetches once.

``pin.txt`` has the archive's coordinates and its SHA-256, and Maven's plugin that copies it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from binaries import Binary, Program, UnavailableError, keep, say, tried

NEEDED: Final = ("java", "mvn")
LAUNCHER: Final = """#!/bin/sh
# Keycloak's own command knows no `version`.
[ "$1" != version ] || {{ echo {version}; exit; }}
exec "{home}/{member}" "$@"
"""


@dataclass(frozen=True)
class ArchivedProgram(Program):
    """``member`` is the program in the unpacked archive, and ``prepare`` its arguments, once."""

    member: str
    prepare: tuple[str, ...]

    @property
    def pins(self) -> tuple[Path, ...]:
        """The file with the coordinates and the digest."""
        return (self.folder / "pin.txt",)

    @property
    def version(self) -> str:
        """The version in the coordinates."""
        return self.artifact.split(":")[2]

    @property
    def artifact(self) -> str:
        """The coordinates of the archive."""
        return self.pinned(r"artifact (\S+)")

    def lacks(self) -> str | None:
        """Return ``java`` where it is not on PATH: the answer to ``version`` needs none."""
        return None if shutil.which("java") else "java"

    def maker(self) -> Callable[[], Binary]:
        """Return what fetches and unpacks the program."""
        for name in NEEDED:
            if shutil.which(name) is None:
                raise unavailable(self, f"there is no {name} on PATH to fetch and run it with")
        return lambda: make(self)


def unavailable(program: ArchivedProgram, why: str) -> UnavailableError:
    """Say what was looked for and how to get it."""
    here = "install Java 17 and Maven: it is then fetched here, once (170 MB, a minute)"
    return program.unavailable(why, here)


def make(program: ArchivedProgram) -> Binary:
    """Fetch, unpack and prepare it in the cache, whose lock the caller holds."""
    part = program.part()
    say(f"fetching {program.name} {program.version}, once, into {part.parent}")
    try:
        archive = fetched(program, part)
        with zipfile.ZipFile(archive) as unpacked:
            unpacked.extractall(part)
        archive.unlink()
        (top,) = part.iterdir()
        home = program.cache() / top.name
        shutil.rmtree(home, ignore_errors=True)
        top.rename(home)
        for file in (home / program.member).parent.glob("*.sh"):
            file.chmod(0o755)  # which the archive says, and zipfile does not
        ran = run(program, home / program.member, *program.prepare)
        if ran.returncode != 0:
            raise failed(program, "preparing it", ran)
        launcher = part / program.command
        launcher.write_text(
            LAUNCHER.format(version=program.version, home=home, member=program.member), "utf-8"
        )
        launcher.chmod(0o755)
        made = tried(launcher)
        if made is None:
            raise unavailable(program, "what was fetched does not run")
        return keep(program, made)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def fetched(program: ArchivedProgram, part: Path) -> Path:
    """Return the archive, which has the pinned digest."""
    part.mkdir(parents=True)
    plugin, into = program.pinned(r"plugin (\S+)"), f"-DoutputDirectory={part}"
    given = (f"-Dartifact={program.artifact}", into)
    ran = run(program, "mvn", "-q", "-B", f"{plugin}:copy", *given)
    archives = list(part.glob("*.zip"))
    if ran.returncode != 0 or len(archives) != 1:
        raise failed(program, "fetching it", ran)
    digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if digest != program.pinned(r"sha256 (\S+)"):
        raise unavailable(program, f"the archive has the SHA-256 {digest}, and not the pinned one")
    return archives[0]


def run(program: ArchivedProgram, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command; a Java program gets the memory that the tests need, and no more."""
    environment = {**os.environ, "JAVA_OPTS_KC_HEAP": "-Xms64m -Xmx400m"}
    return subprocess.run(
        command, cwd=program.folder, env=environment, capture_output=True, text=True, check=False
    )


def failed(
    program: ArchivedProgram, what: str, ran: subprocess.CompletedProcess[str]
) -> UnavailableError:
    """Say what a command printed last."""
    said = (ran.stderr + ran.stdout).splitlines()[-20:]
    return unavailable(program, "\n    ".join([f"{what} failed:", *said]))
