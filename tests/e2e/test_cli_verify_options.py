"""``agentguard audit verify``: what can be left out, and what others have kept of the log."""

from __future__ import annotations

import json
import os
import pty
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import islice

import pytest

from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.domain import keystore
from agentguard.signing.keys import Ed25519Signer
from agentguard.store import tree
from agentguard.store.reader import StoredLog

OPEN = """
from agentguard import Guard
with Guard.open("agentguard.toml") as guard:
    guard.new_agent("assistant")
"""
REPORT = ["ok", "entries", "head", "anchored", "witness", "in_doubt", "observed", "adopted"]
REPORT += ["problems", "unchecked", "your_word"]


@pytest.fixture
def verify():
    """``verify(project, *ARGS)`` is the report, and whether the exit code agrees with it."""

    def run(project, *args):
        result = project.run("audit", "verify", *args, "--json")
        assert result.stdout, result.stderr
        report = json.loads(result.stdout)
        assert result.returncode == (0 if report["ok"] else 1)
        assert list(report) == REPORT
        return report

    return run


def change(project, script):
    with closing(sqlite3.connect(project.state / "log.sqlite")) as connection:
        connection.executescript(script)


def newest(project):
    """The newest checkpoint, signed."""
    with closing(StoredLog.of(project.state)) as reader:
        note = reader.head()
    assert note is not None
    return note


def older(project, size):
    """A checkpoint from when the log had so many entries, signed."""
    head, grown = heads.parse(newest(project)), merkle.CompactRange()
    with closing(StoredLog.of(project.state)) as reader:
        for _index, body in islice(reader.entries(), size):
            grown.append(merkle.leaf_hash(body))
    return heads.sign(head._replace(size=size, root=grown.root()), log_key(project))


def log_key(project):
    (secret,) = (project.home / ".config" / "agentguard").glob("*.passphrase")
    return keystore.load_key(project.state, "log", secret.read_bytes().strip())


def indices(report):
    return {problem["index"] for problem in report["problems"]}


# --- --no-signatures ----------------------------------------------------------------------------


def test_without_signatures_hashes_and_anchors_are_checked(verify, reshaped):
    whole = verify(reshaped)
    assert whole["unchecked"] == []
    quick = verify(reshaped, "--no-signatures")
    assert quick == whole | {"unchecked": quick["unchecked"]}
    assert len(quick["in_doubt"]) == 1
    shown = reshaped.run("audit", "verify", "--no-signatures")
    assert "NOT CHECKED: signatures" in shown.stdout
    assert "NOT CHECKED" not in reshaped.run("audit", "verify").stdout
    change(reshaped, "UPDATE entry SET body = CAST(body || ' ' AS BLOB) WHERE idx = 3")
    broken = verify(reshaped, "--no-signatures")
    assert (broken["ok"], broken["anchored"]) == (False, False)
    assert any("the entry 3 is not" in problem["what"] for problem in broken["problems"])


def test_without_signatures_columns_are_not_checked_and_it_says_so(verify, reshaped):
    change(reshaped, "UPDATE entry SET tool = 'innocent' WHERE tool = 'read_file'")
    assert verify(reshaped)["ok"] is False
    quick = verify(reshaped, "--no-signatures")
    assert quick["ok"] is True
    assert any("columns" in said for said in quick["unchecked"])
    scripted = reshaped.run("audit", "verify", "--no-signatures", "--json")
    assert "columns" in scripted.stderr


def test_without_signatures_that_of_the_head_is_verified_still(verify, reshaped):
    stranger = Ed25519Signer.from_seed(os.urandom(32))
    with closing(StoredLog.of(reshaped.state)) as reader:
        forged = heads.sign(heads.parse(reader.head()), stranger)
    change(reshaped, f"UPDATE head SET note = x'{forged.hex()}'")  # noqa: S608
    report = verify(reshaped, "--no-signatures", "--anchor", "")
    assert report["ok"] is False
    assert any("does not verify" in problem["what"] for problem in report["problems"])


# --- --since ------------------------------------------------------------------------------------


def test_signatures_are_checked_from_a_time_on(verify, reshaped):
    """A signature that does not hold is found if its entry is not older; a hash always is."""
    rows = [
        json.loads(line)
        for line in reshaped.run("audit", "list", "--json", "--kind", "call").stdout.splitlines()
    ]
    forged = reforge(reshaped, rows[1])
    late = verify(reshaped, "--since", "2199-01-01", "--anchor", "")
    assert late["ok"] is True
    assert late["unchecked"] == ["signatures before 2199-01-01T00:00:00.000000Z"]
    for early in (rows[1]["at"], "2000-01-01", "1h"):
        report = verify(reshaped, "--since", early, "--anchor", "")
        assert forged in indices(report)
    anchored = verify(reshaped, "--since", "2199-01-01")
    assert anchored["ok"] is False  # the anchor has seen another entry there


