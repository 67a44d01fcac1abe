"""approvals.md as a reader follows it: its code, its policy, its tables and its commands."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import docs_pages
import pytest
from denial_lines import without_denials

from agentguard import ApprovalRequest, RequestStatus
from agentguard.approvals.inbox import ApprovalInbox
from agentguard.approvals.store import Limits
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
    assert ran.stdout == docs_pages.printed(docs_pages.text("how-to/approvals"))


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
    assert read.approvals.limits == Limits()  # the defaults
    assert not read.roster.application


def test_the_commands_are_those_of_the_command_line():
    for line in "".join(blocks("console")).splitlines():
        command = " ".join(line.removeprefix("$ ").split()[:3])
        assert f"## `{command}`" in COMMANDS


def test_the_reason_codes_are_in_the_list():
    for code in re.findall(r"`((?:approval|delegation)\.[a-z_]+)`", PAGE):
        assert f"| `{code}` |" in CODES


def test_a_web_application_prints_what_its_page_says(project):
    page = docs_pages.text("how-to/approvals-web")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    ran = project.python("-W", "error", "-c", code)
    clicks = [line.rpartition(": ")[0] for line in without_denials(ran.stderr).splitlines()]
    assert clicks == [
        "approve by user:carl was refused [approval.refused]",
        "approve by user:alice was refused [approval.unknown]",
        "approve by user:erin came too late",
        "reject by user:erin came too late",
    ]
    assert ran.stdout == docs_pages.printed(page)


@pytest.fixture
def web(monkeypatch, capsys):
    """The program of approvals-web.md, after all that it does by itself."""
    clock = [datetime.now(UTC)]
    monkeypatch.setattr("agentguard.guard.process.clock", lambda: clock[0])
    page = docs_pages.text("how-to/approvals-web")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "page", "clock": clock}
    exec(compile(code, "approvals-web.md", "exec"), names)  # noqa: S102  our own page
    capsys.readouterr()
    yield names
    names["guard"].close()


ENDS: dict[str, tuple[int, Sequence[str], str]] = {
    "withdrawn": (50_000, (), "too late: withdrawn (nobody has answered); call: not_made"),
    "expired": (50_000, (), "too late: expired (nobody has answered); call: not_made"),
    "expired, and approved": (
        50_000,
        ("user:dora approve",),
        "too late: expired (approve by user:dora); call: not_made",
    ),
    "approved, then rejected": (
        50_000,
        ("user:dora approve", "user:erin reject"),
        "too late: rejected (approve by user:dora, reject by user:erin); call: not_made",
    ),
    "a quorum": (
        500_000,
        ("user:dora approve", "user:erin approve"),
        "too late: approved (approve by user:dora, approve by user:erin); call: not_made",
    ),
    "a quorum, and the call ran": (
        500_000,
        ("user:dora approve", "user:erin approve", "ask"),
        "too late: approved (approve by user:dora, approve by user:erin); call: ran",
    ),
    "rejected, and the call was made": (
        50_000,
        ("user:dora reject", "ask"),
        "too late: rejected (reject by user:dora); call: refused",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_example_answers_every_click_that_comes_too_late(web, end):
    cents, done, said = ENDS[end]
    web["ask"]("user:alice", "A-2", cents)
    (request,) = web["guard"].approvals.pending()
    for one in done:
        if one == "ask":
            web["ask"]("user:alice", "A-2", cents)
        else:
            web["clock"][0] += timedelta(seconds=1)  # answers are told in the order of their times
            user, verdict = one.split()
            assert web["click"](user, request.request_id, verdict) == f"{verdict}: done"
    if end == "withdrawn":
        assert web["guard"].approvals.withdraw(request)
    if end.startswith("expired"):
        web["clock"][0] += timedelta(hours=2)
    assert web["click"]("user:erin", request.request_id, "approve") == said


def test_the_inbox_of_the_example_shows_each_person_only_what_they_can_answer(web):
    for user, order in (("user:alice", "A-2"), ("user:bert", "B-1")):
        web["ask"](user, order, 50_000)
    shown = {
        user: re.findall(r"[AB]-\d", " ".join(web["inbox"](user)))
        for user in ("user:alice", "user:bert", "user:carl", "user:dora", "user:nobody")
    }
    assert shown == {
        "user:alice": ["A-2"],
        "user:bert": ["B-1"],
        "user:carl": [],
        "user:dora": ["A-2", "B-1"],
        "user:nobody": [],
    }
    assert "['reject']" in web["inbox"]("user:alice")[0]


def test_a_click_on_no_request_is_answered_as_well(web):
    for name in ("f" * 32, "", "x"):
        assert web["click"]("user:dora", name, "approve")[:3] in ("403", "404")


def test_the_tables_of_a_web_application_are_those_of_a_configuration():
    page = docs_pages.text("how-to/approvals-web")
    word, people = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    read = config.parse(tomllib.loads(word + people), source="page", base=Path.cwd())
    assert read.roster.application_roles == ("manager",)
    assert read.roster.roles_of("user:dora") == {"manager"}
    assert read.approvals.roles == "acme.staff:roles_of"


def public(documented: type) -> set[str]:
    return {name for name in dir(documented) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("documented", "title"),
    [
        (ApprovalInbox, "Methods"),
        (ApprovalRequest, "A request"),
        (RequestStatus, "A status"),
    ],
)
def test_the_reference_has_each_name_and_no_other(documented, title):
    section = docs_pages.text("reference/approvals").partition(f"\n## {title}\n")[2]
    rows = re.findall(r"^\| (`[^|]*) \|", section.partition("\n## ")[0], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)[`(]", row)}
    if documented is ApprovalRequest:
        named -= {"loads"}  # which is there, as a class's own method
        assert public(documented) - named == {"has_key", "loads"}  # the flow's own
    else:
        assert named == public(documented)
    assert named <= public(documented)


def test_the_reference_has_the_codes_of_the_list():
    codes = re.findall(r"`([a-z]+\.[a-z_]+)`", docs_pages.text("reference/approvals"))
    codes = [code for code in codes if not code.startswith(("guard.", "agent.", "request.id"))]
    assert codes
    assert [code for code in codes if f"| `{code}` |" not in CODES] == []
