"""``agentguard evidence make`` and ``evidence verify``: from one machine to a stranger's screen."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "verify_evidence" / "verify_evidence.py"
HOSTILE_TOOL = "evil[red]\x1b[31m\u202etool"


def call_of(told, tool: str, nth: int = 0) -> str:
    rows = told.lines("audit", "list")
    calls = [r for r in rows if r["kind"] == "call" and r["tool"] == tool]
    return str(calls[nth]["invocation_id"])


@pytest.fixture(scope="module")
def calls(told):
    """The calls of ``read_file``: ok, error, unknown, denied, hostile, not run, in doubt."""
    rows = told.lines("audit", "list")
    return [r["invocation_id"] for r in rows if r["kind"] == "call" and r["tool"][0] == "r"]


@pytest.fixture
def stranger(told, tmp_path):
    """Somebody elsewhere, who has nothing but the trust document."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert told.run("trust", "export", "-o", folder / "trust.json").returncode == 0
    return folder


def test_a_call_is_named_as_show_takes_it(told, calls):
    rows = told.lines("audit", "list", "--kind", "call")
    (index,) = [row["index"] for row in rows if row["invocation_id"] == calls[0]]
    whole = told.run("evidence", "make", calls[0], "-o", "-").stdout
    for name in (calls[0][:8], str(index), str(index + 1)):
        proved = told.run("evidence", "make", name, "-o", "-")
        assert (proved.returncode, proved.stdout) == (0, whole), proved.stderr


def check(told, stranger, *args, home="/nonexistent", **options):
    """Verify in another process, in the stranger's folder, without a home."""
    command = ["evidence", "verify", *args, "--trust", "trust.json"]
    return told.run(*command, cwd=stranger, env={"HOME": home}, **options)


def test_a_call_is_proved_to_a_stranger(told, calls, stranger):
    file = stranger / "call.json"
    made = told.run("evidence", "make", calls[0], "-o", file)
    assert (made.returncode, made.stderr) == (0, "")
    assert f"proves the call {calls[0]}" in made.stdout
    shown = check(told, stranger, "call.json")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("proved, under the keys of project.internal:\n")
    digest = hashlib.sha256((stranger / "trust.json").read_bytes()).hexdigest()
    trusted = f"trust: project.internal, from trust.json\nits fingerprint (SHA-256): {digest}\n"
    assert shown.stdout.endswith(trusted)
    text = " ".join(shown.stdout.replace("| ", "").split())
    for words in (
        f"call {calls[0]}",
        "agent agent:assistant:",
        "issuer says name assistant, type assistant",
        "for agent:assistant, on its own authority",
        "tool read_file",
        'arguments {"path": "README.md"}',
        "resource file:README.md",
        "decision allow",
        "policy rego ",
        "approvals none",
        "outcome ok",
        'result "the content of README.md"',
        "by the log key ",
        "What this file can't prove:",
        "the time: every time here is a claim of the log",
        "other code in the same process can use the key",
        "whether a person approved",
    ):
        assert words in text, words
    index = next(r["index"] for r in told.lines("audit", "list") if r["invocation_id"] == calls[0])
    assert f"log entry {index} of project.internal/log/" in text
    assert f"the signed call names a checkpoint of the same log, with {index} entries" in text
    assert "whether there was an outcome" not in text


def test_its_json_says_the_same(told, calls, stranger):
    told.run("evidence", "make", calls[0], "-o", stranger / "call.json")
    said = json.loads(check(told, stranger, "call.json", "--json").stdout)
    story = told.json("audit", "show", calls[0])
    assert said["ok"] is True
    for name in ("invocation_id", "agent", "principal", "tool", "arguments", "input", "resource"):
        assert said[name] == story[name], name
    for name in ("decision", "code", "reasons", "engine", "policy_sha256", "config_sha256", "at"):
        assert said[name] == story[name], name
    assert said["outcome"]["result"] == "the content of README.md"
    assert said["outcome"]["status"] == "ok"
    assert said["credential"]["type"] == "assistant"
    assert said["approvals"] == []
    point = said["checkpoint"]
    assert point["size"] == told.json("audit", "verify")["entries"]
    assert len(said["unknown"]) == 4
    assert said["trust_domain"] == "project.internal"
    assert (
        said["trust_sha256"] == hashlib.sha256((stranger / "trust.json").read_bytes()).hexdigest()
    )


