"""``agentguard doctor``: what is weak is named, with what to do; what is sound is not alarmed."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing

import pytest


def status_of(report: dict, check: str) -> set[str]:
    return {entry["status"] for entry in report["checks"] if entry["check"] == check}


def edit(project, old: str, new: str) -> None:
    toml = project.folder / "agentguard.toml"
    text = toml.read_text()
    assert old in text
    toml.write_text(text.replace(old, new))


def test_a_sound_set_up(told):
    report = told.json("doctor")
    assert report["ok"] is True
    assert all(list(entry) == ["status", "check", "what"] for entry in report["checks"])
    checks = {entry["check"] for entry in report["checks"]}
    assert checks >= {
        "platform",
        "configuration",
        "policy",
        "state",
        "passphrase",
        "keys",
        "anchor",
        "agent assistant",
        "log",
    }
    # one call of this log is in doubt, and the tools' scopes stand in the code alone
    doubt, *tools = [c["what"] for c in report["checks"] if c["status"] != "ok"]
    (doubtful,) = told.json("audit", "verify")["in_doubt"]
    assert doubt.startswith("1 call in doubt: ")
    assert doubt.endswith(f"agentguard audit show {doubtful}")
    assert [what[:19] for what in tools] == ["called, no requires"] * 2
    shown = told.run("doctor")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "assistant" in shown.stdout


@pytest.mark.parametrize(
    ("old", "new", "check", "status"),
    [
        ('authority = "own"', 'authority = "delegated"', "agent assistant", "ok"),
        ('max_scope = ["files:read"]', "max_scope = []", "agent assistant", "warn"),
        ('anchor = "~/.local/state/agentguard"', 'anchor = ""', "anchor", "warn"),
        ('anchor = "~/.local', 'anchor = ".agentguard/.local', "configuration", "fail"),
        ("trust_domain", "trust_domian", "configuration", "fail"),
        ("trust_domain =", "# trust_domain =", "state", "fail"),
        ("policies/authz.rego", "policies/other.rego", "policy", "fail"),
        ("policies/authz.rego", "~nosuchuser/authz.rego", "policy", "fail"),
        ("~/.config/agentguard/", "~/nowhere/", "keys", "fail"),
        ("~/.config/agentguard/", "~/nowhere/", "passphrase", "fail"),
        ('state = ".agentguard"', 'state = "elsewhere"', "state", "fail"),
        ("# [tools.read_file]", "[tools.read_fiel]", "tool read_fiel", "warn"),
        ("# [tools.read_file]", "[tools.read_file]", "tool read_file", "ok"),
        (
            "# [tools.read_file]",
            '[tools.read_file]\nfacts = "nowhere:at_all"',
            "tool read_file",
            "warn",
        ),
    ],
)
def test_what_the_configuration_gets_wrong(changed, old, new, check, status):
    edit(changed, old, new)
    report = changed.json("doctor", code=1 if status == "fail" else 0)
    assert status in status_of(report, check), report
    assert report["ok"] is (status != "fail")


@pytest.mark.parametrize(
    ("table", "name", "said"),
    [
        ("[tools.read_fiel]", "tool read_fiel", "is read_file meant?"),
        ("[tools.merge]", "tool merge", "compare the name with the tool's"),
        (
            '[redact]\nread_fiel = ["/args/path"]',
            "redact read_fiel",
            "is read_file meant?; what it names is not redacted",
        ),
        ('[redact]\nread_file = ["/args/path"]', "redact read_file", None),
        ('[redact]\n"*" = ["/args/path"]', "redact *", None),
        ('[redact]\nmerge = ["/args/x"]\n[tools.merge]', "redact merge", None),
    ],
)
def test_a_name_that_no_call_has(changed, table, name, said):
    edit(changed, "# [tools.read_file]", table)
    checks = changed.json("doctor")["checks"]
    found = [check for check in checks if check["check"] == name]
    assert [check["status"] for check in found] == ([] if said is None else ["warn"])
    assert all(check["what"].endswith(f"matches nothing so far: {said}") for check in found)


def test_scopes_that_no_call_can_meet(changed):
    edit(changed, "# [tools.read_file]", '[tools.read_file]\nrequires = ["files:read", "x:y"]')
    said = [c["what"] for c in changed.json("doctor")["checks"] if c["check"] == "tool read_file"]
    assert any("requires x:y, which no agent has" in what for what in said)
    assert not any("files:read" in what or "no requires" in what for what in said)


def test_a_role_gives_scope(changed):
    roles = 'max_scope = []\nroles = ["reader"]\n[roles.reader]\nscope = ["files:read", "x:y"]\n'
    edit(changed, 'max_scope = ["files:read"]', roles)
    edit(changed, "# [tools.read_file]", '[tools.read_file]\nrequires = ["files:read", "x:y"]')
    edit(changed, 'authority = "own"', 'authority = "delegated"')
    said = {check["what"]: check["status"] for check in changed.json("doctor")["checks"]}
    assert said["acts under a delegation only, and then with no more than files:read x:y"] == "ok"
    assert not any("which no agent has" in what for what in said)


def test_without_a_configuration(project):
    report = project.json("doctor", code=1)
    assert status_of(report, "configuration") == {"fail"}
    assert "agentguard init" in project.run("doctor").stdout


def test_rights_and_places(changed):
    changed.state.chmod(0o755)
    (passphrase,) = (changed.home / ".config" / "agentguard").iterdir()
    shutil.copy(passphrase, changed.state / "passphrase")
    edit(changed, f"~/.config/agentguard/{passphrase.name}", ".agentguard/passphrase")
    report = changed.json("doctor", code=1)
    assert status_of(report, "state") == {"fail"}
    assert status_of(report, "passphrase") == {"fail"}
    assert status_of(report, "keys") == {"ok"}


@pytest.mark.parametrize(
    ("place", "check"),
    [
        (".agentguard", "state"),
        (".agentguard/shards", "state"),
        (".agentguard/registry.lock", "state"),
        (".agentguard/shards/0.lock", "state"),
        (".agentguard/shards/0.sqlite", "state"),
        ("anchor", "anchor"),
        ("anchor/0.checkpoint", "anchor"),
    ],
)
def test_what_can_not_be_written_is_found(changed, without_root_rights, place, check):
    (anchors,) = changed.anchor.iterdir()
    first, _slash, rest = place.partition("/")
    path = anchors / rest if first == "anchor" else changed.folder / place
    before = path.stat().st_mode
    path.chmod(before & ~0o222)
    try:
        result = changed.run("doctor", "--json", preexec_fn=without_root_rights)
    finally:
        path.chmod(before)
    report = json.loads(result.stdout)
    assert (result.returncode, status_of(report, check)) == (1, {"fail"})
    (what,) = [entry["what"] for entry in report["checks"] if entry["status"] == "fail"]
    assert what.startswith(f"{path} can't be written: every call is denied")
    assert changed.json("doctor")["ok"] is True


def test_a_wrong_passphrase(told):
    result = told.run("doctor", "--json", env={"AGENTGUARD_PASSPHRASE": "wrong"})
    assert result.returncode == 1
    assert status_of(json.loads(result.stdout), "keys") == {"fail"}


def test_a_log_that_was_changed(changed):
    with closing(sqlite3.connect(changed.state / "shards/0.sqlite")) as connection:
        connection.execute("DELETE FROM entries WHERE idx > 9")
        connection.commit()
    report = changed.json("doctor", code=1)
    assert "fail" in status_of(report, "log")
