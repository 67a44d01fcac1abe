"""``agentguard policy check`` and ``eval``: the rule that a guard follows, before it has to."""

from __future__ import annotations

import json

import pytest

CALL = {
    "agent": {"type": "assistant"},
    "action": "read_file",
    "args": {"path": "README.md"},
    "paths": {"path": "README.md"},
}
ALLOW_ALL = "package agent.authz\ndefault allow := true\n"
FAILING = "package agent.authz\nallow if { input.action == 1 / input.zero }\n"


def test_check_says_what_a_policy_is(told):
    shown = told.run("policy", "check")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "sound" in shown.stdout
    assert "authz.rego" in shown.stdout
    assert "data.agent.authz" in shown.stdout
    found = told.json("policy", "check")
    about = ["ok", "engine", "policy_sha256", "evaluation", "files", "allows_unknown"]
    assert list(found) == [*about, "warnings", "undeclared"]
    assert found["evaluation"] is None
    assert found["warnings"] == []
    assert found["allows_unknown"] is False
    assert found["undeclared"] == []
    assert found["policy_sha256"] in shown.stdout


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("package agent.authz\nallow if {\n", "policy.rego:"),
        ('package agent.authz\nallow if startwith("a", "b")\n', "startswith"),
        ("package other\nallow := true\n", "other"),
        ('package agent.authz\nallow if { unsafe == "x" }\n', "policy.rego:2"),
    ],
)
def test_check_refuses_what_a_guard_refuses(project, policy, said):
    (project.folder / "policy.rego").write_text(policy)
    result = project.run("policy", "check", "policy.rego")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error [policy.invalid]: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    report = project.json("policy", "check", "policy.rego", code=1)
    assert (report["ok"], list(report)) == (False, ["ok", "problems"])
    assert (report["problems"][0]["code"], len(report["problems"])) == ("policy.invalid", 1)
    assert said in report["problems"][0]["what"]


def test_check_and_doctor_warn_of_a_folder_of_paths_that_is_not_there(project):
    """No file is in it, and nothing would say why a tool finds none."""
    assert project.run("init").returncode == 0
    toml = project.folder / "agentguard.toml"
    toml.write_text(toml.read_text().replace('path = "."', 'path = "missing"'))
    (said,) = project.json("policy", "check")["warnings"]
    lost = f"paths.path: there is no folder {project.folder / 'missing'}: "
    assert said == lost + "make the folder, or correct the path"
    warned = [c for c in project.json("doctor")["checks"] if c["status"] == "warn"]
    assert {"status": "warn", "check": "paths", "what": said} in warned
    (project.folder / "missing").mkdir()
    assert project.json("policy", "check")["warnings"] == []


def test_check_and_doctor_warn_of_input_that_nothing_declares(project):
    assert project.run("init").returncode == 0
    policy = project.folder / "policies" / "authz.rego"
    rule = '\n# input.said\ndeny_reasons contains "no" if input.amount != input["limit"]\n'
    policy.write_text(policy.read_text() + rule)
    assert project.json("policy", "check")["undeclared"] == ["amount", "limit"]
    result = project.run("policy", "check")
    assert result.returncode == 0
    assert "no tool gives input.amount; name it in attributes" in result.stderr
    toml = project.folder / "agentguard.toml"
    toml.write_text(toml.read_text() + '\n[tools.pay]\nattributes = { amount = "sum" }\n')
    assert project.json("policy", "check")["undeclared"] == ["limit"]
    assert project.json("policy", "check", policy)["undeclared"] == ["limit"]
    warned = [c for c in project.json("doctor")["checks"] if c["status"] == "warn"]
    assert [c["check"] for c in warned] == ["policy"]
    assert "input.limit" in warned[0]["what"]


def test_check_doctor_and_a_guard_warn_of_what_may_be_a_mistake(project):
    assert project.run("init").returncode == 0
    opened = ("-c", "from agentguard import Guard; Guard.open().close()")
    assert project.python(*opened).stderr == ""
    policy = project.folder / "policies" / "authz.rego"
    sound = policy.read_text()
    line = sound.count("\n") + 2
    policy.write_text(f"{sound}\nallow if input.args.amount >= 0\n")
    said = f"authz.rego:{line}:28: input.args.amount is compared by order"
    (warning,) = project.json("policy", "check")["warnings"]
    assert warning.startswith(said)
    assert "write is_number(input.args.amount)" in warning
    shown = project.run("policy", "check")
    assert shown.returncode == 0
    assert said in shown.stderr
    warned = [c["what"] for c in project.json("doctor")["checks"] if c["status"] == "warn"]
    assert warned == [warning]
    logged = project.python(*opened)
    assert logged.returncode == 0
    assert logged.stderr.count(said) == 1
    advised = "allow if { is_number(input.args.amount); input.args.amount >= 0 }"
    policy.write_text(f"{sound}\n{advised}\n")
    assert project.json("policy", "check")["warnings"] == []
    assert project.python(*opened).stderr == ""


