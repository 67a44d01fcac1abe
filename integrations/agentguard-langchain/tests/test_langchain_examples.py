"""The examples and the guide run as they stand, offline, and do what they promise."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import commands
import docs_pages
import pytest
from langchain_core.messages import HumanMessage
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from agentguard import Guard
from agentguard.signing.keys import Ed25519Signer

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"

OUTPUT = {
    "langchain_tools.py": """\
spiffe://ephemeral.invalid/agent/code-reviewer/KEY
open_pr: success: opened a pull request for agent/fix in payments-api
merge_pr: error: Denied: merge_pr was not run. Reason: direct merges to main require human \
approval [policy.denied]. Do not retry: repeating the same call will not help.
The pull request is open; merging it is up to a person.
""",
    "async_agent.py": """\
ahead: a transfer may be 100 at most
call-alice: success: 20 to alice
call-bob: error: Denied: transfer was not run. Reason: a transfer may be 100 at most \
[policy.denied]. Do not retry: repeating the same call will not help.
call-carol: success: 100 to carol
""",
    "langgraph_approvals.py": """\
waits: deploy {'service': 'api', 'target': 'production'}
success: deployed api to staging
success: deployed api to production
error: Denied: deploy was not run. Reason: a person has rejected this call: not on a Friday \
[approval.rejected]. Do not retry: repeating the same call will not help.
the log verifies: True
""",
    "stategraph_approvals.py": """\
one pause for A-2, A-4
A-1: success: A-1: 19.00 refunded
A-2: success: A-2: 99.00 refunded
A-3: error: Denied: refund was not run. Reason: no refund is over 1000.00 [policy.denied]. Do not \
retry: repeating the same call will not help.
A-4: error: Denied: refund was not run. Reason: user:carol has rejected this call: it was never \
paid [approval.rejected]. Do not retry: repeating the same call will not help.
""",
    "resume_later.py": """\
it waits: a payment
user:bob approves pay for user:alice
paid 42.00 to ann
the log verifies: True
""",
    "subagents.py": """\
  user:alice > lead ['repo:push', 'repo:read']: ask_reviewer
  user:alice > lead > reviewer ['repo:read']: read_file
  user:alice > lead ['repo:push', 'repo:read']: ask_fixer
  user:alice > lead > fixer ['repo:push', 'repo:read']: read_file
  user:alice > lead > fixer ['repo:push', 'repo:read']: push
ask_reviewer: read_file: success, push: error
ask_fixer: read_file: success, push: success
nobody asks: error
""",
}


REFUSED = re.compile(
    r"denied code=[\w.]+ agent=.*|.* was not run: .* For the (?:developer|operator): .*"
)
"""What a program's log says of a refused call, where the program has set up no logging."""


IMPORTED = re.compile(
    r".*: UserWarning: Core Pydantic V1 functionality isn't compatible .*"
    r"|  from pydantic\.v1 import BaseModel as BaseModelV1"
)
"""What an import of langchain-core says on Python 3.14."""
AS_ERRORS = (
    "error,ignore:Core Pydantic V1 functionality:UserWarning,"
    "ignore:'asyncio.iscoroutinefunction' is deprecated:DeprecationWarning"
)
"""``PYTHONWARNINGS``: all are errors but those of imports on Python 3.14."""


def unexpected(stderr: str) -> list[str]:
    known = (REFUSED, IMPORTED)
    return [line for line in stderr.splitlines() if not any(p.fullmatch(line) for p in known)]


PROCESSES = pytest.mark.slow("four interpreters one after another, as the example starts them")


GRAPHS = pytest.mark.slow("a graph of LangGraph, made and run in a process of its own")
MARKS = {
    "resume_later.py": [PROCESSES],
    "langgraph_approvals.py": [GRAPHS],
    "stategraph_approvals.py": [GRAPHS],
    "subagents.py": [GRAPHS],
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in OUTPUT])
def test_an_example_runs(name, tmp_path, preloaded):
    done = preloaded.run("-W", "error", EXAMPLES / name, cwd=tmp_path)
    assert (done.returncode, unexpected(done.stderr)) == (0, [])
    assert re.sub(r"/[A-Za-z0-9_-]{43}\n", "/KEY\n", done.stdout) == OUTPUT[name]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow("a server in a process of its own, with FastAPI")