def test_several_files_are_a_table_and_each_is_an_object_of_json(told, calls, stranger):
    names = ["one.json", "two.json", "doubt.json"]
    for name, call in zip(names, (calls[0], calls[3], calls[6]), strict=True):
        told.run("evidence", "make", call, "-o", stranger / name)
    shown = check(told, stranger, *names)
    assert (shown.returncode, shown.stderr) == (0, "")
    rows = [line.split() for line in shown.stdout.splitlines()[1:4]]
    assert [row[0] for row in rows] == ["proved"] * 3
    assert [row[2] for row in rows] == ["allow", "deny", "allow"]
    assert [row[3] for row in (rows[0], rows[2])] == ["ok", "in_doubt"]
    assert rows[1][3].startswith("agent:")  # a call that was denied has no outcome
    assert [row[-1] for row in rows] == names
    assert "3 of 3 files proved\ntrust: project.internal, from trust.json\n" in shown.stdout
    (stranger / "bad.json").write_bytes(b"{}")
    bad = check(told, stranger, "one.json", "bad.json", "absent.json", "two.json")
    assert bad.returncode == 1
    assert "FAILED" in bad.stdout
    assert "[evidence.malformed]: " in bad.stdout
    assert "[storage.missing]: " in bad.stdout
    assert "2 of 4 files proved" in bad.stdout
    lines = check(told, stranger, "one.json", "bad.json", "two.json", "--json").stdout.splitlines()
    said = [json.loads(line) for line in lines]
    assert [(one["file"], one["ok"]) for one in said] == [
        ("one.json", True),
        ("bad.json", False),
        ("two.json", True),
    ]
    alone = json.loads(check(told, stranger, "one.json", "--json").stdout)
    assert said[0] == {"file": "one.json", **alone}
    stdin = check(told, stranger, "one.json", "-")
    assert stdin.returncode == 2
    assert "stands alone" in stdin.stderr


@pytest.mark.parametrize(
    ("nth", "said"),
    [
        (1, ["outcome error", "error builtins.FileNotFoundError"]),
        (2, ["outcome unknown"]),
        (3, ["decision deny [policy.denied]", "hidden file", "the tool did not run"]),
        (5, ["interrupted before it ran"]),
        (6, ["in doubt: the file has no outcome", "whether there was an outcome"]),
    ],
)
def test_it_says_how_the_call_ended(told, calls, stranger, nth, said):
    told.run("evidence", "make", calls[nth], "-o", stranger / "call.json")
    shown = check(told, stranger, "call.json")
    assert shown.returncode == 0
    for words in said:
        assert words in " ".join(shown.stdout.replace("| ", "").split())


def test_arguments_are_left_out_if_asked(told, calls, stranger):
    made = told.run("evidence", "make", calls[0], "-o", stranger / "a.json", "--without-arguments")
    assert made.returncode == 0
    assert b"README.md" not in (stranger / "a.json").read_bytes().replace(b"file:README.md", b"")
    shown = check(told, stranger, "a.json")
    text = " ".join(shown.stdout.replace("| ", "").split())
    assert shown.returncode == 0
    assert "arguments not in the file, or erased; their commitment is " in text
    assert "result not in the file, or erased; its commitment is " in text
    assert "the arguments, the policy's input, the result: the file has only the commitment" in text
    said = json.loads(check(told, stranger, "a.json", "--json").stdout)
    assert (said["arguments"], said["outcome"]["result"]) == (None, None)
    assert re.fullmatch(r"[0-9a-f]{64}", said["commitments"]["arguments"])


def test_a_pipe_needs_no_file(told, calls, stranger):
    made = told.run("evidence", "make", calls[0], "-o", "-")
    assert made.returncode == 0
    told.run("evidence", "make", calls[0], "-o", stranger / "call.json")
    assert made.stdout.encode() == (stranger / "call.json").read_bytes()
    assert check(told, stranger, "-", input=made.stdout).returncode == 0


