"""Programs that ``agentguard run`` starts in tests, and an interpreter for those of other users."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from functools import cache
from pathlib import Path

import agentguard

OTHER = "nobody"
"""A user who is neither root nor a server's own."""

_OPENING = """
import os, sys
from agentguard import Denied, Guard

def note(guard, ran=None):
    return guard.tool(name="note")(lambda text: f"noted {text}")
"""


def program(code: str) -> str:
    """Return the text of a program, which has a tool at hand."""
    return _OPENING + code


def uid_of_other() -> int:
    return pwd.getpwnam(OTHER).pw_uid


@cache
def why_not_other() -> str | None:
    """Return why no program can run under another user here, or None."""
    if os.getuid() != 0:
        return "only root starts programs under another user"
    return None if _found() else "another user can read no interpreter with agentguard here"


def interpreter_of_other() -> tuple[str, ...]:
    """Return a command that runs Python with agentguard under another user."""
    found = _found()
    assert found is not None
    return found


@cache
def _found() -> tuple[str, ...] | None:
    paths = [Path(agentguard.__file__).parents[1], *filter(None, sys.path)]
    found = f"PYTHONPATH={os.pathsep.join(str(one) for one in paths)}"
    for python in (sys.executable, "/usr/bin/python3"):
        command = ("/usr/bin/env", found, "PYTHONDONTWRITEBYTECODE=1", python)
        tried = subprocess.run(
            [*command, "-c", "import agentguard.client.link"],
            check=False,
            capture_output=True,
            user=OTHER,
            group=pwd.getpwnam(OTHER).pw_gid,
            extra_groups=[],
            cwd="/",
        )
        if tried.returncode == 0:
            return command
    return None
