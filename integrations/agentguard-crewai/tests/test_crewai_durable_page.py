"""how-to/crewai-durable.md as a reader follows it: each command, in order, prints what it says.

Each crew runs in a process of its own, and the answers come from other processes.
"""

from __future__ import annotations

import json
from typing import Any

import docs_pages
import pytest
from page_reader import Reader

PAGE = docs_pages.text("how-to/crewai-durable")
WAITS = "order-A-17 waits: a refund above 10.00 needs a manager\n"
REJECTED = "user:bob has rejected this call: wrong order"

pytestmark = pytest.mark.slow("it runs a crew several times, in a process each")


@pytest.fixture
def reader(tmp_path, preloaded) -> Reader:
    """A reader in an empty folder, without a network for CrewAI to tell of its runs."""
    reader = Reader(tmp_path, "desk", preloaded)
    reader.environment["CREWAI_STORAGE_DIR"] = str(tmp_path / "crewai")
    return reader


def refunds(reader: Reader) -> list[Any]:
    """Return the calls of refund, oldest first."""
    listed = reader.run("agentguard audit list --kind call --tool refund --json")
    return [json.loads(line) for line in listed.splitlines()]


def test_the_page_is_followed_from_an_empty_folder_to_the_refund(reader):
    reader.follow(PAGE)
    ran = [one for one in refunds(reader)[2:] if one["outcome"] == "ok"]  # crew.py has made two
    assert [(one["principal"], one["resource"]) for one in ran] == [("user:alice", "order:A-17")]


def test_the_crew_waits_until_somebody_answers_and_goes_on_without_what_was_rejected(reader):
    reader.run("agentguard init --crewai")
    reader.follow(PAGE.partition("\n## 2.")[2].partition("\n## 4.")[0])
    assert reader.printed == WAITS
    asked = reader.run("agentguard approvals list --json")
    assert reader.run("python orders.py") == ""
    assert reader.run("python orders.py order-A-17") == WAITS
    again = reader.run("agentguard approvals list --json")
    assert json.loads(again)["request_id"] == json.loads(asked)["request_id"]
    assert refunds(reader) == []

    (command,) = [word for word in PAGE.split("`") if word.startswith("agentguard approvals rej")]
    assert "rejected by user:bob" in reader.run(reader.with_ids(command))
    assert reader.run("python orders.py") == "order-A-17: The customer is told.\n"
    rejected = refunds(reader)[0]
    assert (rejected["decision"], rejected["reason"]) == ("deny", REJECTED)
