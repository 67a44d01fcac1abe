"""Files that never end, where a reader looks: pipes and devices in a state, and files without end.

Whoever writes into a state, or sends evidence, keeps no reader waiting and fills nobody's memory.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from agentguard.storage import anchor, keystore

EXAMINE = """
import sys
from pathlib import Path
from agentguard import examination
from agentguard.errors import AgentguardError
from agentguard.storage import keystore
from agentguard.storage.reader import StateReader
state, anchors = map(Path, sys.argv[1:])
try:
    trust = keystore.load_trust(state)
    report = examination.examine(StateReader(state), trust, anchor=anchors)
    print("ok" if report.ok else f"found: {report.problems[0].what}")
except AgentguardError as error:
    print(f"refused: {error}")
"""


def bounded():
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))


def run(*command):
    """Run Python with a bound on memory and time; return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
        preexec_fn=bounded,
    )
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.stdout


def examine(place):
    return run("-c", EXAMINE, place.config.state, place.config.anchor)


def test_the_twin_is_examined(used):
    assert examine(used) == "ok\n"


@pytest.mark.parametrize("how", ["pipe", "device"])
@pytest.mark.parametrize(
    "name", ["registry.json", "trust.json", "shards/0.sqlite", "shards/0.sqlite-journal"]
)
def test_what_is_no_file_keeps_no_reader_waiting(used, name, how):
    path = used.config.state / name
    path.unlink(missing_ok=True)
    if how == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    said = examine(used)
    assert said.startswith(("found: ", "refused: "))
    assert "is no" in said or "no log at" in said


def test_nor_does_an_anchor(used):
    trust = keystore.load_trust(used.config.state)
    path = anchor.anchor_path(used.config.anchor, trust.origin(0))
    path.unlink()
    os.mkfifo(path)
    assert examine(used).startswith("found: the anchor ")


@pytest.mark.parametrize("option", ["FILE", "--trust"])
def test_a_file_without_end_is_no_evidence_and_no_trust_document(used, tmp_path, option):
    trust = used.config.state / "trust.json"
    endless = tmp_path / "endless.json"
    with endless.open("wb") as file:
        file.truncate(2**33)
    file, by = (endless, trust) if option == "FILE" else (trust, endless)
    command = ["-m", "agentguard.cli", "audit", "verify-evidence", file, "--trust", by]
    said = run(*command, "--json") if option == "FILE" else run(*command)
    assert ('"ok": false' in said or '"ok":false' in said) if option == "FILE" else said == ""