def reforge(project, row):
    """Replace a call's signature, and sign the tree anew, as the holder of the log's key can."""
    signer = log_key(project)
    path = project.state / "log.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        (body,) = connection.execute(
            "SELECT body FROM entry WHERE idx = ?", (row["index"],)
        ).fetchone()
        members = json.loads(body)
        sealed = members["invocation"]["signatures"][0]
        sealed["sig"] = ("B" if sealed["sig"][0] == "A" else "A") + sealed["sig"][1:]
        body = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
        connection.execute(
            "UPDATE entry SET body = ?, leaf = ? WHERE idx = ?",
            (body, merkle.leaf_hash(body), row["index"]),
        )
        grown, completed = merkle.CompactRange(), list[tree.Completed]()
        for (leaf,) in connection.execute("SELECT leaf FROM entry ORDER BY idx"):
            grown.append(leaf, completed)
        for level, index, digest in tree.stored(completed):
            statement = "UPDATE tree SET hash = ? WHERE level = ? AND idx = ?"
            connection.execute(statement, (digest, level, index))
        (note,) = connection.execute("SELECT note FROM head").fetchone()
        head = heads.parse(note)._replace(root=grown.root())
        connection.execute(
            "UPDATE head SET note = ?, peaks = ?", (heads.sign(head, signer), grown.encode())
        )
    return row["index"]


def test_since_and_no_signatures_exclude_each_other(busy):
    result = busy.run("audit", "verify", "--since", "1h", "--no-signatures")
    assert (result.returncode, result.stdout) == (2, "")
    assert busy.run("audit", "verify", "--since", "tomorrow").returncode == 2


# --- --jobs -------------------------------------------------------------------------------------


def test_the_number_of_processes_changes_no_finding(verify, reshaped):
    """Of a whole log, and of one in which the holder of the log's key has changed a signature."""
    jobs = [(), ("--jobs", "1"), ("--jobs", "3")]
    reports = [verify(reshaped, *options) for options in jobs]
    assert reports[0]["ok"]
    assert reports[1:] == reports[:1] * 2
    listed = reshaped.run("audit", "list", "--json", "--kind", "call").stdout.splitlines()
    forged = reforge(reshaped, json.loads(listed[1]))
    reports = [verify(reshaped, *options) for options in jobs]
    assert forged in indices(reports[0])
    assert reports[1:] == reports[:1] * 2


def test_the_number_of_processes_is_from_one_to_sixty_four(busy):
    for jobs in ("0", "-1", "many", "65"):
        assert busy.run("audit", "verify", "--jobs", jobs).returncode == 2


# --- --against ----------------------------------------------------------------------------------


def test_checkpoints_that_somebody_kept_anchor_the_log(verify, busy, tmp_path):
    alone = ("--anchor", "")
    assert verify(busy, *alone)["witness"] is None
    kept, before = tmp_path / "kept", tmp_path / "before"
    kept.write_bytes(newest(busy))
    before.write_bytes(older(busy, 5))
    late = verify(busy, *alone, "--against", before)
    assert (late["ok"], late["witness"]) == (True, "outside")
    (said,) = late["unchecked"]
    assert said.startswith("whether entries from 5 on were cut off")
    both = verify(busy, *alone, "--against", before, "--against", kept)
    assert (both["ok"], both["witness"], both["unchecked"]) == (True, "outside", [])
    one = tmp_path / "one"
    one.write_bytes(before.read_bytes() + kept.read_bytes())
    assert verify(busy, *alone, "--against", one) == both | {"your_word": [str(one)]}


def test_the_evidence_of_a_call_is_a_witness(verify, busy, tmp_path):
    rows = busy.run("audit", "list", "--json", "--tool", "get_file").stdout.splitlines()
    file = tmp_path / "evidence.json"
    call = json.loads(rows[0])
    proved = busy.run("evidence", "make", call["invocation_id"], "-o", file)
    assert proved.returncode == 0
    report = verify(busy, "--anchor", "", "--against", file)
    assert (report["ok"], report["witness"]) == (True, "outside")


def test_that_a_file_was_kept_elsewhere_is_the_word_of_the_user(verify, busy, tmp_path):
    kept = tmp_path / "kept"
    kept.write_bytes(newest(busy))
    shown = busy.run("audit", "verify", "--against", kept).stdout
    assert f"{kept}\nYOUR WORD: nothing shows that the files of --against were kept" in shown
    assert "YOUR WORD" not in busy.run("audit", "verify").stdout
    assert verify(busy, "--against", kept)["your_word"] == [str(kept)]
    assert verify(busy)["your_word"] == []


def test_entries_that_are_gone_are_found_by_what_was_kept(verify, busy, tmp_path):
    head = heads.parse(newest(busy))
    kept = tmp_path / "kept"
    kept.write_bytes(heads.sign(head._replace(size=head.size + 1), log_key(busy)))
    report = verify(busy, "--anchor", "", "--against", kept)
    assert report["your_word"] == [str(kept)]  # of a finding, too
    (problem,) = report["problems"]
    assert (problem["index"], "tail is cut off" in problem["what"]) == (head.size, True)


