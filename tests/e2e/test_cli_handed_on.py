"""What the log says of a call that another agent's call handed on, and of what the policy saw.

A lead hands work on to a writer in a tool. ``audit list``, ``audit show`` and ``evidence verify``
name that call, the facts of the policy, the origin of the tool and the keys of approvers, and
``agentguard doctor`` warns of nothing that is in order.
"""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from agentguard import Ed25519Signer

BOB = Ed25519Signer.from_seed(b"\7" * 32)

TOML = f"""
[agents.lead]
type = "assistant"
max_scope = ["notes:read", "notes:publish"]
[agents.writer]
type = "assistant"
max_scope = ["notes:read", "notes:publish"]

[delegation]
lead = ["writer"]

[tools.publish]
requires = ["notes:publish"]
resource = "note:{{name}}"
facts = {{ look_up = "facts:of_note", gives = ["owner"] }}

[approvers.bob]
principal = "user:bob"
keys = ["{BOB.public_key.openssh()}"]
"""
POLICY = """package agent.authz

default allow := false

allow if input.action in {"ask_writer", "read_note"}

allow if {
	input.action == "publish"
	input.owner == "user:alice"
}
"""
FACTS = """
def of_note(call):
    return {"owner": "user:alice"}
"""
CALLS = """
from agentguard import Guard

with Guard.open("agentguard.toml") as guard:
    lead, writer = guard.new_agent("lead"), guard.new_agent("writer")

    @guard.tool
    def publish(name: str) -> str:
        return "published " + name

    @guard.tool
    def ask_writer(name: str) -> str:
        return writer.call(publish, name)

    with guard.delegate("user:alice", scope=["notes:publish"], via="service:desk"):
        lead.call(ask_writer, "plan")
"""


@pytest.fixture(scope="module")
def handed_on(founded_with):
    """A project in which a lead has handed work on to a writer. Not to be changed."""
    made = founded_with(TOML, POLICY)
    (made.folder / "facts.py").write_text(FACTS)
    called = made.python("-c", CALLS)
    assert (called.returncode, called.stderr) == (0, "")
    return made


def calls(project):
    rows = project.lines("audit", "list", "--kind", "call")
    return {row["tool"]: row for row in rows}


def test_the_list_has_columns_for_principal_and_resource(handed_on):
    shown = handed_on.run("audit", "list", "--kind", "call").stdout.splitlines()
    assert shown[0].split()[-4:] == ["agent", "principal", "tool", "resource"]
    cells = [line.split() for line in shown if "call" in line.split()[2:3]]
    assert [(c[6], *c[7:]) for c in cells] == [
        ("user:alice", "ask_writer"),
        ("user:alice", "publish", "note:plan"),
    ]
    assert calls(handed_on)["publish"]["resource"] == "note:plan"
    assert calls(handed_on)["ask_writer"]["resource"] is None


def test_show_names_the_call_that_handed_work_on_the_facts_and_the_origin(handed_on):
    outer, inner = calls(handed_on)["ask_writer"], calls(handed_on)["publish"]
    story = handed_on.json("audit", "show", inner["invocation_id"])
    assert story["inside"] == outer["invocation_id"]
    assert story["inside_call"] == {
        "agent": outer["agent"],
        "tool": "ask_writer",
        "index": outer["index"],
    }
    assert story["tool"]["origin"] == "__main__:publish"
    assert story["facts"] == {"owner": "user:alice"}
    shown = handed_on.run("audit", "show", inner["invocation_id"]).stdout
    assert f"inside      | the call {outer['invocation_id']} of ask_writer by agent:lead:" in shown
    assert f"(entry {outer['index']}), which handed the work on\n" in shown
    assert "origin      | __main__:publish\n" in shown
    assert 'policy saw  | {"owner": "user:alice"}\n' in shown

    twin = handed_on.json("audit", "show", outer["invocation_id"])  # nothing is around that one
    assert (twin["inside"], twin["inside_call"], twin["facts"]) == (None, None, {})
    assert "inside" not in handed_on.run("audit", "show", outer["invocation_id"]).stdout


