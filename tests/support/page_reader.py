"""Follow a page of docs/ block by block, as a reader does in a folder of their own.

A block of ``sh`` is typed into a shell, a block with a title is a file, and the block behind "That
prints:" is what the commands above it have printed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

import docs_pages
from preloaded import Preloaded

BLOCK = re.compile(
    r'^(?P<says>That prints:\n\n)?```(?P<kind>\w+)(?: title="(?P<title>[^"]*)")?\n'
    r"(?P<text>(?:(?!```).*\n)*)```$",
    re.MULTILINE,
)
SECRET = "tea and toast"
"""The passphrase of the key that a page has bob make."""


PROGRAMS = {"agentguard": ["-m", "agentguard.cli"], "python": []}
"""What the processes of ``programs`` run, with the arguments of Python that begin each."""
OF_A_SHELL = re.compile(r"[|&;<>$`\\*?#]")


class Reader:
    """Follows pages in a folder, as a user who has set nothing up.

    Python and ``agentguard`` run in processes of ``programs``.
    """

    def __init__(self, home: Path, folder: str, programs: Preloaded) -> None:
        self._programs = programs
        self.folder = home / folder
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
        """Write a file, add to a file, or write test cases in the place of a case of their name."""
        if "bob.pub" in text:
            key = (self.folder / "bob.pub").read_text().strip()
            text = text.replace("THE LINE IN bob.pub", key)
        file = self.folder / title.rpartition(" of ")[2]
        if title.startswith("in the place of a case of "):
            cases = file.read_text().split("\n\n")
            name = text.splitlines()[1]
            (place,) = [number for number, case in enumerate(cases) if name in case.splitlines()]
            cases[place] = text.rstrip("\n")
            text = "\n\n".join(cases)
        elif title.startswith("at the end of "):
            text = f"{file.read_text()}\n{text}"
        file.write_text(text)

    def run(self, text: str) -> str:
        """Type commands into a shell in the folder; return what they print."""
        lines = [shlex.split(line) for line in text.splitlines()]
        if OF_A_SHELL.search(text) or not all(line and line[0] in PROGRAMS for line in lines):
            return docs_pages.typed(text, self.folder, self.environment)
        return "".join(self._ran(*PROGRAMS[first], *words) for first, *words in lines)

    def _ran(self, *words: str) -> str:
        ran = self._programs.run(*words, cwd=self.folder, env=self.environment)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def with_ids(self, text: str) -> str:
        """Put in what the reader takes from the screen, and answer what the terminal asks."""
        if "REQUEST" in text:
            request = json.loads(self.run("agentguard approvals list --json"))
            text = text.replace("REQUEST", f"{request['request_id'][:8]} --yes")
        if "INDEX" in text:
            listed = self.run("agentguard audit list --tool refund --decision allow --json")
            text = text.replace("INDEX", str(json.loads(listed.splitlines()[-1])["index"]))
        return text.replace("ssh-keygen -t", f"ssh-keygen -q -N '{SECRET}' -t")

    def compare(self, expected: str) -> None:
        """Hold what the page shows against what the last commands have printed."""
        assert docs_pages.agrees(expected, self.printed), self.printed
