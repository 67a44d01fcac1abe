"""The agent's program: it knows where the server is, and has no key, no policy and no log.

It works first. Then it does what injected code would try with the rights of this process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from agentguard import AgentguardError, Denied, Guard, ServerError


def read_file(path: str) -> str:
    """Read a file of the repository."""
    return f"the text of {path}"


def merge(branch: str, into: str) -> str:
    """Merge a branch."""
    return f"{branch} is in {into}"


def attempt(what: str, action: Callable[[], object]) -> None:
    """Print what comes of an action."""
    try:
        print(f"  {what}: {action()}")
    except Denied as denied:
        print(f"  {what}: denied, {denied.reason}")
    except AgentguardError as refused:
        print(f"  {what}: refused, {refused.code}")
    except OSError as refused:
        print(f"  {what}: {refused.strerror}")


def work(guard: Guard) -> None:
    """Make guarded calls; then ask for what this client may not have."""
    agent = guard.new_agent("code-reviewer")
    read, merges = guard.tool(read_file), guard.tool(merge)
    attempt("read_file README.md", lambda: agent.call(read, "README.md"))
    attempt("merge fix into next", lambda: agent.call(merges, "fix", "next"))
    attempt("merge fix into main", lambda: agent.call(merges, "fix", "main"))
    attempt("act for alice", lambda: guard.delegate("user:alice", scope=["repo:read"]).principal)
    attempt("act for mallory", lambda: guard.delegate("user:mallory", scope=["repo:read"]))
    attempt("be the agent releaser", lambda: guard.new_agent("releaser"))


def get_around(home: Path, pid: int) -> None:
    """Try to reach the server's files and memory without the server."""
    attempt("list the keys and the log", lambda: listed(home / "state"))
    attempt("change the policy", lambda: changed(home / "authz.rego"))
    attempt("read the server's memory", lambda: memory(pid))


def listed(folder: Path) -> str:
    """Read the names of the files in a folder, which is enough to copy them."""
    return f"done, {'some' if list(folder.iterdir()) else 'no'} files"


def changed(file: Path) -> str:
    """Open a file for writing."""
    with file.open("ab"):
        return "done"


def memory(pid: int) -> str:
    """Open the memory of a process."""
    with Path(f"/proc/{pid}/mem").open("rb"):
        return "done"


if __name__ == "__main__":
    url, home, pid = sys.argv[1:]
    try:
        with Guard.connect(url) as guard:
            work(guard)
    except ServerError as refused:
        print(f"  connect: refused, {refused.code}")
    get_around(Path(home), int(pid))
