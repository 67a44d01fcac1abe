"""``[tools.NAME] show``: which arguments the lists of calls and requests show, and which never."""

from __future__ import annotations

import json

import pytest

TABLES = """
[approvals]
application = true

[tools.pay]
show = ["amount", "to", "note"]
"""

POLICY = """package agent.authz
allow if input.action == "look"
allow if input.action == "pay"
approval if {
	input.action == "pay"
	input.args.amount == 7
}
obligations contains {"redact": "/args/note"} if input.args.to == "carol"
"""

CALLS = r"""
from agentguard import ApprovalPending, Guard
with Guard.open() as guard:
    @guard.tool
    def pay(amount: int, to: str, note: dict | None = None) -> None: ...
    @guard.tool
    def look(path: str) -> None: ...
    agent = guard.new_agent("assistant")
    agent.call(look, "x")
    agent.call(pay, 5, "bob\x1b[31m", {"iban": "DE1"})
    agent.call(pay, 6, "carol", {"iban": "DE2"})
    agent.call(pay, 8, "dan")
    try:
        agent.call(pay, 7, "eve", {"iban": "DE3"})
    except ApprovalPending:
        pass
"""


@pytest.fixture
def paid(begun):
    toml = begun.folder / "agentguard.toml"
    begun.allow_unlisted()
    toml.write_text(f"{toml.read_text()}\n{TABLES}\n[tools.look]\n")
    (begun.folder / "policies" / "authz.rego").write_text(POLICY)
    ran = begun.python("-c", CALLS)
    assert ran.returncode == 0, ran.stderr
    return begun


def calls(project):
    return [row for row in project.lines("audit", "list") if row["decision"] is not None]


def test_the_lists_show_the_arguments_that_the_configuration_names(paid):
    shown = {row["invocation_id"]: row["shown"] for row in calls(paid) if row["tool"] == "pay"}
    assert list(shown.values())[:3] == [
        {"amount": 5, "to": "bob\x1b[31m", "note": {"iban": "DE1"}},
        {"amount": 6, "to": "carol", "note": {"$redacted": True}},
        {"amount": 8, "to": "dan", "note": None},
    ]
    assert [row["shown"] for row in calls(paid) if row["tool"] == "look"] == [None]
    listed = paid.run("audit", "list").stdout
    assert r'amount: 5, to: "bob\u001b[31m", note: {"iban": "DE1"}' in listed
    assert 'amount: 6, to: "carol", note: redacted' in listed
    assert "DE2" not in listed
    assert "\x1b" not in listed


def test_an_erased_argument_is_not_shown_and_the_list_says_so(paid):
    (first, *_others) = [row["invocation_id"] for row in calls(paid) if row["tool"] == "pay"]
    assert paid.run("erase", first, "--note", "asked to", "--yes").returncode == 0
    (row,) = [row for row in calls(paid) if row["invocation_id"] == first]
    assert row["shown"] == {name: {"$missing": True} for name in ("amount", "to", "note")}
    assert "amount: not in the log" in paid.run("audit", "list").stdout


def test_the_list_of_requests_shows_them_without_what_is_redacted_now(paid):
    toml = paid.folder / "agentguard.toml"
    (request,) = paid.lines("approvals", "list")
    assert request["shown"] == {"amount": 7, "to": "eve", "note": {"iban": "DE3"}}
    assert 'amount: 7, to: "eve"' in paid.run("approvals", "list").stdout
    toml.write_text(f'{toml.read_text()}\n[redact]\npay = ["/args/note/iban"]\n')
    (request,) = paid.lines("approvals", "list")
    assert request["shown"]["note"] == {"iban": {"$redacted": True}}
    assert "DE3" not in paid.run("approvals", "list").stdout
    assert "DE1" not in json.dumps([row["shown"] for row in calls(paid)])


def test_nothing_is_shown_without_the_key(paid):
    toml = paid.folder / "agentguard.toml"
    toml.write_text(toml.read_text().replace("show =", "# show ="))
    assert {json.dumps(row["shown"]) for row in calls(paid)} == {"null"}
    assert "amount" not in paid.run("audit", "list").stdout
