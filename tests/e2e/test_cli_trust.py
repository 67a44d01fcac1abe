"""``agentguard trust``: which log a state is, and who says so."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest


def rename_log(project):
    """Do as who writes into the state alone: it is another log, and holds nothing yet."""
    path = project.state / "trust.json"
    document = json.loads(path.read_bytes()) | {"log": f"place.internal/log/{'0' * 32}"}
    path.write_text(json.dumps(document, separators=(",", ":"), sort_keys=True))
    for file in project.state.glob("log.sqlite*"):
        file.unlink()


@pytest.mark.parametrize("moved", [False, True], ids=["in its place", "a copy elsewhere"])
def test_a_state_that_says_it_is_another_log_is_found_out(project, changed, moved):
    target = changed if moved else project
    if not moved:
        assert project.run("init").returncode == 0
    for command in (["audit", "verify"], ["keys", "list"], ["trust", "export"], ["doctor"]):
        assert target.run(*command).returncode == 0
    rename_log(target)
    before = sorted(target.anchor.rglob("*"))
    report = target.json("audit", "verify", code=1)
    assert (report["ok"], report["anchored"], report["entries"]) == (False, False, 0)
    (problem,) = report["problems"]
    assert "agentguard trust pin" in problem["what"]
    shown = target.run("audit", "verify")
    assert (shown.returncode, shown.stdout.partition(":")[0]) == (1, "FAILED")
    failed = [c["what"] for c in target.json("doctor", code=1)["checks"] if c["status"] == "fail"]
    assert failed == [problem["what"]]
    for command in (["keys", "list"], ["keys", "rotate", "log"], ["trust", "export"]):
        refused = target.run(*command)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("error [trust.changed]: ")
    open_it = "from agentguard import Guard\nGuard.open('agentguard.toml')"
    assert "VerificationError" in target.python("-c", open_it).stderr
    assert sorted(target.anchor.rglob("*")) == before
    assert not (target.state / "log.sqlite").exists()


def test_a_new_anchor_is_pinned(changed):
    """All of it was lost, or is elsewhere now; the log is as it was."""
    trust = changed.folder / "trust.json"
    exported = changed.run("trust", "export", "-o", trust)
    digest = hashlib.sha256(trust.read_bytes()).hexdigest()
    assert exported.stdout.endswith(f"\nits fingerprint (SHA-256): {digest}\n")
    entries = changed.json("audit", "verify")["entries"]
    shutil.rmtree(changed.anchor)
    assert changed.json("audit", "verify", code=1)["ok"] is False
    checks = {c["check"]: c["status"] for c in changed.json("doctor", code=1)["checks"]}
    assert (checks["anchor"], checks["log"]) == ("fail", "fail")
    alone = changed.json("audit", "verify", "--anchor", "", "--trust", trust)
    assert (alone["ok"], alone["entries"]) == (True, entries)
    result = changed.run("trust", "pin")
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(trust.read_bytes())
    assert document["log"] in result.stdout
    assert all(key["kid"] in result.stdout for key in document["keys"])
    report = changed.json("audit", "verify")
    assert (report["ok"], report["anchored"]) == (True, False)  # the checkpoints are not back
    call = "from agentguard import Guard\nGuard.open('agentguard.toml').close()"
    assert changed.python("-c", call).returncode == 0
    report = changed.json("audit", "verify")
    assert (report["ok"], report["witness"]) == (True, "same user")
    assert changed.json("doctor")["ok"] is True


def test_pinning_again_changes_nothing_and_replaces_no_keys(changed):
    before = {path: path.read_bytes() for path in changed.anchor.rglob("*") if path.is_file()}
    assert changed.run("trust", "pin").returncode == 0
    (kept,) = changed.anchor.glob("*/trust.json")
    assert kept.read_bytes() == before[kept]
    path = changed.state / "trust.json"
    document = json.loads(path.read_bytes())
    document["keys"][2]["not_before"] = 0
    path.write_text(json.dumps(document, separators=(",", ":"), sort_keys=True))
    result = changed.run("trust", "pin")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [trust.changed]: ")
    assert kept.read_bytes() == before[kept]


def test_there_is_nothing_to_pin_in_without_an_anchor(project):
    assert project.run("init", "--anchor", "").returncode == 0
    result = project.run("trust", "pin")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [config.invalid]: ")