def test_the_evidence_names_them_as_well_and_an_edited_name_is_refused(handed_on, tmp_path):
    outer, inner = calls(handed_on)["ask_writer"], calls(handed_on)["publish"]
    file, trust = tmp_path / "evidence.json", tmp_path / "trust.json"
    made = handed_on.run("evidence", "make", inner["invocation_id"], "-o", file)
    assert made.returncode == 0, made.stderr
    assert handed_on.run("trust", "export", "-o", trust).returncode == 0
    proved = handed_on.json("evidence", "verify", file, "--trust", trust)
    assert (proved["inside"], proved["facts"]) == (outer["invocation_id"], {"owner": "user:alice"})
    assert proved["tool"]["origin"] == "__main__:publish"
    shown = handed_on.run("evidence", "verify", file, "--trust", trust).stdout
    assert f"| the call {outer['invocation_id']}, whose tool made this one" in shown
    assert re.search(r'^policy saw +\| {"owner": "user:alice"}$', shown, re.MULTILINE)
    assert re.search(r"^origin +\| __main__:publish$", shown, re.MULTILINE)

    text = file.read_text()
    for old, new in (("__main__:publish", "__main__:unrelat"), (outer["invocation_id"], "0" * 32)):
        # the invocation is the agent's signed statement, which the file holds in base64
        assert forged(text, old, new) != text
        file.write_text(forged(text, old, new))
        refused = handed_on.json("evidence", "verify", file, "--trust", trust, code=1)
        assert refused["ok"] is False


def forged(text: str, old: str, new: str) -> str:
    """Replace a text of equal length in each payload in base64, at any depth."""
    from base64 import b64decode, b64encode  # noqa: PLC0415

    def change(value: object) -> object:
        if isinstance(value, dict):
            return {name: change(one) for name, one in value.items()}
        if isinstance(value, list):
            return [change(one) for one in value]
        if isinstance(value, str) and len(value) > 40:
            try:
                data = b64decode(value, validate=True)
            except ValueError:
                return value
            changed = data.replace(old.encode(), new.encode())
            if changed == data and data.startswith(b"{"):
                try:
                    inner = json.loads(data)
                except ValueError:  # random bytes, which happen to begin so
                    return value
                changed = json.dumps(change(inner), separators=(",", ":")).encode()
            return b64encode(changed).decode() if changed != data else value
        return value

    return json.dumps(change(json.loads(text)))


def test_doctor_warns_of_nothing_that_is_in_order(handed_on):
    checks = handed_on.json("doctor", env={"PYTHONPATH": str(handed_on.folder)})["checks"]
    warned = [check["check"] for check in checks if check["status"] != "ok"]
    assert warned == []
    said = {check["what"] for check in checks if check["check"] == "tool ask_writer"}
    assert said == {"it hands work on to agents: [delegation] decides which agent may do so"}
    assert handed_on.run("policy", "check", env={"PYTHONPATH": str(handed_on.folder)}).stderr == ""


def test_doctor_still_warns_where_neither_decides(handed_on, tmp_path):
    copy = handed_on.copy(tmp_path / "copy")
    toml = copy.folder / "agentguard.toml"
    text = toml.read_text().replace('[delegation]\nlead = ["writer"]\n', "")
    toml.write_text(text.replace('facts = { look_up = "facts:of_note", gives = ["owner"] }\n', ""))
    warned = {c["check"]: c["what"] for c in copy.json("doctor")["checks"]}
    assert "only the policy decides; write [tools.ask_writer]" in warned["tool ask_writer"]
    assert "no tool gives input.owner; name it" in copy.run("policy", "check").stderr


def test_a_key_of_an_approver_is_shown_as_ssh_keygen_shows_it(handed_on, tmp_path):
    key = tmp_path / "bob.pub"
    key.write_text(BOB.public_key.openssh() + "\n")
    ran = subprocess.run(
        ["ssh-keygen", "-lf", key], capture_output=True, text=True, check=True
    ).stdout
    (roster,) = [row for row in handed_on.lines("audit", "list") if row["kind"] == "roster"]
    shown = handed_on.run("audit", "show", str(roster["index"])).stdout
    fingerprint = ran.split()[1]
    assert f"with {BOB.key_id} (ssh-keygen: {fingerprint})\n" in shown
    (line,) = [line for line in handed_on.run("doctor").stdout.splitlines() if "bob" in line]
    assert line.endswith(f"with 1 key, in no role: {fingerprint}")