def test_nothing_is_overwritten_unasked(told, calls, stranger):
    file = stranger / "call.json"
    file.write_text("mine")
    again = told.run("evidence", "make", calls[0], "-o", file)
    assert (again.returncode, file.read_text()) == (2, "mine")
    assert again.stderr.startswith("error [storage.exists]: ")
    assert told.run("evidence", "make", calls[0], "-o", file, "--force").returncode == 0
    assert check(told, stranger, "call.json").returncode == 0


@pytest.mark.parametrize("wanted", ["f" * 32, "9999", ""])
def test_an_unknown_call_is_a_clear_error(told, stranger, wanted):
    result = told.run("evidence", "make", wanted, "-o", stranger / "call.json")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [call.unknown]: ")
    assert not (stranger / "call.json").exists()


def test_what_does_not_hold_is_refused(told, calls, stranger):
    file = stranger / "call.json"
    told.run("evidence", "make", calls[0], "-o", file)
    file.write_bytes(file.read_bytes().replace(b"README.md", b"SECRET.md"))
    shown = check(told, stranger, "call.json")
    assert (shown.returncode, shown.stderr) == (1, "")
    assert shown.stdout.startswith("FAILED [")
    assert "README" not in shown.stdout
    said = json.loads(check(told, stranger, "call.json", "--json").stdout)
    assert sorted(said) == ["code", "ok", "problem", "trust_domain", "trust_sha256"]
    assert said["ok"] is False
    assert (
        said["trust_sha256"] == hashlib.sha256((stranger / "trust.json").read_bytes()).hexdigest()
    )


def test_another_domain_s_trust_document_believes_nothing(told, calls, stranger, project):
    assert project.run("init", "--trust-domain", "project.internal").returncode == 0
    told.run("evidence", "make", calls[0], "-o", stranger / "call.json")
    (stranger / "trust.json").unlink()
    assert project.run("trust", "export", "-o", stranger / "trust.json").returncode == 0
    shown = check(told, stranger, "call.json")
    assert (shown.returncode, shown.stdout[:27]) == (1, "FAILED [checkpoint.origin]:")
    line = shown.stdout.partition("\n")[0]
    assert "the log of the trust document" in line
    assert line.endswith("one of the two is not the one you mean")


def test_a_mistake_is_no_verdict(told, calls, stranger):
    missing = check(told, stranger, "call.json")
    assert (missing.returncode, missing.stderr[:24]) == (2, "error [storage.missing]:")
    told.run("evidence", "make", calls[0], "-o", stranger / "call.json")
    (stranger / "trust.json").write_text("{}")
    wrong = check(told, stranger, "call.json")
    assert (wrong.returncode, wrong.stderr[:25]) == (2, "error [trust.malformed]: ")
    bare = told.run("evidence", "verify", "call.json", cwd=stranger)
    assert (bare.returncode, "--trust" in bare.stderr) == (2, True)


def test_what_the_administrator_said_is_told(changed, stranger):
    doubtful, ran = call_of(changed, "read_file", 6), call_of(changed, "read_file", 0)
    note = "the file\x1b[2J is there"
    assert changed.run("resolve", doubtful, "--ran", "--note", note).returncode == 0
    erased = changed.run("erase", ran, "--note", "asked for", "--yes")
    assert erased.returncode == 0
    for wanted, words in (
        (doubtful, ["in doubt", "resolved the tool ran, by the admin key", r"file\x1b[2J is"]),
        (ran, ["outcome ok", "erased its data, by the admin key", "asked for", "not in the file"]),
    ):
        made = changed.run("evidence", "make", wanted, "-o", stranger / "call.json", "--force")
        assert (made.returncode, made.stderr) == (0, "")
        shown = check(changed, stranger, "call.json")
        assert shown.returncode == 0
        for said in words:
            assert said in " ".join(shown.stdout.replace("| ", "").split()), said
    said = json.loads(check(changed, stranger, "call.json", "--json").stdout)
    assert said["arguments"] is None
    assert [erasure["note"] for erasure in said["erasures"]] == ["asked for"]
    command = [sys.executable, str(EXAMPLE), "call.json", "trust.json"]
    independent = subprocess.run(command, cwd=stranger, capture_output=True, check=False)
    assert (independent.returncode, independent.stderr) == (0, b"")


