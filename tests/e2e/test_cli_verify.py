"""``agentguard audit verify``: what is whole is said to be whole, and damage is located."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

SWAP = """
UPDATE entry SET idx = idx - 100 WHERE idx IN (8, 9);
UPDATE entry SET idx = -83 - idx WHERE idx < 0;
"""


def settle(state: Path) -> Path:
    """Bring everything into the one file and return it."""
    file = state / "log.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file


def change(state: Path, script: str) -> None:
    with closing(sqlite3.connect(state / "log.sqlite")) as connection:
        connection.executescript(script)


def test_a_whole_log_verifies(told):
    report = told.json("audit", "verify")
    members = ["ok", "entries", "head", "anchored", "witness", "in_doubt"]
    members += ["observed", "adopted", "problems", "unchecked", "your_word"]
    assert list(report) == members
    rows = told.lines("audit", "list")
    (doubtful,) = [row["invocation_id"] for row in rows if row["outcome"] == "in_doubt"]
    assert report == {
        "ok": True,
        "entries": len(rows),
        "head": report["head"],
        "anchored": True,
        "witness": "same user",
        "in_doubt": [doubtful],
        "observed": 0,
        "adopted": [],
        "problems": [],
        "unchecked": [],
        "your_word": [],
    }
    assert report["head"].keys() == {"log", "size", "root", "map_root", "at"}
    assert report["head"]["size"] == len(rows)
    shown = told.run("audit", "verify")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"consistent: {len(rows)} entries in " in shown.stdout
    assert "anchored" in shown.stdout
    assert "UN" not in shown.stdout
    assert doubtful in shown.stdout


def test_one_changed_byte_is_found_and_located(changed):
    (denied,) = [
        row["index"]
        for row in changed.lines("audit", "list")
        if row["tool"] == "read_file" and row["decision"] == "deny"
    ]
    file = settle(changed.state)
    data = file.read_bytes()
    place = data.index(b'"the argument path')
    file.write_bytes(data[: place + 1] + b"T" + data[place + 2 :])
    report = changed.json("audit", "verify", code=1)
    assert (report["ok"], report["anchored"]) == (False, False)
    located = f"the entry {denied} is not the one beside its hash"
    assert any(located in problem["what"] for problem in report["problems"])
    shown = changed.run("audit", "verify")
    assert shown.returncode == 1
    assert "FAILED" in shown.stdout
    assert "keeps one, but the log is not whole" in shown.stdout
    assert "keeps none" not in shown.stdout
    file.write_bytes(data)
    assert changed.json("audit", "verify")["ok"] is True


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("DELETE FROM entry WHERE idx = 8", "entry 8 is missing"),
        (SWAP, "differ"),
        ("DELETE FROM head", "no head"),
        ("UPDATE attachment SET data = x'7b7d' WHERE idx = 8 AND role = 'input'", "changed"),
    ],
)
def test_tampering_with_the_file_is_found(changed, script, said):
    change(changed.state, script)
    report = changed.json("audit", "verify", code=1)
    assert report["ok"] is False
    assert any(said in problem["what"] for problem in report["problems"])


def test_a_rolled_back_state_is_found_by_its_anchor(project):
    assert project.run("init").returncode == 0
    old = project.folder / "old"
    shutil.copytree(project.state, old)
    call = (
        "from agentguard import Guard\n"
        "with Guard.open('agentguard.toml') as guard: guard.new_agent('assistant')"
    )
    assert project.python("-c", call).returncode == 0
    assert project.json("audit", "verify")["ok"] is True
    shutil.rmtree(project.state)
    old.rename(project.state)
    report = project.json("audit", "verify", code=1)
    assert (report["ok"], report["anchored"]) == (False, False)
    assert "tail is cut off" in report["problems"][0]["what"]
    blind = project.json("audit", "verify", "--anchor", "")
    assert (blind["ok"], blind["anchored"]) == (True, False)


def test_a_state_alone_has_the_default_anchor(told, tmp_path):
    named = ("audit", "verify", "--state", told.state)
    assert told.json(*named)["witness"] == "same user"
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(told.state, elsewhere)
    result = told.run("audit", "verify", "--state", elsewhere, cwd=tmp_path)
    assert (result.returncode, "anchored" in result.stdout) == (0, True)


def test_what_lies_beside_a_state_does_not_vouch_for_it(project, tmp_path):
    """A forged bundle brings its own configuration and anchor; its owner stands in it."""
    assert project.run("init", "--anchor", "witness").returncode == 0
    verify = ("audit", "verify", "--json", "--state", project.state)
    elsewhere = project.run(*verify, cwd=tmp_path)
    assert json.loads(elsewhere.stdout)["anchored"] is False
    assert "UNTRUSTED KEY" in elsewhere.stderr
    assert json.loads(project.run(*verify).stdout)["witness"] == "same user"
    assert project.json("audit", "verify", "--anchor", "")["anchored"] is False
    result = project.run("audit", "verify", "--anchor", tmp_path / "none")
    assert (result.returncode, result.stderr) == (1, "")  # one that is named is to know the state
    assert result.stdout.startswith("FAILED: the state ")


def test_without_outside_trust_it_says_so(told, tmp_path):
    alone = ("--anchor", "")
    result = told.run("audit", "verify", *alone)
    assert result.returncode == 0
    assert "UNANCHORED" in result.stdout
    assert "UNTRUSTED KEY" in result.stdout
    scripted = told.run("audit", "verify", "--json", *alone)
    assert json.loads(scripted.stdout)["anchored"] is False
    assert "UNANCHORED" in scripted.stderr
    assert "UNTRUSTED KEY" in scripted.stderr
    story = told.run("audit", "show", "8", *alone)
    assert "UNTRUSTED KEY" in story.stdout
    stranger = {"HOME": str(tmp_path)}  # whose home has not the anchor that is configured
    verify = ("audit", "verify", "--json", "--against", "kept")
    report = json.loads(told.run(*verify, env=stranger).stdout)
    assert (report["ok"], report["entries"], report["anchored"]) == (False, 0, False)
    assert report["your_word"] == ["kept"]
    refused = told.run("audit", "show", "8", env=stranger)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error [trust.changed]: ")


def test_a_trust_document_of_ones_own(told, project, tmp_path):
    exported = told.run("trust", "export").stdout
    (tmp_path / "trust.json").write_text(exported)
    named = ("audit", "verify", "--trust", tmp_path / "trust.json")
    result = told.run(*named, env={"HOME": str(tmp_path)})
    assert result.returncode == 0
    assert "UNTRUSTED KEY" not in result.stdout
    assert "UNANCHORED" in result.stdout
    assert project.run("init").returncode == 0
    other = project.run("trust", "export").stdout
    (tmp_path / "trust.json").write_text(other)
    refused = told.run(*named)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error [checkpoint.origin]: ")
    for log in (json.loads(exported)["log"], json.loads(other)["log"]):
        assert log in refused.stderr
    # of this log, but with other keys: that is a finding
    keys = {**json.loads(other), "log": json.loads(exported)["log"]}
    (tmp_path / "trust.json").write_text(json.dumps(keys))
    report = told.json(*named, code=1)
    assert report["ok"] is False
    assert report["problems"]


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "a note"])
def test_a_file_that_is_no_trust_document_is_named(told, tmp_path, content):
    file = tmp_path / "notes.md"
    file.write_text(content)
    evidence = told.run("evidence", "verify", "-", "--trust", file, input="{}")
    for result in (told.run("audit", "verify", "--trust", file), evidence):
        assert (result.returncode, result.stdout) == (2, "")
        assert f"{file} can't be read (" in result.stderr
        assert "agentguard trust export" in result.stderr


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (".agentguard", "storage.readonly"),
        (".agentguard/trust.json", "storage.readonly"),
        ("anchor", "anchor.unreadable"),
    ],
)
def test_what_may_not_be_read_is_named_with_what_to_do(changed, without_root_rights, name, code):
    (anchors,) = changed.anchor.iterdir()
    path = anchors if name == "anchor" else changed.folder / name
    before = path.stat().st_mode
    path.chmod(0)
    try:
        result = changed.process("audit", "verify", preexec_fn=without_root_rights)
    finally:
        path.chmod(before)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error [{code}]: ")
    assert (
        "/trust.json can't be read (Permission denied): give this user the right" in result.stderr
    )
    assert changed.run("audit", "verify").returncode == 0


@pytest.mark.parametrize("file", ["trust.json"])
def test_a_state_that_is_damaged_names_the_file(changed, file):
    path = changed.state / file
    path.write_text("{")
    opened = changed.python("-c", "from agentguard import Guard; Guard.open('agentguard.toml')")
    assert opened.returncode == 1
    assert f"{path} " in opened.stderr.splitlines()[-1]
    assert "restore it" in opened.stderr.splitlines()[-1]


def test_a_replaced_trust_document_convinces_nobody(changed, project):
    """Whoever can write the state can replace the keys in it, but not those with the anchors."""
    assert project.run("init").returncode == 0
    log = json.loads((changed.state / "trust.json").read_text())["log"]
    forged = json.loads((project.state / "trust.json").read_text()) | {"log": log}
    canonical = json.dumps(forged, sort_keys=True, separators=(",", ":"))
    (changed.state / "trust.json").write_text(canonical)
    assert changed.json("audit", "verify")["ok"] is True
    refused = changed.run("trust", "export")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error [trust.changed]: ")


@pytest.mark.parametrize("name", ["../../../up", "\u0000", "a" * 5000, "dots/.."])
def test_a_hostile_name_of_a_log_reaches_no_file(changed, name):
    document = json.loads((changed.state / "trust.json").read_text())
    document["log"] = f"x/log/{name}"
    (changed.state / "trust.json").write_text(json.dumps(document, sort_keys=True))
    result = changed.run("audit", "verify", "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["ok"] is False
    assert "Traceback" not in result.stderr


def test_a_file_that_is_no_log(changed):
    (changed.state / "log.sqlite-wal").unlink(missing_ok=True)
    (changed.state / "log.sqlite").write_bytes(b"\x00garbage" * 1000)
    for command in (["audit", "list"], ["agents", "list"]):
        result = changed.run(*command)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("error [storage.corrupt]: ")
        assert result.stderr.count("\n") == 1
    report = changed.json("audit", "verify", code=1)
    assert (report["ok"], report["anchored"]) == (False, False)


def test_pages_that_are_damaged_are_a_finding(changed):
    file = settle(changed.state)
    data = bytearray(file.read_bytes())
    for place in range(4096, len(data), 4096):
        data[place : place + 512] = b"\xff" * 512
    file.write_bytes(data)
    report = changed.json("audit", "verify", code=1)
    assert report["ok"] is False
    assert report["problems"]


def test_a_newer_version_is_refused(changed):
    change(changed.state, "PRAGMA user_version = 99")
    result = changed.run("audit", "list")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [storage.version]: ")
    assert "upgrade" in result.stderr
    report = changed.json("audit", "verify", code=1)
    assert "upgrade" in report["problems"][0]["what"]
    change(changed.state, "PRAGMA user_version = 1")
    assert changed.run("audit", "verify").returncode == 0


def test_what_two_guards_write_at_once_is_verified(changed):
    call = (
        "from agentguard import Guard\n"
        "with Guard.open('agentguard.toml') as one, Guard.open('agentguard.toml') as two:\n"
        "    one.new_agent('assistant'), two.new_agent('assistant')"
    )
    before = changed.json("audit", "verify")["entries"]
    assert changed.python("-c", call).returncode == 0
    whole = changed.json("audit", "verify")
    assert (whole["ok"], whole["witness"], whole["entries"]) == (True, "same user", before + 6)


def test_a_log_that_is_gone_is_found_out(changed):
    for file in changed.state.glob("log.sqlite*"):
        file.unlink()
    told = changed.json("audit", "verify", code=1)
    assert (told["ok"], told["entries"], told["anchored"]) == (False, 0, False)
    shown = changed.run("audit", "verify")
    assert (shown.returncode, "FAILED" in shown.stdout) == (1, True)
    doctor = changed.json("doctor", code=1)
    assert any(c["status"] == "fail" for c in doctor["checks"])


@pytest.mark.parametrize("missing", ["trust.json", ""])
def test_a_state_that_is_not_there(changed, missing):
    shutil.rmtree(changed.state / missing) if not missing else (changed.state / missing).unlink()
    result = changed.run("audit", "verify", "--json")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [storage.missing]: ")


def test_a_state_is_looked_for_before_its_anchor(project):
    for state in (project.home / "nowhere", project.home):  # the default anchor is in the home
        result = project.run("audit", "verify", "--state", state)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("error [storage.missing]: there is no state at ")
        assert result.stderr.endswith(", or correct --state\n")


def test_a_read_only_state(changed, without_root_rights):
    """Evidence on a medium that nobody can write to: it is read, and nothing beside it is made."""
    settle(changed.state)
    before = sorted(changed.state.rglob("*"))
    changed.state.chmod(0o500)
    for command in (["audit", "verify"], ["audit", "list"], ["audit", "show", "8"]):
        result = changed.process(*command, preexec_fn=without_root_rights)
        assert (result.returncode, result.stderr) == (0, "")
    assert sorted(changed.state.rglob("*")) == before


def test_an_anchor_inside_the_state_vouches_for_nothing(changed):
    shutil.copytree(changed.anchor, changed.state / "anchor")
    result = changed.run("audit", "verify", "--anchor", changed.state / "anchor")
    assert result.returncode == 2
    assert result.stderr.startswith("error [anchor.inside]: ")
    shutil.copytree(changed.anchor, changed.folder / "beside")
    assert changed.json("audit", "verify", "--anchor", changed.folder / "beside")["anchored"]


def test_a_damaged_anchor_is_a_finding(changed):
    (anchor,) = changed.anchor.glob("*/head")
    anchor.write_bytes(anchor.read_bytes().replace(b"\n", b"\n1", 1))
    report = changed.json("audit", "verify", code=1)
    assert "anchor" in report["problems"][0]["what"]
