"""approvals.md as a reader follows it: its code, its policy, its tables and its commands."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import docs_pages
import pytest
from denial_lines import without_denials

from agentguard import Guard
from agentguard.domain import config
from agentguard.policy.rego import RegoEngine

DOCS = Path(__file__).parents[2] / "docs"
PAGE = docs_pages.text("how-to/approvals", "reference/text")
CODES = (DOCS / "reference" / "reason-codes.md").read_text(encoding="utf-8")
COMMANDS = (DOCS / "reference" / "cli" / "approvals.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_code_does_what_the_page_says(project):
    code, _test = blocks("python")
    ran = project.python("-W", "error", "-c", code)
    assert without_denials(ran.stderr) == ""
    missing, result = ran.stdout.splitlines()
    assert missing == "nobody has answered yet"
    assert result == "merged into main"


def test_the_test_of_a_program_is_one(tmp_path, programs):
    _code, test = blocks("python")
    (plugin,) = re.findall(r"`(pytest_plugins = [^`]*)`", PAGE)
    (tmp_path / "conftest.py").write_text(plugin)
    (tmp_path / "test_refund.py").write_text(test)
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    ran = programs.run(*command, cwd=tmp_path, env=alone)
    assert "1 passed" in ran.stdout, ran.stdout


@pytest.mark.parametrize(("branch", "asks"), [("main", True), ("fix", False)])
def test_the_policy_asks_as_the_page_says(tmp_path, branch, asks):
    (rego,) = blocks("rego")
    (tmp_path / "authz.rego").write_text(rego)
    engine = RegoEngine.load(tmp_path / "authz.rego")
    answer = engine.evaluate(
        b'{"action":"merge_pr","args":{"branch":"%s"}}' % branch.encode()  # what it reads
    )
    assert isinstance(answer, dict)
    assert ("approval" in answer) is asks


def test_the_tables_are_those_of_a_configuration(signer):
    (toml,) = blocks("toml")
    tables = tomllib.loads(re.sub(r'"ssh-ed25519 [^"]*"', f'"{signer.public_key.openssh()}"', toml))
    read = config.parse(tables, source="page", base=Path.cwd())
    assert read.roster.approvers["bob"].roles == ("release-manager",)
    assert read.limits == config.parse({}, source="page", base=Path.cwd()).limits  # the defaults
    assert not read.roster.application


def test_the_commands_are_those_of_the_command_line():
    for line in "".join(blocks("console")).splitlines():
        command = " ".join(line.removeprefix("$ ").split()[:3])
        assert f"## `{command}`" in COMMANDS


def test_the_reason_codes_are_in_the_list():
    for code in re.findall(r"`((?:approval|delegation)\.[a-z_]+)`", PAGE):
        assert f"| `{code}` |" in CODES


def test_what_the_desk_offers_is_there():
    _, _, rest = PAGE.partition("- `guard.approvals` is the desk: ")
    sentence = rest.partition(", which")[0]
    with Guard.ephemeral(lambda _: None) as guard:  # type: ignore[arg-type, return-value]
        for name in re.findall(r"`(\w+)[`(]", sentence):
            assert hasattr(guard.approvals, name)
