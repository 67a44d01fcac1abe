"""The releases of secrets in the commands that read the log, doctor, and the page of secrets."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import tomllib

import docs_pages
import pytest
from openbao import token_file

from agentguard.domain import config

VALUE = "hunter2-4711"
TABLE = """
[secrets.DEPLOY_TOKEN]
file = "token"
tools = ["deploy", "outer"]
"""
CALLS = """
from agentguard import Guard, secret

with Guard.open("agentguard.toml") as guard:
    agent = guard.new_agent("assistant")

    @guard.tool
    def deploy(path: str) -> str:
        return f"{path}: {secret('DEPLOY_TOKEN')} {secret('DEPLOY_TOKEN')}"

    @guard.tool
    def read_file(path: str) -> str:
        return "clear"

    print(agent.call(deploy, "README.md"), agent.call(read_file, "README.md"))
"""
PAGE = docs_pages.text("how-to/secrets")


@pytest.fixture
def released(begun):
    """A project with one call that got a secret twice, and one call that got none."""
    begun.allow_unlisted()
    toml = begun.folder / "agentguard.toml"
    toml.write_text(toml.read_text("utf-8") + TABLE, encoding="utf-8")
    policy = "package agent.authz\ndefault allow := true\n"
    text = tomllib.loads(toml.read_text("utf-8"))["policy"]["path"]
    (begun.folder / text).write_text(policy, encoding="utf-8")
    token = begun.folder / "token"
    token.write_text(f"{VALUE}\n", encoding="utf-8")
    token.chmod(0o600)
    called = begun.python("-c", CALLS)
    assert called.returncode == 0, called.stderr
    assert called.stdout == f"README.md: {VALUE} {VALUE} clear\n"
    return begun


def call_of(project, tool):
    rows = project.lines("audit", "list", "--kind", "call")
    return next(row["invocation_id"] for row in rows if row["tool"] == tool)


def test_the_log_verifies_and_no_command_shows_the_value(released):
    assert released.run("audit", "verify").returncode == 0
    for command in (["audit", "list", "--all"], ["audit", "export"], ["trace", "--last"]):
        printed = released.run(*command)
        assert printed.returncode == 0
        assert "deploy" in printed.stdout
        assert VALUE not in printed.stdout


def test_show_lists_the_secrets_of_a_call(released):
    told = released.json("audit", "show", call_of(released, "deploy"))
    assert [release["name"] for release in told["secrets"]] == ["DEPLOY_TOKEN", "DEPLOY_TOKEN"]
    assert told["outcome"]["result"] == {"$redacted": True}
    shown = released.run("audit", "show", call_of(released, "deploy")).stdout
    assert shown.count("DEPLOY_TOKEN, released at 20") == 2
    other = released.json("audit", "show", call_of(released, "read_file"))
    assert (other["secrets"], other["outcome"]["result"]) == ([], "clear")


def test_list_shows_the_releases_and_show_finds_their_call(released):
    rows = released.lines("audit", "list", "--kind", "secret")
    assert [row["kind"] for row in rows] == ["secret", "secret"]
    assert {row["invocation_id"] for row in rows} == {call_of(released, "deploy")}
    assert {row["tool"] for row in rows} == {"deploy"}
    assert {row["reason"] for row in rows} == {
        "the secret DEPLOY_TOKEN was released to the call",
    }
    told = released.json("audit", "show", str(rows[0]["index"]))
    assert told["invocation_id"] == call_of(released, "deploy")
    assert "DEPLOY_TOKEN" in released.run("audit", "list").stdout


def test_trace_has_the_secrets_at_their_calls(released):
    told = released.json("trace", "--last")
    secrets = {call["tool"]: call["secrets"] for call in told["calls"]}
    assert secrets == {"deploy": ["DEPLOY_TOKEN"], "read_file": []}
    assert "got the secret DEPLOY_TOKEN" in released.run("trace", "--last").stdout


def test_a_changed_column_hides_no_release(released):
    call = call_of(released, "deploy")
    with contextlib.closing(sqlite3.connect(released.state / "log.sqlite")) as connection:
        connection.execute("UPDATE entry SET invocation_id = 'x' WHERE kind = 'secret'")
        connection.commit()
    assert len(released.json("audit", "show", call)["secrets"]) == 2
    assert released.run("audit", "verify").returncode == 1


def test_a_call_with_secrets_can_be_proved(released, tmp_path):
    call, trust = call_of(released, "deploy"), tmp_path / "trust.json"
    assert released.run("trust", "export", "-o", trust).returncode == 0
    made = released.run("evidence", "make", call, "-o", tmp_path / "call.json")
    assert made.returncode == 0, made.stderr
    verified = released.run("evidence", "verify", tmp_path / "call.json", "--trust", trust)
    assert verified.returncode == 0
    assert VALUE.encode() not in (tmp_path / "call.json").read_bytes()


def test_doctor_looks_each_secret_up(released):
    def finding():
        checks = released.json("doctor", code=0 if is_good else 1)["checks"]
        (found,) = [check for check in checks if check["check"] == "secret DEPLOY_TOKEN"]
        return found["status"], found["what"]

    is_good, token = True, released.folder / "token"
    assert finding() == ("ok", f"{token} has a value, for deploy, outer")
    is_good = False
    token.chmod(0o644)
    assert finding() == ("fail", f"everybody can read {token}: run chmod o-rwx on it")
    token.unlink()
    status, what = finding()
    assert (status, "there is no file" in what) == ("fail", True)
    toml = released.folder / "agentguard.toml"
    text = toml.read_text("utf-8").replace('file = "token"', 'env = "AGENTGUARD_TEST_TOKEN"')
    toml.write_text(text, encoding="utf-8")
    is_good = True
    assert finding()[0] == "warn"


def test_doctor_looks_a_secret_up_in_openbao(begun, openbao):
    path = f"{openbao.mount()}/data/deploy"
    openbao.put(path, key=VALUE)
    token = openbao.token_for(path)
    toml = begun.folder / "agentguard.toml"
    table = (
        '[secrets.DEPLOY_TOKEN]\ntools = ["deploy"]\n[secrets.DEPLOY_TOKEN.vault]\n'
        f'url = "{openbao.url}"\npath = "{path}"\nfield = "key"\n'
        f'token_file = "{token_file(begun.folder, token)}"\n'
    )
    toml.write_text(f"{toml.read_text('utf-8')}\n{table}", encoding="utf-8")

    def finding(code):
        said = begun.run("doctor", "--json")
        assert said.returncode == code
        assert not any(text in said.stdout + said.stderr for text in (VALUE, token))
        checks = json.loads(said.stdout)["checks"]
        (found,) = [check for check in checks if check["check"] == "secret DEPLOY_TOKEN"]
        return found["status"], found["what"]

    assert finding(0) == ("ok", f"{path} of {openbao.url} has a value, for deploy")
    openbao.revoke(token)
    status, what = finding(1)
    assert (status, "403" in what, "renew the token" in what) == ("fail", True, True)


# --- the page -------------------------------------------------------------------------------------


def test_the_code_of_the_page_runs_and_prints_what_the_page_says(monkeypatch):
    monkeypatch.setenv("DEPLOY_TOKEN", "of this test")
    ((code, expected),) = docs_pages.prints(PAGE)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "secrets.md", "exec"), {})  # noqa: S102  the page's own code
    assert printed.getvalue() == expected


def test_the_tables_of_the_page_are_tables_of_a_configuration(tmp_path):
    for block in docs_pages.blocks(PAGE, "toml"):
        config.parse(tomllib.loads(block), source="secrets.md", base=tmp_path)
