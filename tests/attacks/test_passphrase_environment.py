"""The passphrase of the keys, which came in the environment, for whoever reads that afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

SCRIPT = r"""
import os, subprocess, sys
from pathlib import Path
from agentguard import Denied, Guard

NAME, SECRET = "AGENTGUARD_PASSPHRASE", b"correct horse battery staple"
before = Path("/proc/self/environ")
assert not before.exists() or SECRET in before.read_bytes(), "the test would show nothing"

def works():
    with Guard.open("agentguard.toml") as guard:
        return guard.new_agent("reader").call(guard.tool(name="read")(lambda: "ran"))

print("first", works())
print("gone from os.environ", NAME not in os.environ)
print("gone from the process", not before.exists() or SECRET not in before.read_bytes())
child = subprocess.run([sys.executable, "-c", "import os; print(os.environ)"], capture_output=True)
print("gone from a child", SECRET not in child.stdout)
print("again", works(), flush=True)
if (pid := os.fork()) == 0:
    print("forked", works(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
os.environ[NAME] = "another"
try:
    works()
except Exception as error:
    print("set anew", error.code, "which is set" in str(error), NAME in os.environ)
"""


@pytest.fixture
def folder(tmp_path, template):
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    (tmp_path / "agentguard.toml").write_text(
        'trust_domain = "acme.example"\nstate = "state"\nanchor = "anchor"\n'
        '[policy]\npath = "p.rego"\n[agents.reader]\nauthority = "own"\n'
    )
    (tmp_path / "p.rego").write_text("package agent.authz\nallow := true\n")
    return tmp_path


def test_it_is_taken_out_and_a_guard_is_opened_again_in_the_process_and_in_a_fork(folder):
    environment = {**os.environ, "AGENTGUARD_PASSPHRASE": "correct horse battery staple"}
    ran = subprocess.run(
        # from Python 3.12 on, each fork of a process with threads is warned of
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", SCRIPT],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == [
        "first ran",
        "gone from os.environ True",
        "gone from the process True",
        "gone from a child True",
        "again ran",
        "forked ran",
        "set anew key.passphrase True False",
    ]


def test_the_doctor_knows_it_still(folder):
    command = [sys.executable, "-m", "agentguard.cli", "doctor"]
    environment = {**os.environ, "AGENTGUARD_PASSPHRASE": "correct horse battery staple"}
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert "the passphrase opens each of" in ran.stdout
    assert "in the environment of the parent process" in " ".join(
        ran.stdout.replace("|", " ").split()
    )
