"""``agentguard policy test`` is green only where what somebody wrote as a test has run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

REGO = """package agent.authz
allow if { input.agent.type == "assistant"; input.action == "read_file" }
"""
TABLE = """
[[case]]
name = "a file"
input.agent.name = "assistant"
input.action = "read_file"
expect = "allow"
"""
IN_JSON = json.dumps(
    {
        "case": [
            {
                "name": "a file",
                "input": {"agent": {"name": "assistant"}, "action": "read_file"},
                "expect": "allow",
            }
        ]
    }
)
IN_YAML = "case:\n  - name: a file\n    input: {action: read_file}\n    expect: allow\n"
TESTS = """package agent.authz_test
import data.agent.authz
test_a_file if authz.allow with input as {"agent": {"type": "assistant"}, "action": "read_file"}
"""
FAILS = TESTS.replace("authz.allow with", "not authz.allow with")
PUT_OFF = TESTS.replace("test_a_file", "todo_test_a_file")
NO_TESTS = TESTS.replace("test_a_file", "a_file_is_read")
INLINE = REGO + TESTS.partition("import data.agent.authz\n")[2].replace("authz.allow", "allow")


@pytest.fixture
def written(begun):
    """A project whose policy is the file ``policies/authz.rego``, with a table beside it."""
    (begun.folder / "policies" / "authz.rego").write_text(REGO)
    (begun.folder / "policies" / "authz_test.toml").write_text(TABLE)
    return begun


def with_folder(project) -> None:
    """Make the folder the policy."""
    toml = project.folder / "agentguard.toml"
    toml.write_text(toml.read_text().replace('"policies/authz.rego"', '"policies"'))


def beside(project, name: str, text: str) -> Path:
    file: Path = project.folder / "policies" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


TABLE_NAMED = "policies/authz_test.toml"


def test_a_named_table_stands_in_the_place_of_all_tests_but_for_an_opa_that_is_asked_for(
    written, opa_program
):
    beside(written, "authz_test.rego", FAILS)
    report = written.json("policy", "test", TABLE_NAMED)
    assert (report["ok"], report["ran"], report["rego"]) == (True, 1, [])
    on_path = {"PATH": f"{Path(opa_program).parent}:{os.environ['PATH']}"}
    for asked in (["--require-opa"], ["--opa", opa_program]):
        report = written.json("policy", "test", TABLE_NAMED, *asked, code=1, env=on_path)
        assert (report["ran"], report["failed"], report["missing"]) == (2, 1, None), asked
    beside(written, "authz_test.rego", TESTS)
    assert written.json("policy", "test", TABLE_NAMED, "--require-opa", env=on_path)["ran"] == 2


@pytest.mark.parametrize("named", [[], [TABLE_NAMED]])
@pytest.mark.parametrize(
    ("tests", "said"),
    [
        (None, "there is no *_test.rego beside policies/authz.rego"),
        (PUT_OFF, "all are put off (todo_)"),
        (TESTS, None),
    ],
)
def test_an_opa_that_is_required_has_run_a_test(written, opa_program, named, tests, said):
    if tests is not None:
        beside(written, "authz_test.rego", tests)
    asked = ["policy", "test", *named, "--opa", opa_program]
    ran = written.run(*asked, "--require-opa")
    if said is None:
        assert (ran.returncode, ran.stderr) == (0, "")
        return
    assert ran.returncode == 1
    assert f"error [test.none]: no Rego test ran, as --require-opa asks: {said}" in ran.stderr
    assert said in written.json(*asked, "--require-opa", code=1)["missing"]
    assert written.run(*asked).returncode == 0  # nobody asks for it


def test_an_opa_that_is_required_and_not_there_is_an_error(written, tmp_path):
    beside(written, "authz_test.rego", TESTS)
    bare = {"PATH": str(tmp_path)}
    for named in ([], [TABLE_NAMED]):
        ran = written.run("policy", "test", *named, "--require-opa", env=bare)
        assert ran.returncode == 1
        assert "as --require-opa asks: skipped 1 file of Rego tests: there is no opa" in ran.stderr
    assert written.run("policy", "test", TABLE_NAMED, env=bare).stderr == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("more_test.yaml", IN_YAML),
        ("more_test.yml", "- action: read_file\n"),
        ("more_test.TOML", TABLE),
        ("more_Test.toml", TABLE),
        ("more_test.JSON", IN_JSON),
        ("more_tests.toml", TABLE),
        ("test_more.json", IN_JSON),
        ("more.json", json.dumps(json.loads(IN_JSON), indent=2)),
        ("test_more.yaml", IN_YAML),
        ("more_test.REGO", TESTS),
        ("more_tests.rego", TESTS),
        ("test_more.rego", PUT_OFF),
    ],
)
def test_what_looks_like_a_test_and_would_be_passed_over_is_named(written, name, text):
    odd = beside(written, name, text)
    ran = written.run("policy", "test")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error [config.invalid]: ")
    assert name in ran.stderr
    assert written.run("policy", "test", TABLE_NAMED).returncode == 0
    odd.rename(odd.with_name(f".{name}"))
    assert written.run("policy", "test").returncode == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.json", '{"case": [], "expect": 1}'),
        ("input.json", '{"action": "read_file", "case": "7"}'),
        ("test_input.json", '{"action": "read_file"}'),
        ("settings.yaml", "expect: 1\n"),
        ("README_test.md", "[[case]]\nexpect = 'allow'\n"),
        ("other.rego", "package other\nallow if input.action == data.test_x\n"),
    ],
)
def test_what_is_no_test_may_lie_there(written, name, text):
    beside(written, name, text)
    ran = written.run("policy", "test")
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_folder_that_is_the_policy_is_looked_through_at_any_depth(written):
    with_folder(written)
    beside(written, "deep/more_test.toml", TABLE)
    assert written.json("policy", "test")["ran"] == 2
    beside(written, "deep/more_test.yaml", IN_YAML)
    ran = written.run("policy", "test")
    assert ran.returncode == 2
    assert "deep/more_test.yaml: nothing reads this table of cases" in ran.stderr


def test_beside_the_configuration_of_a_function_tables_are_named_as_well(written):
    toml = written.folder / "agentguard.toml"
    before, _, rest = toml.read_text().partition("[policy]\n")
    function = 'engine = "function"\npath = "rules:decide"'
    toml.write_text(f"{before}[policy]\n{function}\n[agents{rest.partition('[agents')[2]}")
    (written.folder / "rules.py").write_text(
        "from agentguard import Decision\ndef decide(call): return Decision.allow()\n"
    )
    (written.folder / "rules_test.toml").write_text(TABLE)
    env = {"PYTHONPATH": str(written.folder)}
    assert written.json("policy", "test", env=env)["ran"] == 1
    (written.folder / "rules_test.yaml").write_text(IN_YAML)
    assert written.run("policy", "test", env=env).returncode == 2


@pytest.mark.parametrize("folder", [False, True])
def test_tests_in_the_policys_own_file_run(written, opa_program, tmp_path, folder):
    if folder:
        with_folder(written)
    beside(written, "authz.rego", INLINE)
    report = written.json("policy", "test", "--opa", opa_program, "--require-opa")
    assert [(one["name"], one["passed"]) for one in report["rego"]] == [("test_a_file", True)]
    skipped = written.run("policy", "test", env={"PATH": str(tmp_path)})
    assert "skipped 1 file of Rego tests" in skipped.stderr
    beside(written, "authz.rego", INLINE.replace("if allow with", "if not allow with"))
    assert written.json("policy", "test", "--opa", opa_program, code=1)["failed"] == 1


def test_rego_files_without_a_test_are_named(written, opa_program):
    asked = ["policy", "test", "--opa", opa_program]
    none = beside(written, "authz_test.rego", NO_TESTS)
    ran = written.run(*asked)
    assert ran.returncode == 1
    assert "authz_test.rego: OPA finds no test in it" in ran.stderr
    assert "error [test.none]: no Rego test ran" in ran.stderr
    none.rename(none.with_name("helpers_test.rego"))
    beside(written, "authz_test.rego", TESTS)
    report = written.json(*asked)
    assert (report["ran"], report["missing"]) == (2, None)
    (warning,) = report["warnings"]
    assert "helpers_test.rego: OPA finds no test in it" in warning


def test_a_test_that_is_put_off_is_counted(written, opa_program):
    beside(written, "authz_test.rego", TESTS + "todo_test_later if false\n")
    ran = written.run("policy", "test", "--opa", opa_program)
    assert ran.returncode == 0
    assert "passed: 2 tests, 1 todo" in ran.stdout


def test_rego_tests_alone_do_not_pass_for_a_policy_that_no_guard_takes(written, opa_program):
    (written.folder / TABLE_NAMED).unlink()
    beside(written, "authz_test.rego", TESTS)
    asked = ["policy", "test", "--opa", opa_program]
    assert written.run(*asked).returncode == 0
    beside(written, "authz.rego", REGO + 'deny contains "odd" if input.args.odd\n')
    ran = written.run(*asked)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error [policy.invalid]: ")


@pytest.mark.parametrize(
    ("member", "given", "said"),
    [
        ("agent", {"role": ["lead"]}, "agent.role: unknown key; did you mean roles? "),
        ("agent", {"roles": "lead"}, "agent.roles: expected a list of strings"),
        ("agent", {"type": 1}, "agent.type: expected a string"),
        ("delegation", {"subject": "user:alice", "scopes": ["a"]}, "delegation.scopes: unknown"),
        ("delegation", {"subject": "user:alice", "depth": "1"}, "delegation.depth: expected a"),
        ("delegation", "user:alice", "delegation: expected a table"),
        ("tool", "read_file", "tool: expected a table"),
        ("tool", {"sha256": ""}, "tool.sha256: unknown key"),
        ("approval", {"approver": ["bob"]}, "approval.approver: unknown key"),
        ("task_id", 7, "task_id: expected a string"),
        ("resource", ["a"], "resource: expected a string"),
        ("agent", {"roles": ["lead"]}, None),
        ("delegation", {"subject": "user:alice", "via": None, "scope": ["a"]}, None),
        ("approval", {"approvers": ["bob"], "principals": ["user:bob"], "roles": []}, None),
        ("account", {"role": 1}, None),
        ("task_id", None, None),
    ],
)
def test_a_case_asks_about_a_call_that_can_be(written, member, given, said):
    call: dict[str, Any] = {"agent": {"name": "nobody"}, "action": "read_file", member: given}
    case = {"name": "x", "input": call, "expect": "deny" if member == "agent" else "allow"}
    if member != "agent":
        call["agent"] = {"name": "assistant"}
    table = written.folder / "one.json"
    table.write_text(json.dumps({"case": [case]}))
    ran = written.run("policy", "test", "one.json")
    if said is None:
        assert (ran.returncode, ran.stderr) == (0, "")
        return
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"error [config.invalid]: one.json: case 'x': input: {said}")


@pytest.mark.parametrize("named", ["policies", "policies/authz.rego"])
def test_a_policy_that_is_named_as_a_table_is_pointed_to_its_option(project, named):
    assert project.run("init").returncode == 0
    refused = project.run("policy", "test", named)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"{named} is no table of cases: --policy {named} " in " ".join(
        refused.stderr.replace("| ", "").split()
    )
    assert project.json("policy", "test", "--policy", named)["ok"] is True
