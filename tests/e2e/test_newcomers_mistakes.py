"""What a newcomer's mistakes print: what is wrong, where, and what to do next.

Each case begins with a project as ``agentguard init`` makes it, and with the mistake in it. Beside
it stands the same without the mistake. What LangGraph has to do with is in
integrations/agentguard-langchain/tests/test_langchain_mistakes.py.
"""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import replace

import pytest

OPEN = """
from agentguard import Denied, Guard

guard = Guard.open("agentguard.toml")
"""


def change(project, old, new, file="agentguard.toml"):
    """Put the mistake into a file of the project."""
    path = project.folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def program(project, code):
    """The standard error of a program, on one line; a program that raises ends with its message."""
    ran = project.python("-c", OPEN + textwrap.dedent(code))
    return " ".join(ran.stderr.split())


def said(result):
    """What a command prints on both streams, on one line and without the frames of lines."""
    words = (result.stdout + result.stderr).replace("|", " ")
    return " ".join(words.split())


@pytest.fixture
def project(begun):
    """A project as ``agentguard init`` makes it, whose tools need no tables."""
    return begun.allow_unlisted()


@pytest.fixture
def lent(project):
    """The project, whose agent acts only under a delegation."""
    change(project, 'authority = "own"', 'authority = "delegated"')
    return project


READ = """
@guard.tool(requires=["files:read"])
def read_file(path: str) -> str:
    return "content"

assistant = guard.new_agent("assistant")
"""

# --- names --------------------------------------------------------------------------------------


def test_a_wrong_name_of_an_agent(project):
    assert (
        "agentguard.toml: there is no [agents.asistant]; known agents: assistant; did you mean "
        "assistant? Otherwise add the table"
    ) in program(project, 'guard.new_agent("asistant")')
    assert "correct the name, or add the table" in program(project, 'guard.new_agent("cook")')
    assert program(project, 'guard.new_agent("assistant")') == ""


def test_a_misspelt_scope_is_lent(lent):
    code = READ + 'guard.delegate("user:alice", scope=["{}"])'
    assert program(lent, code.format("file:read")) == (
        "user:alice delegates the scope file:read, which no agent, role or tool names "
        "(agentguard.toml): did you mean files:read? If so, correct the name"
    )
    assert program(lent, code.format("files:read")) == ""
    assert program(lent, code.format("files:write")) == ""  # another scope is no misspelling


def test_a_misspelt_scope_of_roles_is_lent(lent):
    tables = '[roles.reader]\nscope = ["files:read"]\n[principals."user:alice"]\nroles = ["reader"]'
    change(lent, "[policy]", f"{tables}\n[policy]")
    code = 'guard.delegate("{}", scope=["{}"])'
    assert program(lent, code.format("user:alice", "file:read")).endswith(
        "the roles of user:alice do not allow file:read: did you mean files:read? See [principals] "
        "and [roles] in agentguard.toml"
    )
    assert "did you mean user:alice?" in program(lent, code.format("user:alicia", "files:read"))
    assert program(lent, code.format("user:alice", "files:read")) == ""


def test_a_misspelt_scope_is_required(project):
    code = 'guard.tool(name="read_file", requires=["{}"])(lambda path: path)'
    assert program(project, code.format("file:read")) == (
        "the tool read_file requires the scope file:read, which no agent can have "
        "(agentguard.toml): did you mean files:read? If so, correct the name"
    )
    assert program(project, code.format("files:read")) == ""


def test_a_misspelt_tool(project):
    change(project, "# [tools.read_file]", '[tools.read_fiel]\nrequires = ["files:read"]')
    printed = program(project, READ)
    assert "[tools.read_fiel] names no tool of this program, and read_file has no table" in printed
    assert "did you mean read_file? Correct the name" in printed