def test_a_function_that_lies_beside_the_configuration_is_found_with_its_path(project):
    assert project.run("init").returncode == 0
    toml = project.folder / "agentguard.toml"
    text = toml.read_text().replace('engine = "rego" ', 'engine = "function" ')
    toml.write_text(text.replace('"policies/authz.rego"', '"rules:decide"'))
    (project.folder / "rules.py").write_text(
        "from agentguard import Decision\ndef decide(asked): return Decision.deny('never')\n"
    )
    result = project.interpreter("-P", "-m", "agentguard.cli", "policy", "check")
    assert result.returncode == 2
    assert f"set PYTHONPATH={project.folder}\n" in result.stderr
    found = project.environment | {"PYTHONPATH": str(project.folder)}
    result = project.interpreter("-P", "-m", "agentguard.cli", "policy", "check", env=found)
    assert (result.returncode, result.stderr) == (0, "")


def test_check_warns_of_a_policy_that_allows_the_unknown(project):
    (project.folder / "policy.rego").write_text(ALLOW_ALL)
    result = project.run("policy", "check", "policy.rego")
    assert result.returncode == 0
    assert "unknown agent" in result.stderr


@pytest.mark.parametrize(
    ("changes", "code", "decision", "reason"),
    [
        ({}, 0, "allow", ""),
        ({"action": "write_file"}, 1, "deny", "policy.denied"),
        ({"paths": {"path": ".env"}}, 1, "deny", "policy.denied"),
    ],
)
def test_eval_decides_as_a_guard_does(told, tmp_path, changes, code, decision, reason):
    (tmp_path / "call.json").write_text(json.dumps(CALL | changes))
    answer = told.json("policy", "eval", tmp_path / "call.json", code=code)
    assert list(answer) == ["decision", "code", "reasons", "policy_sha256", "evaluation"]
    assert (answer["decision"], answer["code"]) == (decision, reason)
    shown = told.run("policy", "eval", "-", input=json.dumps(CALL | changes))
    assert shown.returncode == code
    assert shown.stdout.startswith(decision)


def test_eval_agrees_with_the_log(told):
    """What was recorded as the policy's input gives the recorded decision again."""
    rows = [r for r in told.lines("audit", "list") if r["kind"] == "call"]
    for row in (rows[0], rows[3]):
        story = told.json("audit", "show", row["invocation_id"])
        result = told.run("policy", "eval", "-", "--json", input=json.dumps(story["input"]))
        again = json.loads(result.stdout)
        assert (again["decision"], again["reasons"]) == (story["decision"], story["reasons"])
        assert again["policy_sha256"] == story["policy_sha256"]


def test_a_policy_that_fails_denies(project):
    (project.folder / "policy.rego").write_text(FAILING)
    call = json.dumps(CALL | {"zero": 0})
    result = project.run("policy", "eval", "-", "--policy", "policy.rego", "--json", input=call)
    assert result.returncode == 1
    answer = json.loads(result.stdout)
    assert (answer["decision"], answer["code"]) == ("deny", "policy.error")


def test_what_a_policy_says_does_not_steer_the_screen(project):
    (project.folder / "policy.rego").write_text(
        'package agent.authz\ndeny_reason := "[red]no\\u001b[2J\\u202e\\nallow"\n'
    )
    result = project.run("policy", "eval", "-", "--policy", "policy.rego", input="{}")
    assert result.returncode == 1
    assert r"[red]no\x1b[2J\u202e\nallow" in result.stdout


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "json.malformed"),
        ("null", "json.not_object"),
        ("[]", "json.not_object"),
        ('{"a":1,"a":2}', "json.duplicate_key"),
    ],
)
def test_an_input_that_is_no_document(told, tmp_path, text, code):
    (tmp_path / "call.json").write_text(text)
    named = told.run("policy", "eval", tmp_path / "call.json")
    assert named.stderr.startswith(f"error [{code}]: {tmp_path / 'call.json'}")
    assert ("the policy was not asked about that call" in named.stderr) == (text == "null")
    result = told.run("policy", "eval", "-", input=text)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error [{code}]: ")


