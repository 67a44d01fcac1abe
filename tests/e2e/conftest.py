"""A place for the command line: a home, a project in it, and commands.

``Project.run`` runs a command in this process, ``Project.process`` in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commands
import pytest
from commands import Result
from preloaded import Preloaded

# One call of each kind. The last process dies inside its tool, so that call stays in doubt.
CALLS = r"""
import asyncio, os, sys
from agentguard import Denied, Guard
from agentguard.storage import flusher

# each outcome is committed with the call after it, however fast the machine is
flusher.start = lambda log, wake: None

with Guard.open("agentguard.toml") as guard:
    assistant = guard.new_agent("assistant")

    @guard.tool(requires=["files:read"], resource="file:{path}")
    def read_file(path: str) -> str:
        if path == "missing":
            raise FileNotFoundError(path)
        if path == "stuck":
            raise KeyboardInterrupt
        if path == "power failure":
            os._exit(0)
        return "the content of " + path

    @guard.tool(name="evil[red]\x1b[31m\u202etool")
    def evil(text: str) -> None: ...

    def attempt(tool, *args):
        try:
            assistant.call(tool, *args)
        except (Denied, FileNotFoundError, KeyboardInterrupt):
            pass

    async def interrupted():
        log, loop = guard._parts.runtime._ports.log, asyncio.get_running_loop()
        append = log.append

        def cancelling(record, **given):
            loop.call_soon_threadsafe(call.cancel)  # before the loop learns of the append's end
            return append(record, **given)

        log.append = cancelling
        call = asyncio.create_task(assistant.acall(read_file, "interrupted"))
        await asyncio.wait([call])
        log.append = append

    if sys.argv[1:] == ["dying"]:
        attempt(read_file, "power failure")
    attempt(read_file, "README.md")
    attempt(read_file, "missing")
    attempt(read_file, "stuck")
    attempt(read_file, ".ssh/id")
    attempt(read_file, "[bold]a\x1b[2J\u202eb\nc\x9b1m")
    attempt(evil, "x")
    asyncio.run(interrupted())
"""


@dataclass(frozen=True)
class Project:
    """A folder with a home beside it; ``run`` is ``agentguard ARGS`` in the folder."""

    home: Path
    folder: Path
    programs: Preloaded

    def allow_unlisted(self) -> Project:
        """Let the tools of a test run without tables in the configuration that ``init`` made."""
        file = self.folder / "agentguard.toml"
        text = file.read_text()
        assert 'unlisted = "deny"' in text
        file.write_text(text.replace('unlisted = "deny"', 'unlisted = "allow"'))
        return self

    @property
    def state(self) -> Path:
        return self.folder / ".agentguard"

    @property
    def anchor(self) -> Path:
        return self.home / ".local" / "state" / "agentguard"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "VIRTUAL_ENV") if name in os.environ}
        return {**kept, "HOME": str(self.home), "COLUMNS": "1000", "LC_ALL": "C.UTF-8"}

    def python(self, *args: str) -> Result:
        """Run a program in a process of its own, which has imported agentguard before."""
        return self.programs.run(*args, cwd=self.folder, env=self.environment)

    def interpreter(self, *args: str, **options: Any) -> Result:
        """Run a program in a new interpreter; ``options`` are those of ``subprocess.run``."""
        command = [sys.executable, *args]
        options = {"cwd": self.folder, "env": self.environment, **options}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=180, check=False, **options
        )

    def process(
        self, *args: str | Path, env: dict[str, str] | None = None, **options: Any
    ) -> Result:
        """Run a command in a new interpreter; ``options`` are those of ``subprocess.run``."""
        command = ["-m", "agentguard.cli", *map(str, args)]
        return self.interpreter(*command, env=self.environment | (env or {}), **options)

    def run(
        self,
        *args: str | Path,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        input: str = "",  # noqa: A002  as in subprocess.run
    ) -> Result:
        """Run a command in this process, as a process of its own would: see ``commands``."""
        environment = self.environment | (env or {})
        return commands.run(args, env=environment, cwd=cwd or self.folder, stdin=input)

    def json(self, *args: str | Path, code: int = 0, env: dict[str, str] | None = None) -> Any:
        """Run a command with --json that prints one object."""
        result = self.run(*args, "--json", env=env)
        assert result.returncode == code, result.stderr
        assert result.stdout.count("\n") == 1
        return json.loads(result.stdout)

    def lines(self, *args: str | Path) -> list[dict[str, Any]]:
        """Run a command with --json that prints an object a line."""
        result = self.run(*args, "--json")
        assert result.returncode == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    def copy(self, folder: Path) -> Project:
        """Copy all of it; the copy's own anchors and configuration count for it."""
        shutil.copytree(self.home.parent, folder)
        return Project(folder / "home", folder / "project", self.programs)


@pytest.fixture
def project(tmp_path: Path, programs: Preloaded) -> Project:
    """An empty project with an empty home."""
    return empty(tmp_path / "place", programs)


