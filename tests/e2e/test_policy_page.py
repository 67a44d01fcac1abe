"""The pages about policies as a reader follows them: their policies, tables, commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commands
import docs_pages
import pytest

from agentguard import Decision, Denied, Guard, PolicyError
from agentguard.adapters import Arguments, ToolSpec
from agentguard.call import vocabulary
from agentguard.call.decision import MAX_REASON, MAX_REASONS
from agentguard.policy.document import decide, document
from agentguard.policy.function import FunctionEngine
from agentguard.policy.rego import RegoEngine
from agentguard.policy.rego.outputs import OUTPUTS
from agentguard.signing.canonical import Fragment, dumps

PAGE = docs_pages.text(
    "how-to/policies",
    "reference/policy-document",
    "how-to/opa",
    "reference/two-engines",
    "how-to/cedar",
    "how-to/test-policies",
)


def block(language: str, about: str = "") -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (text,) = (text for text in found if about in text)
    return str(text)


def table(header: str) -> list[list[str]]:
    """The rows of the table that begins with this header."""
    _, _, rest = PAGE.partition(f"| {header} |\n")
    lines = rest.partition("\n\n")[0].splitlines()[1:]
    return [line.strip("| ").split(" | ") for line in lines]


def code(cell: str) -> str:
    (found,) = re.findall(r"`([^`]*)`", cell)
    return str(found)


INPUT: dict[str, Any] = json.loads(block("json", '"action"'))
REGO = RegoEngine.from_source(block("rego"))


def python_policy() -> Callable[..., Decision]:
    names: dict[str, Any] = {}
    exec(compile(block("python", "def policy"), "policies.md", "exec"), names)  # noqa: S102  a reader would paste it
    function: Callable[..., Decision] = names["policy"]
    return function


PYTHON = FunctionEngine(python_policy())


@pytest.mark.parametrize("engine", [REGO, PYTHON], ids=["rego", "python"])
@pytest.mark.parametrize(
    ("changed", "outcome"),
    [
        ({}, "allow"),
        ({"amount": 50_000}, "allow"),
        ({"amount": 50_001}, "approval"),
        ({"amount": 0}, "deny"),
        ({"amount": None}, "deny"),
        ({"amount": True}, "deny"),
        ({"amount": "42000"}, "deny"),
        ({"amount": {"$int": "9007199254740993"}}, "deny"),
        ({"account": {"closed": True}}, "deny"),
        ({"action": "merge_pr"}, "deny"),
        ({"agent": INPUT["agent"] | {"type": "assistant"}}, "deny"),
    ],
)
def test_the_policies_decide_as_the_page_says(engine, changed, outcome):
    decision = decide(engine.evaluate(dumps(INPUT | changed)))
    assert decision.outcome == outcome
    assert decision.code in ("", "policy.denied", "approval.required")
    assert outcome != "allow" or decision.redactions == (("args", "note"),)


def test_without_its_attribute_the_call_is_denied():
    decision = decide(REGO.evaluate(dumps({n: v for n, v in INPUT.items() if n != "amount"})))
    assert decision.reasons == ("the amount must be a number above 0",)


def test_the_input_is_what_a_guard_makes():
    lifted = {"amount": "cents"}
    tool = ToolSpec("transfer", "", {}, "here", attributes=lifted, gives=("account",))
    made = document(
        Fragment(dumps(INPUT["agent"])),
        tool,
        Arguments.of(INPUT["args"]),
        resource=INPUT["resource"],
        task_id=INPUT["task_id"],
        facts={"account": {"closed": False}},
        delegation=Fragment(dumps(INPUT["delegation"])),
    )
    assert json.loads(made) == INPUT | {
        "tool": {"name": "transfer", "schema_sha256": tool.schema_sha256}
    }
    assert code(table("member | what it is | who fills it")[0][0]) == "agent"


def test_agent_and_delegation_are_as_a_guard_makes_them():
    seen: list[Any] = []

    def policy(call):
        seen.append(call)
        return Decision.allow()

    teller = {"type": "treasury", "roles": ["cashier"], "max_scope": ["payments:write"]}
    config = {
        "trust_domain": "acme.example",
        "roles": {"customer": {"scope": ["payments:write"]}, "cashier": {}},
        "principals": {"user:alice": {"roles": ["customer"]}},
        "agents": {"teller": teller},
    }
    with Guard.ephemeral(policy, config=config) as guard:

        @guard.tool(requires=["payments:write"])
        def transfer() -> None:
            """Transfer money."""

        agent = guard.new_agent("teller")
        with guard.delegate("user:alice", via="service:banking-app", task_id="may-rent"):
            agent.call(transfer)
    (call,) = seen
    written = json.loads(json.dumps(call).replace(call["agent"]["instance"], "i1"))
    for member in ("agent", "delegation", "task_id"):
        assert written[member] == INPUT[member]


FILLERS = {
    "guard": "agentguard",
    "proof": "the proof of the call",
    "arguments": "**the model**",
    "application": "the application",
}
"""The words of the page for who fills a member of the input."""


def test_the_members_of_a_delegation_are_all_there():
    rows = table("of `delegation` | what it is")
    (own,) = (member.members for member in vocabulary.INPUT if member.name == "delegation")
    assert [code(row[0]) for row in rows] == [member.name for member in own]
    for row, member in zip(rows, own, strict=True):
        named = set(re.findall(r"`(\w+)`", row[1]))
        assert named >= {below.name for below in member.members}


def test_the_members_of_the_input_are_all_there():
    rows = [row for row in table("member | what it is | who fills it") if "`" in row[0]]
    assert [code(row[0]) for row in rows] == [member.name for member in vocabulary.INPUT]
    for row, member in zip(rows, vocabulary.INPUT, strict=True):
        assert row[2].startswith(FILLERS[member.source])
        named = set(re.findall(r"`(\w+)`", row[1]))
        if member.name != "delegation":  # which has a table of its own
            assert named >= {below.name for below in member.members}
    (reserved,) = re.findall(r"\*\*Reserved names\*\* are (.*?)\.", PAGE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", reserved)) == vocabulary.RESERVED
    assert set(INPUT) - vocabulary.RESERVED == {"amount", "account"}


def test_a_guard_fills_the_members_that_the_table_says_are_always_there():
    always = {member.name for member in vocabulary.INPUT if member.always}
    assert always == INPUT.keys() & vocabulary.RESERVED
    for member in vocabulary.INPUT:
        if member.name in INPUT and member.kind == "object":
            names = {below.name for below in member.members}
            lacking = {below.name for below in member.members if not below.always}
            assert INPUT[member.name].keys() == names - lacking


def test_an_approval_has_these_members_and_defaults():
    (needed,) = decide({"approval": {}}).requirements
    rows = table("member | default | what it says")
    defaults = {code(name): default for name, default, _ in rows}
    absent = {"approvers", "roles"}
    assert {name: json.loads(code(defaults[name])) for name in defaults.keys() - absent} == (
        needed.as_json()
    )
    assert (needed.approvers, needed.roles) == (None, None)
    assert absent <= defaults.keys()


@pytest.mark.parametrize("row", table("the document | the decision"), ids=lambda row: row[0])
def test_a_document_is_the_decision_beside_it(row):
    decision = decide(json.loads(code(row[0])))
    said = f"{decision.outcome} `{decision.code}`" if decision.code else decision.outcome
    assert row[1] == said


def test_the_members_of_the_document_are_all_there():
    assert sorted(code(name) for name, _ in table("member | what it says")) == sorted(OUTPUTS)


@pytest.mark.parametrize("row", table("refused | for"), ids=lambda row: code(row[0]))
def test_what_the_page_says_is_refused_is_refused(row):
    with pytest.raises(PolicyError) as refused:
        RegoEngine.from_source(f"package agent.authz\n{code(row[0])}\n")
    assert refused.value.code == "policy.invalid"


def test_the_builtin_that_it_warns_of_is_there_and_those_of_chance_are_refused():
    assert "What `time.now_ns` returns is no part" in PAGE
    RegoEngine.from_source("package agent.authz\nx := time.now_ns()\n")
    assert "`rand.intn` and `uuid.rfc4122` are refused" in PAGE
    for call in ('rand.intn("a", 9)', 'uuid.rfc4122("a")'):
        with pytest.raises(PolicyError, match="has another value in each evaluation"):
            RegoEngine.from_source(f"package agent.authz\nx := {call}\n")


def test_null_stands_below_every_number_and_text_above():
    engine = RegoEngine.from_source("package agent.authz\nallow if input.amount <= 50000\n")
    values: list[Any] = [None, False, True, 1, "1", [], {}]
    below = {
        json.dumps(value): decide(engine.evaluate(dumps({"amount": value}))).allowed
        for value in values
    }
    assert below == {
        **dict.fromkeys(("null", "false", "true", "1"), True),
        **dict.fromkeys(('"1"', "[]", "{}"), False),
    }


def test_reasons_are_cut_as_it_says():
    assert f"the first {MAX_REASONS} of them and {MAX_REASON} characters of each" in PAGE


def test_a_guarded_call_reads_attribute_and_fact(tmp_path):
    (tmp_path / "transfers.rego").write_text(block("rego"))
    agents = {"teller": {"type": "treasury", "authority": "own"}}
    closed = {"rent": False, "old": True}
    with Guard.ephemeral(tmp_path / "transfers.rego", config={"agents": agents}) as guard:

        @guard.tool(
            attributes={"amount": "cents"},
            facts=lambda args: {"account": {"closed": closed[args["account"]]}},
            gives=["account"],
        )
        def transfer(account: str, cents: Any, note: str = "") -> str:
            return f"{cents} to {account}{note}"

        teller = guard.new_agent("teller")
        assert teller.call(transfer, "rent", 42_000) == "42000 to rent"
        refused: dict[str, tuple[str, Any]] = {
            "policy.denied": ("old", 1),
            "approval.unavailable": ("rent", 60_000),
            "facts.failed": ("nowhere", 1),
        }
        for reason_code, arguments in refused.items():
            with pytest.raises(Denied) as denied:
                teller.call(transfer, *arguments)
            assert denied.value.code == reason_code


def shown_commands() -> Iterator[tuple[str, str]]:
    """Each command of the page, and what it prints."""
    for shown in block("console", "transfers_test").split("$ ")[1:]:
        command, _, printed = shown.partition("\n")
        yield command, printed


def test_the_commands_print_what_the_page_shows(tmp_path):
    (tmp_path / "transfers.rego").write_text(block("rego"))
    (tmp_path / "call.json").write_text(block("json", '"action"'))
    begins = r"^```toml\n(# transfers_test\.toml\n.*?)^```$"
    (table,) = re.findall(begins, PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "transfers_test.toml").write_text(table)
    environment = {**os.environ, "HOME": str(tmp_path), "COLUMNS": "120"}
    for command, printed in shown_commands():
        piped, _, words = command.rpartition("agentguard ")
        given = subprocess.check_output(piped.rstrip(" |"), shell=True, cwd=tmp_path, text=True)  # noqa: S602
        ran = commands.run(shlex.split(words), env=environment, cwd=tmp_path, stdin=given)
        if "policy check" in command:  # it prints digests
            assert (ran.returncode, ran.stdout.startswith("sound: rego")) == (0, True)
            # of these the page tells, and of no other warning
            assert re.findall(r"no tool gives input\.(\w+)", ran.stderr) == ["account", "amount"]
            assert ran.stderr.count("warn: ") == 2
        else:
            assert ran.stdout == printed
            assert ran.returncode == int(not re.match(r"allow|.*\npassed", printed, re.DOTALL))


def built(command: str, opa_program: str, folder: Path) -> tuple[list[str], list[str]]:
    """The roots of the bundle that a command of the page makes, and its files in Rego."""
    _opa, *arguments = shlex.split(command)
    subprocess.run([opa_program, *arguments], cwd=folder, check=True, capture_output=True)
    with tarfile.open(folder / "authz.tar.gz") as bundle:
        manifest = bundle.extractfile("/.manifest")
        assert manifest is not None
        names = [name for name in bundle.getnames() if name.endswith(".rego")]
        return json.loads(manifest.read())["roots"], names


def test_the_bundle_of_the_page_has_a_root_of_its_own_and_no_hidden_file(opa_program, tmp_path):
    policies = tmp_path / "policies"
    (policies / ".git").mkdir(parents=True)
    for name in ("authz", "authz_test", ".hidden", ".git/other"):
        (policies / f"{name}.rego").write_text("package agent.authz\n\ndefault allow := false\n")
    (policies / ".manifest").write_text(block("json", "roots"))
    first, second = re.findall(r"^\$ (opa build .*)$", PAGE, re.MULTILINE)
    for command in (first, second):
        assert built(command, opa_program, tmp_path) == (["agent"], ["/policies/authz.rego"])
    dropped = first.replace(".[^m]*", ".*")
    assert built(dropped, opa_program, tmp_path) == ([""], ["/policies/authz.rego"])