def test_nothing_is_written_that_would_not_be_believed(told, calls, tmp_path):
    """What was made is verified first, under the trust document that is named."""
    assert told.run("trust", "export", "-o", tmp_path / "trust.json").returncode == 0
    trust = json.loads((tmp_path / "trust.json").read_text())
    arguments = ["evidence", "make", calls[0], "-o", tmp_path / "call.json", "--trust"]
    assert told.run(*arguments, tmp_path / "trust.json", "--force").returncode == 0
    (tmp_path / "call.json").unlink()
    trust["keys"] = [{**key, "not_after": key["not_before"]} for key in trust["keys"]]
    (tmp_path / "trust.json").write_text(json.dumps(trust))
    result = told.run(*arguments, tmp_path / "trust.json")
    assert (result.returncode, result.stdout) == (2, "")
    problem = f"error [key.expired]: the log does not prove the call {calls[0]} ("
    assert result.stderr.startswith(problem)
    assert not (tmp_path / "call.json").exists()


def test_nothing_from_a_model_steers_the_screen(told, calls, stranger):
    for wanted in (calls[4], call_of(told, HOSTILE_TOOL)):
        told.run("evidence", "make", wanted, "-o", stranger / "call.json", "--force")
        shown = check(told, stranger, "call.json").stdout
        categories = {unicodedata.category(c) for c in shown.replace("\n", "")}
        assert categories.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
        assert check(told, stranger, "call.json", "--json").stdout.isascii()
    shown = check(told, stranger, "call.json").stdout
    assert r"evil[red]\x1b[31m\u202etool" in shown
    (stranger / "call.json").write_text('{"\\u001b[2J":1}\n')
    refused = check(told, stranger, "call.json").stdout
    assert refused.startswith("FAILED [evidence.malformed]")
    assert "\x1b" not in refused


def test_the_independent_verifier_agrees(told, calls, stranger):
    """As its README says: with none of agentguard to import."""
    command = [sys.executable, "-W", "error", "-c", RUN, str(EXAMPLE), "call.json", "trust.json"]
    for nth in (0, 3, 6):
        told.run("evidence", "make", calls[nth], "-o", stranger / "call.json", "--force")
        ran = subprocess.run(command, cwd=stranger, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")
        said = json.loads(ran.stdout)
        ours = json.loads(check(told, stranger, "call.json", "--json").stdout)
        for name in ("agent", "tool", "principal", "at", "decision", "code", "reasons"):
            assert said[name] == ours[name], name
        for name in ("policy_sha256", "arguments", "input"):
            assert said[name] == ours[name], name
        outcomes = [one["outcome"] and one["outcome"]["status"] for one in (said, ours)]
        assert outcomes[0] == outcomes[1]
    file = stranger / "call.json"
    file.write_bytes(file.read_bytes().replace(b"power", b"power!"))
    ran = subprocess.run(command, cwd=stranger, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr[:9]) == (1, "", "refused: ")


def test_the_independent_verifier_says_how_it_is_run(stranger):
    def said(*arguments):
        command = [sys.executable, "-W", "error", str(EXAMPLE), *map(str, arguments)]
        ran = subprocess.run(command, cwd=stranger, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (1, "")
        return ran.stderr

    usage = f"usage: python {EXAMPLE} EVIDENCE TRUST\n"
    for arguments in ([], [EXAMPLE], [EXAMPLE, EXAMPLE, EXAMPLE]):
        assert said(*arguments) == usage
    assert said("missing.json", EXAMPLE) == f"no missing.json; {usage}"


def test_the_independent_verifier_is_short_and_stands_alone():
    """What an auditor reads: 260 lines without docstrings, and nothing else behind them."""
    text = EXAMPLE.read_text("utf-8")
    tree = ast.parse(text)
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or node.names[0].name]
    }
    assert imported <= {*sys.stdlib_module_names, "cryptography"}
    described = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    lines = enumerate(text.splitlines(), start=1)
    code = [
        line
        for at, line in lines
        if line.strip() and not line.strip().startswith("#") and at not in described
    ]
    assert len(code) <= 260


