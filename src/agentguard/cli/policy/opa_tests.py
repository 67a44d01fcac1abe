"""Runs the Rego tests of a policy (``test_`` rules) with ``opa test``.

agentguard's own engine has no test runner. Without an ``opa`` the command
skips the tests, and warns.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agentguard.errors import ConfigError
from agentguard.storage import files

PROGRAM: Final = "opa"
_TIMEOUT: Final = 600.0
_FAILED: Final = 2
"""The exit code of ``opa test`` where a test fails."""


class RegoTest(NamedTuple):
    """One ``test_`` rule; ``passed`` is None for a rule that its author has put off (``todo_``)."""

    file: str
    row: int
    name: str
    passed: bool | None


def find(program: str | None) -> str | None:
    """Return the path of ``program``, or of ``opa`` on PATH; None without an ``opa`` there.

    Raises ``ConfigError`` where ``program`` does not exist.
    """
    path = shutil.which(program or PROGRAM)
    if path is None and program is not None:
        raise ConfigError(f"--opa: there is no program {program}: name an OPA of 1.0 or newer")
    return path


def run(program: str, policy: Path, tests: Sequence[Path]) -> list[RegoTest]:
    """Run the tests beside a policy's file, or in the folder of a policy, as a bundle.

    Raises ``ConfigError``, with OPA's message, where the policy or a test can't be loaded.
    """
    for file in tests:
        _require_regular(file)  # OPA would wait for whoever writes into a pipe
    paths = ["--bundle", policy] if policy.is_dir() else dict.fromkeys([policy, *tests])
    try:
        process = subprocess.run(  # noqa: S603  the program that the user has named, or has on PATH
            [program, "test", "--format", "json", *map(str, paths)],
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
        if process.returncode in (0, _FAILED):
            return sorted(map(_read, json.loads(process.stdout)))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{program} test can't be run: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{program} test answers in a form that is not known here") from error
    output = (process.stderr or process.stdout).decode(errors="replace").strip()
    raise ConfigError(f"{program} test can't load the policy and its tests: {output}")


def _require_regular(file: Path) -> None:
    try:
        files.require_regular(file)
    except OSError as error:
        raise ConfigError(f"{file} can't be read ({error.strerror}): take it away") from error


def _read(result: dict[str, object]) -> RegoTest:
    match result:
        case {"location": {"file": str(file), "row": int(row)}, "name": str(name)}:
            passed = None if result.get("skip") else not (result.get("fail") or result.get("error"))
            return RegoTest(file, row, name, passed)
    raise ValueError("a test without a name")