@pytest.mark.parametrize(
    ("command", "returned", "code"),
    [
        (["check", "nowhere.rego"], 2, "config.invalid"),
        (["eval", "nowhere.json", "--policy", "policy.rego"], 2, "config.missing"),
        (["check"], 2, "config.missing"),
        (["check", "policy.rego", "--query", "no query"], 1, "policy.invalid"),
    ],
)
def test_what_is_not_there_is_said(project, command, returned, code):
    (project.folder / "policy.rego").write_text(ALLOW_ALL)
    result = project.run("policy", *command)
    assert (result.returncode, result.stdout) == (returned, "")
    assert result.stderr.startswith(f"error [{code}]: ")
    assert result.stderr.count("\n") == 1


def test_a_policy_that_others_can_write_is_refused(project):
    policy = project.folder / "policy.rego"
    policy.write_text(ALLOW_ALL)
    policy.chmod(0o666)
    result = project.run("policy", "check", "policy.rego")
    assert result.returncode == 2
    assert result.stderr.startswith("error [config.exposed]: ")


def test_eval_and_test_say_what_does_not_fit_a_cedar_schema(project):
    folder = project.folder / "cedar"
    folder.mkdir()
    (folder / "p.cedar").write_text("permit(principal, action, resource);")
    (folder / "schema.cedarschema").write_text(
        "entity Role; entity Resource; entity Agent in [Role] = "
        "{name: String, id?: String, type?: String, instance?: String, roles?: Set<String>};"
        "type Context = {n: Long, args?: {}, tool?: {name: String, schema_sha256: String}};"
        'action "read" appliesTo {principal: Agent, resource: Resource, context: Context};'
    )
    for action, said in (("read", None), ("write", 'action `Action::"write"` does not exist')):
        asked = {"agent": {"name": "a"}, "action": action, "n": 1}
        (project.folder / "call.json").write_text(json.dumps(asked))
        shown = project.run("policy", "eval", "call.json", "--policy", folder)
        assert shown.returncode == (said is not None)
        assert shown.stdout.startswith("allow\n" if said is None else "deny [policy.undecided]\n")
        assert said is None or said in shown.stdout
    cases = "".join(
        f'[[case]]\nname = "{action}"\nexpect = "allow"\n'
        f'input = {{agent.name = "a", action = "{action}", n = 1}}\n'
        for action in ("read", "write")
    )
    (folder / "p_test.toml").write_text(cases)
    tested = project.run("policy", "test", "--policy", folder)
    assert tested.returncode == 1
    assert "1 failed of 2 tests" in tested.stdout
    assert 'action `Action::"write"` does not exist' in tested.stdout


def test_check_and_eval_take_cedar(project):
    text = 'permit(principal, action == Action::"read_file", resource);\n'
    (project.folder / "p.cedar").write_text(text)
    shown = project.run("policy", "check", "p.cedar")
    assert shown.returncode == 0
    assert shown.stdout.startswith("sound: cedar 4.")
    assert not any(line.endswith(" ") for line in shown.stdout.splitlines())
    assert "data." not in shown.stdout
    assert "no schema" in shown.stderr
    (project.folder / "call.json").write_text(json.dumps(CALL))
    assert project.run("policy", "eval", "call.json", "--policy", "p.cedar").stdout == "allow\n"
    (project.folder / "p.cedar").write_text("permit(principal, action, resource);\n")
    assert project.json("policy", "check", "p.cedar")["allows_unknown"] is True
    (project.folder / "p.cedar").write_text("permit(")
    assert project.json("policy", "check", "p.cedar", code=1)["problems"][0]["code"] == (
        "policy.invalid"
    )


def test_a_query_that_names_no_package_is_told_the_one_there_is(project):
    (project.folder / "p.rego").write_text(
        'package example.deploys\nallow if input.action == "x"\n'
    )
    assert project.run("init").returncode == 0
    for command in ("check", "replay"):
        refused = project.run("policy", command, "p.rego")
        said = " ".join(refused.stderr.replace("| ", "").split())
        assert refused.returncode in (1, 2)
        assert "which has data.example.deploys: ask with --query data.example.deploys" in said
        taken = project.run("policy", command, "p.rego", "--query", "data.example.deploys")
        assert taken.returncode == 0, taken.stderr
    refused = project.json("policy", "check", "p.rego", code=1)
    assert "ask with --query data.example.deploys" in refused["problems"][0]["what"]


@pytest.mark.parametrize(
    "command",
    [
        ("check", "http://127.0.0.1:1"),
        ("test", "--policy", "https://opa.example"),
        ("eval", "input.json", "--policy", "http://127.0.0.1:1"),
    ],
)
def test_a_url_is_sent_where_one_is_taken(project, command):
    refused = project.run("policy", *command)
    said = " ".join(refused.stderr.replace("| ", "").split())
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "only agentguard policy replay takes a URL" in said
    assert 'engine = "opa"' in said
    assert "--config FILE" in said