def test_a_fork_is_found_though_the_anchor_agrees(verify, busy, tmp_path):
    """Two checkpoints of one size with different roots: one of them must be wrong."""
    head = heads.parse(newest(busy))
    kept = tmp_path / "kept"
    kept.write_bytes(heads.sign(head._replace(root=b"\1" * 32), log_key(busy)))
    assert verify(busy, "--against", kept)["ok"] is False
    kept.write_bytes(newest(busy))
    assert verify(busy, "--against", kept)["ok"] is True


@pytest.mark.parametrize("case", ["stranger", "other log", "no note", "half", "empty", "missing"])
def test_what_can_vouch_for_nothing_is_refused(project, busy, tmp_path, case):
    """Exit code 2: nothing was checked."""
    file = tmp_path / "kept"
    note = newest(busy)
    if case == "stranger":
        note = heads.sign(heads.parse(note), Ed25519Signer.from_seed(os.urandom(32)))
    elif case == "other log":
        assert project.run("init").returncode == 0
        note = newest(project)
    elif case == "no note":
        note = b"\x1b[2J nothing\n"
    elif case == "half":
        note = note + note[:-10]
    elif case == "empty":
        note = b""
    if case != "missing":
        file.write_bytes(note)
    result = busy.run("audit", "verify", "--against", file, "--json")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [")
    assert str(file) in result.stderr
    assert result.stderr.count("\n") == 1


# --- what people see ----------------------------------------------------------------------------


def test_the_verdict_for_people(verify, busy):
    report = verify(busy)
    shown = busy.run("audit", "verify")
    assert (shown.returncode, shown.stderr) == (0, "")
    said, head = shown.stdout, report["head"]
    assert said.startswith(f"consistent: {report['entries']} entries in ")
    assert f"\nhead: {head['size']} entries by {head['at']}, root {head['root']}\n" in said
    assert "\nanchored, same user: by the checkpoints in" in said
    (doubtful,) = report["in_doubt"]
    said = said.partition("1 call in doubt")[2]
    assert "read_file by agent:assistant:" in said
    assert f"agentguard resolve {doubtful} --ran|--not-ran --note TEXT" in said


@pytest.mark.parametrize("case", ["cut short", "a copy", "a copy without an anchor"])
def test_nobody_is_told_to_resolve_a_call_by_a_log_that_is_cut_short_or_a_copy(
    reshaped, verify, tmp_path, case
):
    place = []
    if case == "cut short":
        shutil.copytree(reshaped.state, tmp_path / "old")
        assert reshaped.python("-c", OPEN).returncode == 0
        shutil.rmtree(reshaped.state)
        shutil.copytree(tmp_path / "old", reshaped.state)
    else:
        place = ["--state", tmp_path / "copy"]
        shutil.copytree(reshaped.state, place[1])
        if case == "a copy without an anchor":
            place += ["--anchor", ""]
    report = verify(reshaped, *place)
    assert report["ok"] is (case != "cut short")
    assert report["in_doubt"]
    said = reshaped.run("audit", "verify", *place).stdout
    assert "in doubt: authorised, and nothing is known since. Resolve " in said
    assert "agentguard resolve" not in said
    assert ("by a log that is not whole" in said) is (case == "cut short")


def test_problems_stand_with_their_entries(verify, reshaped):
    change(reshaped, "UPDATE attachment SET data = x'7b7d' WHERE role = 'arguments' AND idx < 15")
    change(reshaped, "UPDATE entry SET tool = 'x' WHERE kind = 'call' AND idx >= 15")
    shown = reshaped.run("audit", "verify")
    assert shown.returncode == 1
    found = verify(reshaped)["problems"]
    assert {"arguments" in problem["what"] for problem in found} == {True, False}
    wanted = [f"  entry {problem['index']}: {problem['what']}" for problem in found]
    assert shown.stdout.splitlines()[: len(found)] == wanted
    assert "FAILED" in shown.stdout


def test_progress_is_shown_on_a_terminal_and_nowhere_else(busy):
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "agentguard.cli", "audit", "verify", "--json"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=follower,
        cwd=busy.folder,
        env=busy.environment | {"TERM": "xterm-256color"},
    ) as process:
        os.close(follower)
        seen = b""
        while True:
            try:
                data = os.read(leader, 4096)
            except OSError:  # Linux: the other end is closed
                break
            if not data:
                break
            seen += data
        assert process.stdout is not None
        assert json.loads(process.stdout.read())["ok"] is True
    os.close(leader)
    assert b"verifying entry" in seen
    assert busy.run("audit", "verify", "--json").stderr == ""


def test_whoever_copies_the_state_gets_the_same_report(verify, busy, reshaped):
    shutil.rmtree(reshaped.state)
    shutil.copytree(busy.state, reshaped.state)
    assert verify(reshaped) == verify(busy)