@pytest.mark.parametrize(
    ("table", "advice"),
    [
        ("", "write [tools.read_file], with the scopes that the tool requires"),
        ("[tools.read_fiel]", "did you mean [tools.read_fiel]? Rename that table; or write"),
    ],
)
def test_a_tool_that_is_not_listed(project, table, advice):
    change(project, 'unlisted = "allow"', 'unlisted = "deny"')
    change(project, "# [tools.read_file]", table)
    late = 'assistant = guard.new_agent("assistant")\n' + READ.partition("assistant")[0]
    assert advice in program(project, late + 'assistant.call(read_file, "README.md")')


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (
            "max_scope",
            "max_scopes",
            (
                "agentguard.toml: agents.assistant.max_scopes: unknown key; did you mean "
                "max_scope? The keys of this table are: authority, conceals_secrets,"
            ),
        ),
        (
            "[agents.assistant]",
            "[agent.assistant]",
            "agentguard.toml: agent: unknown key; did you mean agents? The keys of this table are:",
        ),
        (
            "trust_domain",
            "trustdomain",
            "agentguard.toml: trustdomain: unknown key; did you mean trust_domain?",
        ),
        (
            'authority = "own"',
            'authority = "owner"',
            (
                "agentguard.toml: agents.assistant.authority: expected 'own' or 'delegated', got "
                "'owner'"
            ),
        ),
        (
            'max_scope = ["files:read"]',
            'roles = ["readr"]\n[roles.reader]\nscope = ["files:read"]',
            (
                "agentguard.toml: agents.assistant.roles: 'readr' is not one of [roles]: did you "
                "mean reader?"
            ),
        ),
    ],
)
def test_a_misspelt_key_or_table(project, right, wrong, message):
    assert program(project, "") == ""
    change(project, right, wrong)
    assert message in program(project, "")
    doctor = project.run("doctor")
    assert doctor.returncode == 1
    assert message in said(doctor)


def test_a_principal_without_a_kind(lent):
    code = 'guard.delegate("{}", scope=["files:read"])'
    assert program(lent, code.format("alice")).endswith(
        "'alice' is no name of a principal: write 'user:alice'; a name has one spelling, in lower "
        "case and with its kind"
    )
    assert program(lent, code.format("user:alice")) == ""


# --- calls --------------------------------------------------------------------------------------


def test_no_delegation_in_force(lent):
    printed = program(lent, READ + 'assistant.call(read_file, "README.md")')
    assert (
        "read_file was not run: agent assistant acts only under a delegation, and none" in printed
    )
    assert printed.endswith(
        "none is in force: make the call inside a block of guard.delegate(...), or with "
        'agent.under(delegation); an agent that acts by itself has authority = "own" in its table '
        "of [agents] [delegation.missing]"
    )


def test_a_tool_without_a_rule(project):
    printed = program(
        project,
        """
        @guard.tool
        def send_mail(to: str) -> None: ...

        try:
            guard.new_agent("assistant").call(send_mail, "bob")
        except Denied as denied:
            guard.close()
            raise SystemExit(f"{denied.code}: {denied.reason}")
        """,
    )
    assert printed.endswith("policy.denied: no rule of the policy allows this call")
    message, _, command = printed.rpartition(" once more: ")
    assert message.endswith(
        "no rule of the policy (policies/authz.rego) allows this call of send_mail by agent "
        "assistant. If the call is meant to run, add a rule, and ask the policy about the same call"
    )
    invocation = command.split()[3]
    assert command.startswith(
        f"agentguard audit show {invocation} --json | agentguard policy eval -"
    )
    shown = project.run("audit", "show", invocation, "--json")
    asked = project.run("policy", "eval", "-", input=shown.stdout)
    assert (asked.returncode, said(asked)) == (
        1,
        (
            "deny [policy.denied] no rule of the policy allows this call the policy does not name "
            "the tool send_mail: correct the name in the input, or add a rule for it"
        ),
    )
    change(project, '"read_file"}', '"read_file", "send_mail"}', "policies/authz.rego")
    asked = project.run("policy", "eval", "-", input=shown.stdout)
    assert "does not name the tool" not in said(asked)


def test_a_with_block_in_a_generator(lent):
    code = """
    def work():
        with guard.delegate("user:alice", scope=["files:read"]):
            {}

    list(work() or ())
    """
    assert program(lent, code.format("pass")) == ""
    printed = program(lent, code.format("yield 1"))
    assert "the block belongs to work, which is a generator" in printed
    assert (
        "go through the generator, or through what it goes through, with delegation.iterate"
        in printed
    )


# --- the policy and its tests -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            'allow if { input.action == "x"\n',
            (
                "policy.rego:4:1: expecting `}` while parsing query; close what was opened before "
                "this place"
            ),
        ),
        (
            'allow { input.action == "x" }\n',
            (
                "policy.rego:3:7: `if` keyword is required before rule body; this is the syntax of "
                "Rego v0; in v1 write NAME if {...}, and NAME contains ITEM if {...}"
            ),
        ),
        (
            'deny_reasons[text] { text := "no" }\n',
            (
                "policy.rego:3:20: `if` keyword is required before rule body; this is the syntax "
                "of Rego v0; in v1 write NAME if {...}, and NAME contains ITEM if {...}"
            ),
        ),
        (
            'allow if start_with(input.action, "x")\n',
            "policy.rego:3:10: there is no function start_with; did you mean startswith?",
        ),
        (
            "allow if input.action == 'x'\n",
            "invalid character; write a text in double quotation marks, and not in the place of !",
        ),
        (
            'allow if { input.action == "x" || input.action == "y" }\n',
            (
                "expecting expression; complete the expression; write a second rule of the same "
                "name in the place of an or"
            ),
        ),
    ],
)
def test_a_policy_with_a_mistake_in_its_syntax(project, rule, message):
    policy = project.folder / "policy.rego"
    policy.write_text(f"package agent.authz\ndefault allow := false\n{rule}")
    checked = project.run("policy", "check", policy.name)
    assert checked.returncode == 1
    assert message in said(checked)
    policy.write_text('package agent.authz\ndefault allow := false\nallow if input.action == "x"\n')
    assert project.run("policy", "check", policy.name).returncode == 0


