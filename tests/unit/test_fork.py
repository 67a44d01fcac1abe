"""At a fork everything that is open has its turn, in one order, whoever was imported first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os
{imports}
from agentguard.storage import fork

def heard(moment, stage):
    said.append(f"{{moment}} {{stage.name}}")

said = []
for stage, hooks in list(fork._HOOKS.items()):
    fork._HOOKS[stage] = type(hooks)(*[
        lambda hook=hook, moment=moment, stage=stage: (heard(moment, stage), hook())
        for moment, hook in zip(hooks._fields, hooks)
    ])
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    os.write(writing, "\\n".join(said).encode())
    os._exit(0)
os.waitpid(child, 0)
os.close(writing)
print(os.read(reading, 10_000).decode())
"""

ORDER = [
    "before GUARDS",
    "before STORES",
    "before READERS",
    "before LOCKS",
    "in_child LOCKS",
    "in_child READERS",
    "in_child STORES",
    "in_child GUARDS",
]


def order(imports):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(imports=imports)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout.splitlines()


def test_the_order_is_not_that_of_the_imports():
    modules = ["storage.lock", "storage.sqlite", "store.store", "store.reader"]
    for names in (modules, modules[::-1]):
        imports = "\n".join(f"import agentguard.{name}" for name in names)
        assert order(f"{imports}\nimport agentguard.guard.guard") == ORDER


ONE_IS_GONE = """
import os, signal, sys
from pathlib import Path
from agentguard.storage import lock

held = lock.try_acquire(Path(sys.argv[1]))
if sys.argv[2] == "closed by somebody else":
    os.close(held.fileno())
child = os.fork()
if child == 0:
    signal.alarm(120)  # hanging is dying
    lock.try_acquire(Path(sys.argv[1]))
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("lock", ["open", "closed by somebody else"])
def test_a_fork_can_lock_whatever_became_of_the_locks_it_inherits(tmp_path, lock):
    result = subprocess.run(
        [sys.executable, "-c", ONE_IS_GONE, str(tmp_path / "lock"), lock],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=180,
    )
    assert result.stdout == "0\n", result.stderr
