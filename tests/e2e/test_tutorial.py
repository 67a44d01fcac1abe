"""docs/tutorial as a reader follows it: one folder, all stages, and each prints what it says."""

from __future__ import annotations

import json
import os
import re
import sys
from itertools import pairwise
from pathlib import Path

import docs_pages
import pytest

STAGES = sorted((docs_pages.DOCS / "tutorial").glob("[0-9]*.md"))
BLOCK = re.compile(
    r'^(?P<says>That prints:\n\n)?```(?P<kind>\w+)(?: title="(?P<title>[^"]*)")?\n'
    r"(?P<text>(?:(?!```).*\n)*)```$",
    re.MULTILINE,
)
SECRET = "tea and toast"


class Reader:
    """Follows the pages in a folder of its own, as a user who has set nothing up."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "shop"
        self.folder.mkdir()
        ours = {n: v for n, v in os.environ.items() if not n.startswith(("AGENTGUARD_", "XDG_"))}
        search = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        secret = {"AGENTGUARD_APPROVER_PASSPHRASE": SECRET, "COLUMNS": "100"}
        self.environment = {**ours, **secret, "HOME": str(home), "PATH": search}
        self.printed = ""

    def follow(self, page: str) -> None:
        """Do what each block of a page says."""
        for block in BLOCK.finditer(page):
            if block["says"]:
                self.compare(block["text"])
            elif block["kind"] == "sh":
                self.printed = self.run(self.with_ids(block["text"]))
            elif block["title"]:
                self.write(block["title"], block["text"])

    def write(self, title: str, text: str) -> None:
        if "bob.pub" in text:
            key = (self.folder / "bob.pub").read_text().strip()
            text = text.replace("THE LINE IN bob.pub", key)
        file = self.folder / title.removeprefix("at the end of ")
        before = f"{file.read_text()}\n" if file.name != title else ""
        file.write_text(before + text)

    def run(self, text: str) -> str:
        return docs_pages.typed(text, self.folder, self.environment)

    def with_ids(self, text: str) -> str:
        """Put in what the reader takes from the screen, and answer what the terminal asks."""
        if "REQUEST" in text:
            request = json.loads(self.run("agentguard approvals list --json"))
            text = text.replace("REQUEST", f"{request['request_id'][:8]} --yes")
        if "INVOCATION_ID" in text:
            listed = self.run("agentguard audit list --tool refund --decision allow --json")
            text = text.replace(
                "INVOCATION_ID", json.loads(listed.splitlines()[-1])["invocation_id"]
            )
        return text.replace("ssh-keygen -t", f"ssh-keygen -q -N '{SECRET}' -t")

    def compare(self, expected: str) -> None:
        assert docs_pages.agrees(expected, self.printed), self.printed


@pytest.mark.slow("founds a trust domain, and starts a dozen processes")
def test_the_tutorial_runs_from_an_empty_folder(tmp_path):
    reader = Reader(tmp_path)
    for stage in STAGES:
        reader.follow(stage.read_text("utf-8"))


def test_each_stage_leads_to_the_next_and_the_first_page_to_all():
    first = docs_pages.text("tutorial/README")
    assert re.findall(r"^\| \[.*?\]\((.*?)\)", first, re.MULTILINE) == [s.name for s in STAGES]
    for stage, after in pairwise(STAGES):
        assert f"]({after.name})" in stage.read_text("utf-8")