def empty(place: Path, programs: Preloaded) -> Project:
    """Make an empty project with an empty home."""
    made = Project(place / "home", place / "project", programs)
    made.home.mkdir(parents=True)
    made.folder.mkdir()
    return made


@pytest.fixture(scope="session")
def as_init_made_it(tmp_path_factory: pytest.TempPathFactory, programs: Preloaded) -> Project:
    """A project as ``agentguard init`` makes it. Not to be changed."""
    made = empty(tmp_path_factory.mktemp("begun") / "place", programs)
    assert made.run("init").returncode == 0
    return made


@pytest.fixture
def begun(as_init_made_it: Project, tmp_path: Path) -> Project:
    """A project as ``agentguard init`` makes it: a copy, for a test that changes it."""
    return as_init_made_it.copy(tmp_path / "place")


@pytest.fixture(scope="session")
def founded_with(
    tmp_path_factory: pytest.TempPathFactory, programs: Preloaded
) -> Callable[[str, str], Project]:
    """Makes a project founded by ``init``, with tables of agents and a policy of its own."""

    def make(toml: str, policy: str) -> Project:
        made = empty(tmp_path_factory.mktemp("founded") / "place", programs)
        assert made.run("init").returncode == 0
        file = made.folder / "agentguard.toml"
        file.write_text(file.read_text().partition("# One table for each agent")[0] + toml)
        (made.folder / "policies" / "authz.rego").write_text(policy)
        return made

    return make


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory, programs: Preloaded) -> Project:
    """A project founded by ``init``, with calls of every kind in its log. Not to be changed."""
    made = empty(tmp_path_factory.mktemp("told") / "place", programs)
    assert made.run("init").returncode == 0
    made.allow_unlisted()
    for arguments in ([], ["dying"]):
        called = made.python("-c", CALLS, *arguments)
        assert called.returncode == 0, called.stderr
    return made


@pytest.fixture
def changed(told: Project, tmp_path: Path) -> Project:
    """A copy of ``told`` for a test that changes it."""
    return told.copy(tmp_path / "changed")


@pytest.fixture
def without_root_rights() -> Callable[[], None]:
    """For ``preexec_fn``: modes of files bind the child even where the tests run as root."""

    def drop() -> None:
        if os.geteuid() == 0:
            import ctypes  # noqa: PLC0415  only where there is something to drop

            prctl = ctypes.CDLL(None, use_errno=True).prctl
            for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
                if prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP
                    os._exit(99)

    return drop


# Three guards at once write one log; each call is later than the one before, and by another guard.
BUSY = r"""
import os, time
from contextlib import ExitStack
from dataclasses import replace
from opentelemetry import trace
from agentguard import Denied, Guard, adapters

with ExitStack() as stack:
    guards = [stack.enter_context(Guard.open("agentguard.toml")) for _ in range(3)]
    assistant, reviewer, other = (
        guard.new_agent(name)
        for guard, name in zip(guards, ["assistant", "reviewer", "assistant"])
    )

    def tool(guard, name):
        @guard.tool(name=name, requires=["files:read"])
        def read(path: str) -> str:
            if path == "missing":
                raise FileNotFoundError(path)
            if path == "power failure":
                for one in guards[:2]:
                    one.close()
                os._exit(0)
            return "the content of " + path
        return read

    def attempt(agent, guard, name, path, *, task=None, traced=None):
        read = tool(guard, name)
        asked = replace(agent._invocation(read, (path,), {}), task_id=task)
        context = trace.SpanContext(traced or 0, 7, is_remote=False)
        with trace.use_span(trace.NonRecordingSpan(context)):
            try:
                adapters.run(agent, asked, read._bound_to((path,), {}))
            except (Denied, FileNotFoundError):
                pass
        time.sleep(0.002)

    attempt(assistant, guards[0], "read_file", "a.txt", traced=0xABC)
    attempt(reviewer, guards[1], "get_file", "b.txt", task="task-1")
    attempt(other, guards[2], "read_file", ".hidden", traced=0xABC)
    attempt(assistant, guards[0], "get_file", "missing", task="task-2")
    attempt(reviewer, guards[1], "list_files", "../up", task="task-1")
    attempt(other, guards[2], "read_file", "power failure", task="task-1")
"""


@pytest.fixture(scope="session")
def busy(tmp_path_factory: pytest.TempPathFactory, programs: Preloaded) -> Project:
    """A project with two agents and the calls of three guards. Not to be changed."""
    made = empty(tmp_path_factory.mktemp("busy") / "place", programs)
    assert made.run("init").returncode == 0
    made.allow_unlisted()
    with (made.folder / "agentguard.toml").open("a") as file:
        file.write(
            '\n[agents.reviewer]\ntype = "assistant"\nauthority = "own"\n'
            'max_scope = ["files:read"]\n'
        )
    called = made.python("-c", BUSY)
    assert called.returncode == 0, called.stderr
    return made


@pytest.fixture
def reshaped(busy: Project, tmp_path: Path) -> Project:
    """A copy of ``busy`` for a test that changes it."""
    return busy.copy(tmp_path / "reshaped")
