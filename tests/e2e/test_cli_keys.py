"""``keys list``, ``keys rotate`` and ``revoke`` of a key, and what those who verify see of it."""

from __future__ import annotations

import json
import re

import pytest


def rows(project):
    return [(row["use"], row["state"]) for row in project.lines("keys", "list")]


def settled(project):
    found = project.json("audit", "verify")
    assert (found["ok"], found["witness"], found["problems"]) == (True, "same user", [])


def test_a_new_domain_has_three_keys(told):
    assert rows(told) == [("issuer", "current"), ("log", "current"), ("admin", "current")]
    table = told.run("keys", "list")
    assert table.returncode == 0
    assert [line.split()[0] for line in table.stdout.splitlines()][-3:] == [
        "issuer",
        "log",
        "admin",
    ]
    assert "UNTRUSTED" not in table.stderr + table.stdout


@pytest.mark.parametrize("use", ["issuer", "log", "admin"])
def test_a_key_is_rotated(changed, use):
    before = {row["use"]: row["kid"] for row in changed.lines("keys", "list")}
    exported = changed.run("trust", "export").stdout
    result = changed.run("keys", "rotate", use)
    assert result.returncode == 0, result.stderr
    said = re.fullmatch(
        rf"rotated: the new {use} key is (\S+)\n"
        r"(\S+) is valid until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n"
        r"next: run agentguard trust export, and give the file to everybody who verifies\n",
        result.stdout,
    )
    assert said is not None, result.stdout
    listed = changed.lines("keys", "list")
    assert said[2] == before[use]
    assert [(row["kid"], row["state"]) for row in listed if row["use"] == use] == [
        (before[use], "ending"),
        (said[1], "current"),
    ]
    doubt = changed.json("audit", "verify")["in_doubt"][0]
    assert changed.run("resolve", doubt, "--ran", "--note", "n").returncode == 0
    settled(changed)
    new = changed.run("trust", "export")
    assert new.returncode == 0
    assert len(json.loads(new.stdout)["keys"]) == 4
    old = changed.folder / "old-trust.json"
    old.write_text(exported)
    verified = changed.run("audit", "verify", "--trust", old)
    assert verified.returncode == 1  # whoever verifies needs the new document


def test_a_compromised_key(changed):
    since = "2020-01-01T00:00:00Z"
    result = changed.run("keys", "rotate", "admin", "--compromised-since", since)
    assert result.returncode == 0, result.stderr
    assert "is compromised since 2020-01-01 00:00:00" in result.stdout
    assert "is valid until" not in result.stdout
    assert [state for use, state in rows(changed) if use == "admin"] == ["compromised", "current"]
    settled(changed)  # it had signed nothing
    result = changed.run("keys", "rotate", "log", "--compromised-since", since)
    assert result.returncode == 0, result.stderr
    found = changed.json("audit", "verify", code=1)
    assert not found["ok"]


@pytest.mark.parametrize("key", ["-" + "Z" * 42, "--" + "Z" * 41])
def test_a_thumbprint_may_begin_with_a_dash(changed, key):
    since = ["--compromised-since", "2020-01-01T00:00:00Z"]
    for arguments in ([key, *since], [*since, key], [*since, "--", key]):
        result = changed.run("revoke", *arguments)
        assert result.returncode == 2
        assert key in result.stderr
        assert "option" not in result.stderr
    for misspelt in ("--compromised", "-compromised-since"):
        result = changed.run("revoke", key, misspelt, "2020-01-01T00:00:00Z")
        assert result.returncode == 2
        assert "No such option" in result.stderr