RUN = """
import runpy, sys
sys.modules["agentguard"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_page_and_the_readme_name_what_is_there():
    pages = (ROOT / "docs" / "how-to" / "evidence.md", EXAMPLE.with_name("README.md"))
    for page in pages:
        text = page.read_text("utf-8")
        commands = re.findall(r"^\$ (?:agentguard|python) (.*?)(?:  +#.*)?$", text, re.MULTILINE)
        assert len(commands) == 3
        links = re.findall(r"\]\(([^)#]+)\)", text)
        assert [x for x in links if "://" not in x and not (page.parent / x).exists()] == []


def test_the_commands_of_the_readme_run(told, calls, tmp_path):
    text = EXAMPLE.with_name("README.md").read_text("utf-8")
    commands = re.findall(r"^\$ (.*?)(?:  +#.*)?$", text, re.MULTILINE)
    for command in commands:
        name, *args = command.replace("INVOCATION_ID", calls[0]).split()
        args = [str(EXAMPLE) if word == EXAMPLE.name else word for word in args]
        args = [str(tmp_path / word) if word.endswith(".json") else word for word in args]
        ran = told.run(*args) if name == "agentguard" else told.python(*args)
        assert (ran.returncode, ran.stderr) == (0, ""), command


def test_the_evidence_of_many_calls_is_exported_to_a_folder(told, calls, stranger):
    """Each file is the one that make writes, and an auditor verifies all of them."""
    folder = stranger / "exported"
    exported = told.run("evidence", "export", "--agent", "assistant", "-o", folder)
    assert exported.returncode == 0, exported.stderr
    assert folder.stat().st_mode & 0o777 == 0o700
    names = sorted(path.name for path in folder.iterdir())
    rows = told.lines("audit", "list", "--kind", "call", "--agent", "assistant")
    assert names == sorted(f"{row['invocation_id']}.json" for row in rows)
    assert exported.stdout == f"{folder} proves {len(rows)} calls\n"
    for wanted in calls[:2]:
        made = told.run("evidence", "make", wanted, "-o", "-").stdout
        assert (folder / f"{wanted}.json").read_text() == made
    paths = sorted(folder.iterdir())
    verified = check(told, stranger, *paths)
    assert f"{len(rows)} of {len(rows)} files proved" in verified.stdout
    paths[1].write_bytes(paths[1].read_bytes().replace(b"assistant", b"assistent", 1))
    assert check(told, stranger, *paths).returncode == 1
    again = told.run("evidence", "export", "--agent", "assistant", "-o", folder)
    assert (again.returncode, "storage.exists" in again.stderr) == (2, True)
    bare = told.run(
        *("evidence", "export", "--agent", "assistant", "-o", folder),
        *("--force", "--without-arguments"),
    )
    assert bare.returncode == 0, bare.stderr
    assert b'"attachments":[]' in paths[1].read_bytes()


def test_the_options_select_the_calls_to_export(told, stranger):
    for option, value in (("--decision", "deny"), ("--tool", "read_file")):
        folder = stranger / value
        assert told.run("evidence", "export", option, value, "-o", folder).returncode == 0
        rows = told.lines("audit", "list", "--kind", "call", option, value)
        assert {path.stem for path in folder.iterdir()} == {row["invocation_id"] for row in rows}
        assert rows
    kind = told.run("evidence", "export", "--kind", "key", "-o", stranger / "keys")
    assert (kind.returncode, (stranger / "keys").exists()) == (2, False)
    stream = told.run("evidence", "export", "-o", "-")
    assert (stream.returncode, "names a folder" in stream.stderr) == (2, True)
    assert not (told.folder / "-").exists()


def test_an_export_that_selects_no_call_is_an_error_and_makes_no_folder(
    told, as_init_made_it, stranger
):
    folder = stranger / "none"
    for project, options, problem in (
        (told, ("--tool", "no_such"), "no call that a checkpoint covers matches (tool no_such)"),
        (as_init_made_it, (), "no checkpoint covers a call yet"),
    ):
        none = project.run("evidence", "export", *options, "-o", folder)
        assert (none.returncode, none.stdout, folder.exists()) == (2, "", False)
        assert none.stderr == (
            f"error [call.unknown]: {problem}: agentguard audit list shows the calls of the log\n"
        )
