"""``agentguard policy test``: tables of cases for every engine, and Rego's tests by a real OPA."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

TABLE = """
input.agent.name = "assistant"

[[case]]
name = "one's own files"
input.action = "read_file"
input.args.path = "README.md"
expect = "allow"

[[case]]
name = "a hidden one"
input.action = "read_file"
input.args.path = ".ssh/id"
expect = "deny"
code = "policy.denied"
reasons = ["no hidden files"]

[[case]]
name = "a merge waits"
input.action = "merge"
input.delegation.subject = "user:alice"
expect = "approval"
"""
REGO = """package agent.authz
allow if { input.agent.type == "assistant"; input.action == "read_file" }
deny_reasons contains "no hidden files" if {
    is_string(input.args.path)
    startswith(input.args.path, ".")
}
approval := {"roles": ["lead"]} if { input.action == "merge"; input.delegation.depth == 1 }
"""
CEDAR = """
permit(principal, action == Action::"read_file", resource) when { principal.type == "assistant" };
@reason("no hidden files")
forbid(principal, action, resource) when { context.args has path && context.args.path like ".*" };
@approval("a lead") @roles("lead")
permit(principal, action == Action::"merge", resource) when { context.delegation.depth == 1 };
"""
PYTHON = """
from agentguard import Decision

def decide(call):
    if call["args"].get("path", "").startswith("."):
        return Decision.deny("no hidden files")
    if call["action"] == "merge" and call["delegation"]["depth"] == 1:
        return Decision.require_approval()
    return Decision.allow() if call["agent"]["type"] == "assistant" else Decision.deny()
"""
TESTS = """package agent.authz_test
import data.agent.authz
call(path) := {"agent": {"type": "assistant"}, "action": "read_file", "args": {"path": path}}
test_a_file if authz.allow with input as call("a")
test_a_hidden_file if count(authz.deny_reasons) == 1 with input as call(".a")
todo_test_later if false
"""


@pytest.fixture
def written(begun):
    """A project with a table beside its policy, in Rego."""
    (begun.folder / "policies" / "authz.rego").write_text(REGO)
    (begun.folder / "policies" / "authz_test.toml").write_text(TABLE)
    return begun


def configure(project, policy: str) -> None:
    toml = project.folder / "agentguard.toml"
    text = toml.read_text()
    before, _, rest = text.partition("[policy]\n")
    toml.write_text(f"{before}[policy]\n{policy}\n\n[agents{rest.partition('[agents')[2]}")


def engines(project, opa):
    """Each engine with the same policy: what to write into the configuration, and its table."""
    folder, table = project.folder, "policies/authz_test.toml"
    (folder / "cedar").mkdir()
    (folder / "cedar" / "authz.cedar").write_text(CEDAR)
    (folder / "cedar" / "authz_test.toml").write_text(TABLE)
    (folder / "rules.py").write_text(PYTHON)
    server = opa(folder / "policies" / "authz.rego")
    return {
        'path = "policies/authz.rego"': [],
        'path = "policies"': [],
        'engine = "cedar"\npath = "cedar"': [],
        'engine = "cedar"\npath = "cedar/authz.cedar"': [],
        'engine = "function"\npath = "rules:decide"': [table],
        f'engine = "opa"\nurl = "{server.url}"': [table],
    }


def test_one_table_holds_for_every_engine(written, opa):
    for policy, tables in engines(written, opa).items():
        configure(written, policy)
        env = {"PYTHONPATH": str(written.folder)}
        ran = written.run("policy", "test", *tables, env=env)
        assert (ran.returncode, ran.stderr) == (0, ""), policy
        assert "passed: 3 tests" in ran.stdout


def test_a_case_that_fails_says_what_came_instead(written):
    policy = written.folder / "policies" / "authz.rego"
    policy.write_text(REGO.replace("no hidden files", "no hidden file"))
    ran = written.run("policy", "test")
    assert ran.returncode == 1
    assert "1 failed of 3 tests" in ran.stdout
    assert "got deny [policy.denied]: no hidden file; expected the reasons no hidden" in ran.stdout
    report = written.json("policy", "test", code=1)
    assert (report["ok"], report["ran"], report["failed"], report["skipped"]) == (False, 3, 1, None)
    (failed,) = [case for case in report["cases"] if not case["ok"]]
    assert failed["name"] == "a hidden one"
    assert failed["expected"] == {
        "decision": "deny",
        "code": "policy.denied",
        "reasons": ["no hidden files"],
    }
    assert failed["got"] == failed["expected"] | {"reasons": ["no hidden file"]}
    policy.write_text(REGO)
    assert written.json("policy", "test")["failed"] == 0


@pytest.mark.parametrize(
    ("expect", "holds"),
    [
        ('expect = "deny"', True),
        ('expect = "deny"\nreasons = ["no hidden files"]', True),
        ('expect = "deny"\ncode = "policy.denied"', True),
        ('expect = "allow"', False),
        ('expect = "approval"', False),
        ('expect = "deny"\nreasons = []', False),
        ('expect = "deny"\nreasons = ["no hidden files", "another"]', False),
        ('expect = "deny"\ncode = "policy.error"', False),
        ('expect = "deny"\ncode = ""', False),
    ],
)
def test_decision_code_and_reasons_are_each_compared(written, expect, holds):
    table = written.folder / "one.toml"
    table.write_text(
        f'[[case]]\nname = "x"\ninput.action = "read_file"\ninput.args.path = ".a"\n{expect}\n'
    )
    assert written.run("policy", "test", "one.toml").returncode == (0 if holds else 1)


def test_an_input_is_filled_in_as_for_a_guarded_call(written):
    """Agent, roles of the principal, attributes and resource come from the configuration."""
    with (written.folder / "agentguard.toml").open("a") as toml:
        toml.write(
            '\n[roles.lead]\nscope = ["a"]\n[principals."user:alice"]\nroles = ["lead"]\n'
            '[tools.pay]\nresource = "account:{account}"\nattributes = { amount = "cents" }\n'
        )
    (written.folder / "policies" / "authz.rego").write_text(
        """package agent.authz