def test_a_rotated_key_is_revoked(changed):
    assert changed.run("keys", "rotate", "admin").returncode == 0
    admins = [row for row in changed.lines("keys", "list") if row["use"] == "admin"]
    ids = {row["state"]: row["kid"] for row in admins}
    old, new = ids["ending"], ids["current"]
    since = ["--compromised-since", "2020-01-01T00:00:00Z"]
    told = changed.run("revoke", old, "--note", "it leaked")
    assert (told.returncode, told.stdout) == (2, "")
    assert "the trust domain's own admin key: revoke it with --compromised-since" in told.stderr
    told = changed.run("revoke", new, "--note", "it leaked")
    assert "replace it: agentguard keys rotate admin --compromised-since TIME" in told.stderr
    for arguments in ([old], [old, *since, "--note", "it leaked"]):
        told = changed.run("revoke", *arguments)
        assert (told.returncode, told.stdout) == (2, "")
        assert "give --note TEXT; or, for a key" in " ".join(told.stderr.split())
    told = changed.run("revoke", new, *since)
    assert (told.returncode, "[key.current]" in told.stderr) == (2, True)
    assert changed.json("revoke", old, *since) == {
        "revoked": old,
        "use": "admin",
        "compromised_since": "2020-01-01T00:00:00.000000Z",
        "unfinished": None,
    }
    assert ("admin", "compromised") in rows(changed)
    again = changed.run("revoke", old, *since)
    assert (again.returncode, "[key.compromised]" in again.stderr) == (2, True)


def test_what_the_rotated_key_signed_is_proved_after(changed):
    call = next(
        row["invocation_id"] for row in changed.lines("audit", "list") if row["outcome"] == "ok"
    )
    early, late = changed.folder / "early.json", changed.folder / "late.json"
    assert changed.run("evidence", "make", call, "-o", early).returncode == 0
    for use in ("issuer", "log", "admin"):
        assert changed.run("keys", "rotate", use).returncode == 0
    trust = changed.folder / "trust.json"
    assert changed.run("trust", "export", "-o", trust).returncode == 0
    assert changed.run("evidence", "make", call, "-o", late).returncode == 0
    for proof in (early, late):
        result = changed.run("evidence", "verify", proof, "--trust", trust)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["rotate"], "issuer|log|admin"),
        (["rotate", "approver"], "approver"),
        (["rotate", "log", "--overlap", "1"], "too short: take 2 hours or more"),
        (["rotate", "log", "--overlap", "-5"], "Invalid value for '--overlap'"),
        (["rotate", "log", "--overlap", "soon"], "--overlap"),
        (["rotate", "log", "--overlap", "nan"], "Invalid value for '--overlap'"),
        (["rotate", "log", "--overlap", "1e12"], "Invalid value for '--overlap'"),
        (["rotate", "log", "--compromised-since", "yesterday"], "'yesterday' is not a time"),
        (["rotate", "log", "--compromised-since", "2h"], "'2h' is not a time"),
        (["rotate", "log", "--compromised-since", ""], "names nothing"),
        (["rotate", "log", "--compromised-since", "2026-01-01"], "has no offset"),
        (["rotate", "log", "--compromised-since", "2999-01-01T00:00:00Z"], "in the future"),
    ],
)
def test_what_is_no_rotation_changes_nothing(changed, arguments, match):
    before = changed.run("trust", "export").stdout
    result = changed.run("keys", *arguments)
    assert result.returncode == 2, result.stderr
    assert match in result.stderr
    assert "Traceback" not in result.stderr
    assert changed.run("trust", "export").stdout == before


def test_a_changed_trust_document_is_not_built_upon(changed):
    path = changed.state / "trust.json"
    document = json.loads(path.read_bytes())
    document["keys"][2]["not_before"] = 0
    path.write_text(json.dumps(document))
    for command in (["keys", "rotate", "log"], ["trust", "export"]):
        result = changed.run(*command)
        assert result.returncode == 2
        assert "[trust.changed]" in result.stderr
    listed = {row["use"]: row["not_before"] for row in changed.lines("keys", "list")}
    assert listed["admin"] > 0  # what is listed is the copy that is kept outside


def test_without_a_copy_outside_it_says_whom_it_believes(changed):
    result = changed.run("keys", "list", "--anchor", "")
    assert result.returncode == 0
    assert "UNTRUSTED KEY" in result.stderr + result.stdout
    (kept,) = changed.anchor.glob("*/trust.json")
    kept.unlink()
    result = changed.run("keys", "list")  # where there is an anchor, the state's does not do
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [trust.changed]: ")


def test_the_wrong_passphrase(changed):
    result = changed.run("keys", "rotate", "log", env={"AGENTGUARD_PASSPHRASE": "not it"})
    assert result.returncode == 2
    assert "[key.passphrase]" in result.stderr
    assert rows(changed) == [("issuer", "current"), ("log", "current"), ("admin", "current")]