def test_the_tests_of_the_starter_after_the_agent_has_another_name(project):
    assert project.run("policy", "test").returncode == 0
    change(project, "[agents.assistant]", "[agents.reader]")
    tested = project.run("policy", "test")
    assert tested.returncode == 1
    assert (
        "input.agent.name is assistant, and agentguard.toml has no [agents.assistant]: the agents "
        "are reader; correct the name in the input"
    ) in said(tested).replace(f"{project.folder}/", "")
    change(project, '"assistant"', '"reader"', "policies/authz_test.toml")
    change(project, 'type = "assistant"', 'type = "assistant"  # as the policy asks')
    assert project.run("policy", "test").returncode == 0


def test_the_tests_of_the_starter_after_a_tool_has_another_name(project):
    change(project, '"read_file"', '"read_files"', "policies/authz.rego")
    tested = project.run("policy", "test")
    assert tested.returncode == 1
    assert (
        "the policy does not name the tool read_file: did you mean read_files? Otherwise add a "
        "rule for it"
    ) in said(tested)
    change(project, '"read_file"', '"read_files"', "policies/authz_test.toml")
    assert project.run("policy", "test").returncode == 0


# --- the project --------------------------------------------------------------------------------


def test_init_a_second_time(project):
    again = project.run("init")
    assert again.returncode == 2
    assert (
        ".agentguard exists already, and nothing is overwritten: run agentguard doctor to check it"
    ) in said(again)
    other = project.run("init", "--trust-domain", "acme.example", "--anchor", "")
    assert other.returncode == 2
    assert (
        "agentguard.toml exists already, with the trust domain project.internal and the anchor "
        "~/.local/state/agentguard: leave out --trust-domain and --anchor to make the keys and the "
        "log for it, or name another folder for a new trust domain"
    ) in said(other)
    assert project.run("init", "new", "--trust-domain", "acme.example").returncode == 0


def test_a_copied_folder(project):
    call = READ + 'print(assistant.call(read_file, "README.md"))'
    copy = replace(project, folder=project.folder.parent / "copy")
    shutil.copytree(project.folder, copy.folder)
    assert program(project, call) == ""
    printed = program(copy, call)
    assert "agentguard adopt" in printed, printed


def test_a_configuration_without_its_state(project):
    shutil.rmtree(project.state)
    missing = f"there is no state at {project.state}: run agentguard init"
    assert missing in program(project, "")
    assert missing in said(project.run("audit", "list"))
    doctor = said(project.run("doctor"))
    assert (
        ".agentguard: run agentguard init, which makes the keys and the log that agentguard.toml "
        "names; or restore the state from a backup"
    ) in doctor
    assert doctor.count("fail") == 1
    assert project.run("init").returncode == 0
    assert program(project, "") == ""


def test_a_lost_passphrase(project):
    (file,) = (project.home / ".config" / "agentguard").glob("*.passphrase")
    kept = file.read_text()
    file.unlink()
    printed = program(project, "")
    assert (
        f"the file of the keys' passphrase, {file}, is not there: restore it, correct [keys] "
        "passphrase_file in agentguard.toml, or set AGENTGUARD_PASSPHRASE"
    ) in printed
    assert "if it is lost for good, move" in printed
    file.write_text("another")
    file.chmod(0o600)
    assert "the passphrase is not this private key file's" in program(project, "")
    file.write_text(kept)
    assert program(project, "") == ""


def test_no_configuration(project):
    (project.folder / "agentguard.toml").unlink()
    assert program(project, "").endswith(
        "there is no file agentguard.toml: run agentguard init, or name the right file"
    )
    found = project.python("-c", "from agentguard import Guard; Guard.find()")
    message = (
        f"there is no agentguard.toml in {project.folder} or above it: run agentguard init there, "
        "or go to the project's folder, or name the file with --config, or the state where a "
        "command has --state"
    )
    assert message in found.stderr
    assert message in said(project.run("audit", "list"))
    assert message in said(project.run("doctor"))
