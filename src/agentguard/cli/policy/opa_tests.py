"""The tests that stand in a Rego policy (``test_`` rules), run by ``opa test``.

agentguard's own engine has no runner for them; without an ``opa`` they are skipped, and that is
said.
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
    """One ``test_`` rule; ``passed`` is None for one that its author has put off (``todo_``)."""

    file: str
    row: int
    name: str
    passed: bool | None


def find(program: str | None) -> str | None:
    """Return the ``opa`` to run: the one that is named, or that on PATH; None where none is.

    Raises ``ConfigError`` for one that is named and not there.
    """
    found = shutil.which(program or PROGRAM)
    if found is None and program is not None:
        raise ConfigError(f"--opa: there is no program {program}: name an OPA of 1.0 or newer")
    return found


def run(program: str, policy: Path, tests: Sequence[Path]) -> list[RegoTest]:
    """Run the tests beside a policy's file, or in its folder, which is laid out as a bundle.

    Raises ``ConfigError`` where the policy or a test can't be loaded, with what OPA says.
    """
    for file in tests:
        _require_regular(file)  # OPA would wait for whoever writes into a pipe
    what = ["--bundle", policy] if policy.is_dir() else dict.fromkeys([policy, *tests])
    try:
        ran = subprocess.run(  # noqa: S603  the program that the user has named, or has on PATH
            [program, "test", "--format", "json", *map(str, what)],
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
        if ran.returncode in (0, _FAILED):
            return sorted(map(_read, json.loads(ran.stdout)))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{program} test can't be run: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{program} test answers in a form that is not known here") from error
    said = (ran.stderr or ran.stdout).decode(errors="replace").strip()
    raise ConfigError(f"{program} test can't load the policy and its tests: {said}")


def _require_regular(file: Path) -> None:
    try:
        files.require_regular(file)
    except OSError as error:
        raise ConfigError(f"{file} can't be read ({error.strerror}): take it away") from error


def _read(one: dict[str, object]) -> RegoTest:
    match one:
        case {"location": {"file": str(file), "row": int(row)}, "name": str(name)}:
            passed = None if one.get("skip") else not (one.get("fail") or one.get("error"))
            return RegoTest(file, row, name, passed)
    raise ValueError("a test without a name")