def test_the_example_of_a_tools_server_prints_what_its_page_says(tmp_path, preloaded):
    folder = EXAMPLES / "tool_server"
    done = preloaded.run("-W", "error", folder / "main.py", cwd=tmp_path)
    page = (folder / "README.md").read_text("utf-8")
    shown = page.partition("```text\n")[2].partition("```")[0]
    assert (done.returncode, done.stdout) == (0, shown), done.stderr
    codes = re.findall(r"a request was refused: .* \((.*)\)", done.stderr)
    altered = ["proof.used", "proof.request", "proof.audience", "proof.missing"]
    assert codes == [*altered, "token.audience", "delegation.revoked"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow("three processes one after another")
def test_the_steps_of_the_example_of_processes_run(tmp_path, preloaded):
    """``resume_later.py`` without the start of four interpreters."""
    path = EXAMPLES / "resume_later.py"
    example = runpy.run_path(str(path))
    key = Ed25519Signer.from_seed(bytes(32))
    (tmp_path / "bob").write_bytes(key.to_openssh(b"bob's"))
    (tmp_path / "agentguard.toml").write_text(
        example["CONFIG"].format(key=key.public_key.openssh())
    )
    (tmp_path / "authz.rego").write_text(example["POLICY"])
    environment = {**os.environ, "BOB": "bob's", "AGENTGUARD_PASSPHRASE": "of this test"}
    assert commands.run(["init"], cwd=tmp_path, env=environment).returncode == 0
    steps = [
        preloaded.run("-W", "error", path, step, cwd=tmp_path, env=environment)
        for step in ("ask", "approve", "resume")
    ]
    assert {step.stderr for step in steps} == {""}
    assert "".join(step.stdout for step in steps) == OUTPUT[path.name]


OUTSIDE = "the path must lead into the project, and to no hidden file [policy.denied]"
NO_SCOPE = "agent assistant lacks the scope files:write [scope.exceeded]"


def refused(tool, reason):
    """What a model is answered."""
    return (
        f"Denied: {tool} was not run. Reason: {reason}. "
        "Do not retry: repeating the same call will not help."
    )


ANSWERS = f"""\
read_note(notes/monday.md): Buy milk, call the bank.
count_words(notes/monday.md): 5 words
read_note(../secret.md): {refused("read_note", OUTSIDE)}
delete_note(notes/monday.md): {refused("delete_note", NO_SCOPE)}
"""


@pytest.mark.slow("a newcomer's first project, with the shell's commands as they stand on its page")
def test_the_project_is_made_with_the_commands_that_its_page_gives(tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(EXAMPLES / "project", clone / "examples" / "project")
    page = (EXAMPLES / "project" / "README.md").read_text("utf-8")
    (typed,) = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    set_up = ("AGENTGUARD_", "XDG_")
    environment = {n: v for n, v in os.environ.items() if not n.startswith(set_up)}
    search = os.pathsep.join((str(Path(sys.executable).parent), environment["PATH"]))
    done = subprocess.run(
        ["/bin/sh", "-ec", typed],
        cwd=clone,
        env={**environment, "HOME": str(tmp_path), "PATH": search, "PYTHONWARNINGS": AS_ERRORS},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, unexpected(done.stderr)) == (0, [])
    printed, _, listed = done.stdout.partition(ANSWERS)
    assert "" not in (printed, listed)
    assert re.findall(r"\b(allow|deny)\b", listed) == ["allow", "allow", "deny", "deny"]
    assert (tmp_path / "guarded-project" / "notes" / "monday.md").exists()


@pytest.mark.slow("a project of LangGraph, founded and run")
def test_the_project_of_the_page_runs(tmp_path, preloaded):
    """The same without the shell, in one process and a forked one."""
    folder = tmp_path / "guarded-project"
    shutil.copytree(EXAMPLES / "project", folder)
    environment = {**os.environ, "HOME": str(tmp_path)}
    assert commands.run(["init"], cwd=folder, env=environment).returncode == 0
    (folder / "authz.rego").replace(folder / "policies" / "authz.rego")
    with (folder / "agentguard.toml").open("a") as configuration:
        configuration.write((folder / "tools.toml").read_text())
    done = preloaded.run("-W", "error", "app.py", cwd=folder, env=environment)
    assert (done.returncode, unexpected(done.stderr), done.stdout) == (0, [], ANSWERS)


def chain(page: str) -> list[str]:
    """Return the pages that a reader of a page has run: those that the page goes on from."""
    link = r"code\s+goes\s+on\s+from\s+\[[^]]+\]\((\S+)\.md\)"
    before = re.search(link, docs_pages.text(page))
    return [*(chain(f"how-to/{before[1]}") if before else ()), page]


@pytest.fixture
def read():
    """Run the code of pages, one after the other, and close their guards in the end."""
    namespace: dict[str, Any] = {}

    def run(*pages: str) -> dict[str, Any]:
        for page in pages:
            document = Sybil([PythonCodeBlockParser()]).parse(docs_pages.DOCS / f"{page}.md")
            document.namespace = namespace
            for block in document.examples():
                block.evaluate()
        return namespace

    yield run
    for made in namespace.values():
        if isinstance(made, Guard):
            made.close()


@pytest.mark.parametrize("page", ["", "-delegation", "-approvals", "-graphs", "-resume", "-mcp"])
def test_a_page_of_the_guide_runs_after_the_pages_that_it_names(capsys, read, page):
    pages = chain(f"how-to/langchain{page}")
    named = read(*pages)
    assert named["GuardMiddleware" if page == "-mcp" else "guard_tools"]
    assert capsys.readouterr().out == docs_pages.printed(docs_pages.text(*pages))


def test_the_deep_agent_of_the_guide_pauses(read):
    named = read(*chain("how-to/langchain-graphs"), "how-to/langchain-mcp")
    deep = named["deep_agent"](
        named["Model"](), [named["pay"]], named["teller"], named["bank"].new_agent("researcher")
    )
    asked = deep.invoke({"messages": [HumanMessage("ann")]}, {"configurable": {"thread_id": "d"}})
    assert asked["__interrupt__"]
