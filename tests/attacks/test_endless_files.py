"""Files that never end, where a reader looks: pipes and devices in a state, and files without end.

Whoever writes into a state, or sends evidence, keeps no reader waiting and fills nobody's memory.
"""

from __future__ import annotations

import os

import pytest

from agentguard.domain import keystore
from agentguard.storage import anchor, journal_secret

EXAMINE = """
import sys
from pathlib import Path
from agentguard.domain import verify
from agentguard.errors import AgentguardError
from agentguard.domain import keystore
from agentguard.store.reader import StoredLog
state, anchors = map(Path, sys.argv[1:])
try:
    trust = keystore.load_trust(state)
    report = verify.examine(StoredLog.of(state), trust, anchor=anchors)
    print("ok" if report.ok else f"found: {report.problems[0].what}")
except AgentguardError as error:
    print(f"refused: {error}")
"""


VERIFY = """
from agentguard.cli.commands import main
sys.argv[0] = "agentguard"
main()
"""

BOUNDED = """
import resource, sys
try:
    (pages, *_more) = open("/proc/self/statm").read().split()
except FileNotFoundError:
    pages = 0
bound = int(pages) * resource.getpagesize() + 2**29  # beside what is there
resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
"""


@pytest.fixture
def run(programs, tmp_path):
    """Run a program with a bound on memory and time; return what it printed."""

    def run(program, *arguments):
        done = programs.run("-c", BOUNDED + program, *arguments, cwd=tmp_path)
        assert "Traceback" not in done.stderr, done.stderr[-2000:]
        assert done.returncode >= 0
        return done.stdout

    return run


@pytest.fixture
def examine(run):
    """Examine the state of a place."""
    return lambda place: run(EXAMINE, place.config.state, place.config.anchor)


def test_the_twin_is_examined(used, examine):
    assert examine(used) == "ok\n"


@pytest.mark.parametrize("how", ["pipe", "device"])
@pytest.mark.parametrize("name", ["trust.json", "log.sqlite", "log.sqlite-journal"])
def test_what_is_no_file_keeps_no_reader_waiting(used, examine, name, how):
    path = used.config.state / name
    path.unlink(missing_ok=True)
    if how == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    said = examine(used)
    assert said.startswith(("found: ", "refused: "))
    assert "is no" in said or "no log at" in said


def test_nor_does_an_anchor(used, examine):
    trust = keystore.load_trust(used.config.state)
    path = anchor.head_path(used.config.anchor, trust.log)
    path.unlink()
    os.mkfifo(path)
    assert examine(used).startswith("found: the anchor ")


@pytest.mark.parametrize("option", ["FILE", "--trust"])
def test_a_file_without_end_is_no_evidence_and_no_trust_document(used, run, tmp_path, option):
    trust = used.config.state / "trust.json"
    endless = tmp_path / "endless.json"
    with endless.open("wb") as file:
        file.truncate(2**33)
    file, by = (endless, trust) if option == "FILE" else (trust, endless)
    command = ["evidence", "verify", file, "--trust", by]
    said = run(VERIFY, *command, *(["--json"] if option == "FILE" else []))
    assert ('"ok": false' in said or '"ok":false' in said) if option == "FILE" else said == ""


@pytest.mark.parametrize("is_loop", [True, False], ids=["a link to itself", "a folder"])
def test_a_folder_that_leads_to_itself_stops_no_agent(used, is_loop):
    """A guard looks there, for an unfinished rotation, whenever an agent or a delegation is new."""
    with used.open() as guard:
        folder = used.config.state / journal_secret.FOLDER
        if is_loop:
            folder.symlink_to(folder)
        else:
            folder.mkdir()
        guard.delegate("user:alice", scope=["read"])
        agent = guard.new_agent("reader")
        assert agent.call(guard.tool(name="note")(lambda: "noted")) == "noted"
