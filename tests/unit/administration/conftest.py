"""A domain with a call in doubt, whose process died."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from calls_in_doubt import PASSPHRASE, settings_in

from agentguard import Decision, Guard
from agentguard.domain import domain
from agentguard.guard.embedded import Embedded
from agentguard.policy.function import FunctionEngine

# One process that dies in the midst of its call, between the authorization and the outcome.
DYING = """
import os, signal, sys
from pathlib import Path
from agentguard import Decision, Guard
from agentguard.guard.embedded import Embedded
from agentguard.domain import config
from agentguard.domain import domain
from agentguard.domain.domain import StateDomain
from agentguard.policy.function import FunctionEngine

folder = Path(sys.argv[1])
tables = {"trust_domain": "acme.example", "state": "state", "anchor": "anchor",
          "policy": {"engine": "function", "path": "unused:unused"},
          "agents": {"a": {"authority": "own"}}}
settings = config.parse(tables, source="agentguard.toml", base=folder)
home = domain.take_up(settings, b"correct horse")
guard = Guard(Embedded(settings, FunctionEngine(lambda _d: Decision.allow()), home))
agent = guard.new_agent("a")

@guard.tool
def work(what: str) -> str:
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return what

agent.call(work, "done")
agent.call(work, "die")
"""


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A domain with one call that ended, and one whose process was killed in it."""
    folder = tmp_path_factory.mktemp("original")
    domain.found(settings_in(folder), PASSPHRASE, now=datetime.now(UTC))
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(folder)], capture_output=True, check=False, timeout=180
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    return folder


@pytest.fixture
def settings(tmp_path, original):
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return settings_in(tmp_path)


@pytest.fixture
def opened(settings):
    """A guard on the domain, beside which an administrator acts."""
    home = domain.take_up(settings, PASSPHRASE)
    with Guard(Embedded(settings, FunctionEngine(lambda _d: Decision.allow()), home)) as guard:
        yield guard