allow if {
    input.agent.type == "assistant"
    input.delegation.roles == ["lead"]
    input.delegation.chain == ["user:alice", input.agent.id]
    input.resource == "account:rent%2F1"
    input.amount == 5
    input.tool.name == "pay"
    input.task_id == null
}
"""
    )
    case: dict[str, Any] = {
        "name": "paid",
        "input": {
            "agent": {"name": "assistant"},
            "action": "pay",
            "args": {"account": "rent/1", "cents": 5},
            "delegation": {"subject": "user:alice"},
        },
        "expect": "allow",
    }
    table = written.folder / "pay.json"
    table.write_text(json.dumps({"case": [case]}))
    assert written.run("policy", "test", "pay.json").returncode == 0
    for member, value in (("amount", 6), ("resource", None), ("delegation", None)):
        other = case | {"input": case["input"] | {member: value}, "expect": "deny"}
        table.write_text(json.dumps({"case": [other]}))
        assert written.run("policy", "test", "pay.json").returncode == 0, member


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "case: expected a list of cases"),
        ("case = 1", "case: expected a list of cases"),
        ("x = ", "is no TOML"),
        ("[[case]]\n", "case 1: name: expected a string"),
        ('[[case]]\nname = "x"\n', "case 'x': input.action: expected the name of a tool"),
        ('[[case]]\nname = "x"\ninput.action = "a"\n', "case 'x': expect: expected 'allow' or"),
        (
            '[[case]]\nname = "x"\ninput.action = "a"\nexpect = "allowed"\n',
            "case 'x': expect: expected 'allow' or 'deny' or 'approval', got 'allowed'",
        ),
        (
            '[[case]]\nname = "x"\ninput.action = "a"\nexpect = "deny"\nreason = "r"\n',
            "case 'x': reason: unknown key",
        ),
        (
            '[[case]]\nname = "x"\ninput.action = "a"\nexpect = "deny"\nreasons = "r"\n',
            "case 'x': reasons: expected a list of strings",
        ),
        ('inputs.x = 1\n[[case]]\nname = "x"\ninput.action = "a"\nexpect = "deny"', "unknown key"),
        (
            '[[case]]\nname = "x"\ninput.action = "a"\ninput.at = 2026-01-01\nexpect = "deny"',
            "case 'x': input: ",
        ),
        (
            '[[case]]\nname = "x"\ninput.action = "a"\ninput.args = 1\nexpect = "deny"',
            "agent and args are objects",
        ),
        (
            '[[case]]\nname = "x"\ninput.action = "a"\ninput.delegation.via = "b"\nexpect = "deny"',
            "input.delegation.subject: expected for whom",
        ),
        (
            '[[case]]\nname = "x"\ninput.action = "a"\nexpect = "deny"\n' * 2,
            "two cases have the name 'x'",
        ),
    ],
)
def test_a_mistake_in_a_table_is_named(written, text, said):
    (written.folder / "odd.toml").write_text(text)
    ran = written.run("policy", "test", "odd.toml")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error [config.invalid]: odd.toml")
    assert said in ran.stderr


def test_rego_tests_run_by_a_real_opa(written, opa_program):
    tests = written.folder / "policies" / "authz_test.rego"
    tests.write_text(TESTS)
    for policy in ("policies/authz.rego", "policies"):
        configure(written, f'path = "{policy}"')
        report = written.json("policy", "test", "--opa", opa_program)
        assert (report["ok"], report["ran"], report["skipped"]) == (True, 5, None)
        assert [(one["name"], one["passed"]) for one in report["rego"]] == [
            ("test_a_file", True),
            ("test_a_hidden_file", True),
            ("todo_test_later", None),
        ]
    tests.write_text(TESTS.replace('call(".a")', 'call("b")'))
    ran = written.run("policy", "test", "--opa", opa_program)
    assert ran.returncode == 1
    assert "1 failed of 5 tests" in ran.stdout
    assert "authz_test.rego:5" in ran.stdout
    tests.write_text("package agent.authz_test\ntest_x if {")
    broken = written.run("policy", "test", "--opa", opa_program)
    assert (broken.returncode, broken.stdout) == (2, "")
    assert "can't load the policy and its tests" in broken.stderr
    on_path = {"PATH": f"{Path(opa_program).parent}:{os.environ['PATH']}"}
    tests.write_text(TESTS)
    assert written.run("policy", "test", "--require-opa", env=on_path).returncode == 0


def test_without_an_opa_rego_tests_are_skipped_and_that_is_said(written, tmp_path):
    (written.folder / "policies" / "authz_test.rego").write_text(TESTS)
    bare = {"PATH": str(tmp_path)}
    ran = written.run("policy", "test", env=bare)
    assert ran.returncode == 0
    assert "passed: 3 tests" in ran.stdout
    assert "skipped 1 file of Rego tests: there is no opa on PATH" in ran.stderr
    assert written.run("policy", "test", "--require-opa", env=bare).returncode == 1
    missing = written.run("policy", "test", "--opa", "no-such-opa")
    assert (missing.returncode, missing.stdout) == (2, "")

    (written.folder / "policies" / "authz_test.toml").unlink()
    nothing = written.run("policy", "test", env=bare)
    assert nothing.returncode == 1
    assert "error [test.none]: nothing ran" in nothing.stderr


def test_a_policy_that_can_not_be_used_is_no_denial_that_a_case_expects(written):
    (written.folder / "policies" / "authz.rego").write_text("package agent.authz\nallow if {")
    ran = written.run("policy", "test")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error [policy.invalid]: ")


def test_a_server_that_does_not_answer_is_no_denial_that_a_case_expects(written, opa):
    server = opa(written.folder / "policies" / "authz.rego")
    table = written.folder / "denied.toml"
    table.write_text(
        '[[case]]\nname = "x"\ninput.action = "read_file"\ninput.args.path = ".a"\n'
        'expect = "deny"\n'
    )
    configure(written, f'engine = "opa"\nurl = "{server.url}"')
    assert written.run("policy", "test", str(table)).returncode == 0
    misspelt = written.run("policy", "test", str(table), "--query", "data.agent.auhtz")
    assert (misspelt.returncode, misspelt.stdout) == (2, "")
    assert misspelt.stderr.startswith("error [policy.undefined]: ")
    server.stop()
    down = written.run("policy", "test", str(table))
    assert (down.returncode, down.stdout) == (2, "")
    assert down.stderr.startswith("error [engine.unreachable]: ")


@pytest.mark.parametrize(("code", "holds"), [("", False), ('code = "policy.error"', True)])
def test_a_policy_that_fails_denies_only_for_a_case_that_says_so(written, code, holds):
    (written.folder / "policies" / "authz.rego").write_text(
        "package agent.authz\nallow := false if startswith(input.args.path, 1)\n"
    )
    table = written.folder / "fails.toml"
    table.write_text(
        '[[case]]\nname = "x"\ninput.action = "read_file"\ninput.args.path = ".a"\n'
        f'expect = "deny"\n{code}\n'
    )
    ran = written.run("policy", "test", str(table))
    assert ran.returncode == (0 if holds else 1)
    assert ("name the code if it is expected" in ran.stdout) is not holds
