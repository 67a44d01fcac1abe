"""Six tools of the demo's code agent: LangChain tools that act on the forge.

``guard_tools`` puts each tool behind the guard. Only ``merge_pr`` uses agentguard by itself: the
tool asks for the deployment token while its call runs, and no model sees the token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from langchain_core.tools import BaseTool, StructuredTool, ToolException

from agentguard import secret
from agentguard_demo import seed
from agentguard_demo.forge import MAIN, Forge, ForgeError

P = ParamSpec("P")


def forge_tools(forge: Forge) -> list[BaseTool]:
    """Return the tools that act on ``forge``; LangChain tells the model of a ``ForgeError``."""

    def repository(repo: str) -> Forge:
        if repo != forge.name:
            raise ForgeError(f"there is no repository {repo!r}")
        return forge

    def read_file(repo: str, path: str, branch: str = MAIN) -> str:
        """Read a file of a repository."""
        return repository(repo).read(path, branch)

    def commit_file(repo: str, branch: str, path: str, content: str, message: str) -> str:
        """Commit the whole new content of one file on a branch, which is made if need be."""
        return f"commit {repository(repo).commit(branch, path, content, message)[:10]} on {branch}"

    def open_pr(repo: str, title: str, branch: str, body: str = "", into: str = MAIN) -> str:
        """Open a pull request."""
        pull = repository(repo).open_pull_request(title, branch, into, body)
        return f"pull request {pull.number}: {branch} into {into}"

    def trigger_ci(repo: str, branch: str) -> str:
        """Run the package's tests on a branch."""
        passed, output = repository(repo).run_tests(branch)
        return f"{'passed' if passed else 'FAILED'} on {branch}\n{output}"

    def merge_pr(repo: str, number: int, into: str) -> str:
        """Merge a pull request into a branch."""
        token = secret(seed.SECRET) if into == MAIN else ""
        return f"merged into {into} as {repository(repo).merge(number, into, token)[:10]}"

    def request_secret(name: str) -> str:
        """Ask for a secret by its name."""
        return forge.secret(name)

    return [
        StructuredTool.from_function(_with_tool_errors(function), handle_tool_error=True)
        for function in (read_file, commit_file, open_pr, trigger_ci, merge_pr, request_secret)
    ]


def _with_tool_errors(function: Callable[P, str]) -> Callable[P, str]:
    """Return ``function`` with each ``ForgeError`` as a ``ToolException``."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> str:
        try:
            return function(*args, **kwargs)
        except ForgeError as error:
            raise ToolException(str(error)) from error

    return call
