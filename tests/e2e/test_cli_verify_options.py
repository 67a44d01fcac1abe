"""``agentguard audit verify``: what can be left out, and what others have kept of the log."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from agentguard.audit import checkpoint
from agentguard.audit.checkpoint import Checkpoint
from agentguard.signing.keys import Ed25519Signer

REPORT = ["ok", "entries", "shards", "anchored", "in_doubt", "observed", "adopted"]
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


def change(project, shard, script):
    with closing(sqlite3.connect(project.state / f"shards/{shard}.sqlite")) as connection:
        connection.executescript(script)


def notes(project, shard):
    """Every checkpoint of a shard, as the state holds it."""
    with closing(sqlite3.connect(project.state / f"shards/{shard}.sqlite")) as connection:
        found = connection.execute("SELECT note FROM checkpoints ORDER BY size").fetchall()
    return [bytes(note) for (note,) in found]


def size_of(note):
    return checkpoint.parse(note).checkpoint.size


def problems(report):
    return {(problem["shard"], problem["index"]) for problem in report["problems"]}


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
    change(reshaped, 1, "UPDATE entries SET body = CAST(body || ' ' AS BLOB) WHERE idx = 3")
    broken = verify(reshaped, "--no-signatures")
    assert (broken["ok"], broken["anchored"]) == (False, None)
    assert {shard for shard, _index in problems(broken)} == {1}


def test_without_signatures_columns_are_not_checked_and_it_says_so(verify, reshaped):
    change(reshaped, 0, "UPDATE summaries SET tool = 'innocent' WHERE tool = 'read_file'")
    assert verify(reshaped)["ok"] is False
    quick = verify(reshaped, "--no-signatures")
    assert quick["ok"] is True
    assert any("columns" in said for said in quick["unchecked"])
    scripted = reshaped.run("audit", "verify", "--no-signatures", "--json")
    assert "columns" in scripted.stderr


def test_without_signatures_the_newest_checkpoint_is_verified_still(verify, reshaped):
    note = notes(reshaped, 2)[-1]
    stranger = Ed25519Signer.from_seed(os.urandom(32))
    forged = checkpoint.sign(checkpoint.parse(note).checkpoint, stranger)
    change(
        reshaped,
        2,
        f"UPDATE checkpoints SET note = x'{forged.hex()}' "  # noqa: S608
        "WHERE size = (SELECT max(size) FROM checkpoints)",
    )
    report = verify(reshaped, "--no-signatures", "--anchor", "")
    assert report["ok"] is False
    assert {shard for shard, _index in problems(report)} == {2}


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
        assert forged in problems(report)
    anchored = verify(reshaped, "--since", "2199-01-01")
    assert anchored["ok"] is False  # the anchor has seen another entry there


def reforge(project, row):
    """Replace a call's signature, and sign the tree anew, as the holder of the log's key can."""
    from agentguard.audit.merkle import CompactRange, leaf_hash  # noqa: PLC0415
    from agentguard.domain import keystore  # noqa: PLC0415

    (secret,) = (project.home / ".config" / "agentguard").glob("*.passphrase")
    signer = keystore.load_key(project.state, "log", secret.read_bytes().strip())
    path = project.state / f"shards/{row['shard']}.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        (body,) = connection.execute(
            "SELECT body FROM entries WHERE idx = ?", (row["index"],)
        ).fetchone()
        members = json.loads(body)
        sealed = members["invocation"]["signatures"][0]
        sealed["sig"] = ("B" if sealed["sig"][0] == "A" else "A") + sealed["sig"][1:]
        connection.execute(
            "UPDATE entries SET body = ? WHERE idx = ?",
            (json.dumps(members, sort_keys=True, separators=(",", ":")).encode(), row["index"]),
        )
        tree = CompactRange()
        bodies = connection.execute("SELECT body FROM entries ORDER BY idx").fetchall()
        for size, (entry,) in enumerate(bodies, start=1):
            tree.append(leaf_hash(entry))
            note = connection.execute(
                "SELECT note FROM checkpoints WHERE size = ?", (size,)
            ).fetchone()
            if note is not None:
                origin = checkpoint.parse(note[0]).checkpoint.origin
                signed = checkpoint.sign(Checkpoint(origin, size, tree.root()), signer)
                connection.execute("UPDATE checkpoints SET note = ? WHERE size = ?", (signed, size))
        connection.execute("UPDATE shard SET range = ?", (tree.encode(),))
    return row["shard"], row["index"]


def test_since_and_no_signatures_exclude_each_other(sharded):
    result = sharded.run("audit", "verify", "--since", "1h", "--no-signatures")
    assert (result.returncode, result.stdout) == (2, "")
    assert sharded.run("audit", "verify", "--since", "tomorrow").returncode == 2


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
    assert forged in problems(reports[0])
    assert reports[1:] == reports[:1] * 2


def test_the_number_of_processes_is_from_one_to_sixty_four(sharded):
    for jobs in ("0", "-1", "many", "65"):
        assert sharded.run("audit", "verify", "--jobs", jobs).returncode == 2


# --- --against ----------------------------------------------------------------------------------


def test_checkpoints_that_somebody_kept_anchor_the_log(verify, sharded, tmp_path):
    alone = ("--anchor", "")
    assert verify(sharded, *alone)["anchored"] is None
    kept = [tmp_path / f"{shard}.checkpoint" for shard in range(3)]
    for shard, file in enumerate(kept):
        file.write_bytes(notes(sharded, shard)[0])
    some = verify(sharded, *alone, "--against", kept[0], "--against", kept[1])
    assert (some["ok"], some["anchored"]) == (True, None)
    every = verify(sharded, *alone, *(part for file in kept for part in ("--against", file)))
    assert (every["ok"], every["anchored"]) == (True, "outside")
    one = tmp_path / "all"
    one.write_bytes(b"".join(file.read_bytes() for file in kept))
    assert verify(sharded, *alone, "--against", one)["anchored"] == "outside"
    one.write_bytes(b"".join(note for shard in range(3) for note in notes(sharded, shard)))
    assert verify(sharded, *alone, "--against", one)["anchored"] == "outside"


def test_the_evidence_of_a_call_is_a_witness(verify, sharded, tmp_path):
    rows = sharded.run("audit", "list", "--json", "--tool", "get_file").stdout.splitlines()
    file = tmp_path / "evidence.json"
    call = json.loads(rows[0])
    proved = sharded.run("evidence", "make", call["invocation_id"], "-o", file)
    assert proved.returncode == 0
    report = verify(sharded, "--anchor", "", "--against", file)
    assert report["ok"] is True
    shown = sharded.run("audit", "verify", "--anchor", "", "--against", file).stdout
    anchored = [line.split()[3] for line in shown.splitlines()[1:4]]
    assert anchored[call["shard"]] == "yes"
    assert "none" in anchored


def test_that_a_file_was_kept_elsewhere_is_the_word_of_the_user(verify, sharded, tmp_path):
    kept = tmp_path / "kept"
    kept.write_bytes(b"".join(note for shard in range(3) for note in notes(sharded, shard)))
    shown = sharded.run("audit", "verify", "--against", kept).stdout
    assert f"{kept}\nYOUR WORD: nothing shows that the files of --against were kept" in shown
    assert "YOUR WORD" not in sharded.run("audit", "verify").stdout
    assert verify(sharded, "--against", kept)["your_word"] == [str(kept)]
    assert verify(sharded)["your_word"] == []


def test_a_rolled_back_shard_is_found_by_what_was_kept(verify, reshaped, tmp_path):
    kept = tmp_path / "kept"
    kept.write_bytes(notes(reshaped, 1)[-1])
    size = checkpoint.parse(notes(reshaped, 1)[0]).checkpoint.size
    change(reshaped, 1, f"DELETE FROM checkpoints WHERE size > {size}")  # noqa: S608
    for table in ("entries", "summaries", "attachments"):
        change(reshaped, 1, f"DELETE FROM {table} WHERE idx >= {size}")  # noqa: S608
    report = verify(reshaped, "--anchor", "", "--against", kept)
    assert report["your_word"] == [str(kept)]  # of a finding, too
    assert (1, size) in problems(report)
    assert any("tail is cut off" in problem["what"] for problem in report["problems"])


def test_a_shard_that_is_gone_is_found_by_what_was_kept(verify, reshaped, tmp_path):
    kept = tmp_path / "kept"
    kept.write_bytes(notes(reshaped, 1)[-1])
    for file in (reshaped.state / "shards").glob("1.*"):
        file.unlink()
    (reshaped.state / "registry.json").unlink()
    report = verify(reshaped, "--anchor", "", "--against", kept)
    assert (1, None) in problems(report)
    assert (1, None) not in problems(verify(reshaped, "--anchor", ""))
    shown = reshaped.run("audit", "verify", "--anchor", "", "--against", kept).stdout
    assert ["1", "missing"] in [line.split() for line in shown.splitlines()]


def test_a_fork_is_found_though_the_anchor_agrees(verify, reshaped, tmp_path):
    """Two checkpoints of one size with different roots: one of them must be wrong."""
    from agentguard.domain import keystore  # noqa: PLC0415

    (secret,) = (reshaped.home / ".config" / "agentguard").glob("*.passphrase")
    signer = keystore.load_key(reshaped.state, "log", secret.read_bytes().strip())
    newest = checkpoint.parse(notes(reshaped, 0)[-1]).checkpoint
    other = checkpoint.sign(Checkpoint(newest.origin, newest.size, b"\1" * 32), signer)
    kept = tmp_path / "kept"
    kept.write_bytes(other)
    report = verify(reshaped, "--against", kept)
    assert report["ok"] is False
    assert {shard for shard, _index in problems(report)} == {0}
    kept.write_bytes(notes(reshaped, 0)[-1])
    assert verify(reshaped, "--against", kept)["ok"] is True


@pytest.mark.parametrize("case", ["stranger", "other log", "no note", "half", "empty", "missing"])
def test_what_can_vouch_for_nothing_is_refused(project, sharded, tmp_path, case):
    """Exit code 2: nothing was checked."""
    file = tmp_path / "kept"
    note = notes(sharded, 0)[-1]
    point = checkpoint.parse(note).checkpoint
    if case == "stranger":
        note = checkpoint.sign(point, Ed25519Signer.from_seed(os.urandom(32)))
    elif case == "other log":
        assert project.run("init").returncode == 0
        note = notes(project, 0)[-1]
    elif case == "no note":
        note = b"\x1b[2J nothing\n"
    elif case == "half":
        note = note + note[:-10]
    elif case == "empty":
        note = b""
    if case != "missing":
        file.write_bytes(note)
    result = sharded.run("audit", "verify", "--against", file, "--json")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [")
    assert str(file) in result.stderr
    assert result.stderr.count("\n") == 1


# --- what people see ----------------------------------------------------------------------------


def test_the_verdict_for_people(verify, sharded):
    report = verify(sharded)
    shown = sharded.run("audit", "verify")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[0].split()[:2] == ["shard", "entries"]
    table = [line.split() for line in lines[1:4]]
    assert [row[0] for row in table] == ["0", "1", "2"]
    assert sum(int(row[1]) for row in table) == report["entries"]
    assert [row[3:5] for row in table] == [["same", "user"]] * 3
    assert "\nanchored, same user: by the checkpoints in" in shown.stdout
    (doubtful,) = report["in_doubt"]
    said = shown.stdout.partition("1 call in doubt")[2]
    assert "read_file by agent:assistant:" in said
    assert f"agentguard resolve {doubtful} --ran|--not-ran --note TEXT" in said


@pytest.mark.parametrize("case", ["cut short", "a copy", "a copy without an anchor"])
def test_nobody_is_told_to_resolve_a_call_by_a_log_that_is_cut_short_or_a_copy(
    reshaped, verify, tmp_path, case
):
    place = []
    if case == "cut short":
        last = max(map(size_of, notes(reshaped, 0))) - 1
        change(reshaped, 0, f"DELETE FROM entries WHERE idx = {last}")  # noqa: S608
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


def test_problems_stand_with_their_shards(reshaped):
    change(reshaped, 2, "UPDATE summaries SET tool = 'x' WHERE kind = 'call'")
    change(reshaped, 0, "UPDATE attachments SET data = x'7b7d' WHERE role = 'arguments'")
    shown = reshaped.run("audit", "verify")
    assert shown.returncode == 1
    found = [line for line in shown.stdout.splitlines() if re.match("shard [0-9]|  entry", line)]
    heads = [at for at, line in enumerate(found) if line.startswith("shard")]
    assert [found[at] for at in heads] == ["shard 0", "shard 2"]
    assert all("arguments" in line for line in found[1 : heads[1]])
    assert all("columns" in line for line in found[heads[1] + 1 :])
    assert "FAILED" in shown.stdout


def test_progress_is_shown_on_a_terminal_and_nowhere_else(sharded):
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "agentguard.cli", "audit", "verify", "--json"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=follower,
        cwd=sharded.folder,
        env=sharded.environment | {"TERM": "xterm-256color"},
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
    assert sharded.run("audit", "verify", "--json").stderr == ""


def test_whoever_copies_the_state_gets_the_same_report(verify, sharded, reshaped):
    shutil.rmtree(reshaped.state)
    shutil.copytree(sharded.state, reshaped.state)
    assert verify(reshaped) == verify(sharded)
