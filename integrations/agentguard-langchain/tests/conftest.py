"""The fixtures of the adapter's tests: guards in memory, logs as a verifier reads them, models.

Their larger classes stand in the modules of ``support``.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import rounds
from call_log import Log
from delegation_team import Child, DelegationTeam
from denial_lines import without_denials
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import StructuredTool
from obedient import Obedient
from payment_team import People
from preloaded import Preloaded
from pydantic import Field
from tool_kinds import KINDS, Kind

from agentguard import Agent, Decision, Guard
from agentguard.domain import config, domain


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the cases of a test with ``invoke`` and ``ainvoke`` by turns, unless a test is named."""
    rounds.leave_out(config, items, Path(__file__).parent, "sync", marked=True)


# --- processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    """Processes that have what LangChain's programs import."""
    processes = Preloaded(
        "agentguard.cli",
        "langchain.agents",
        "langgraph.checkpoint.sqlite",
        "obedient",
        "cheap_keys",
    )
    yield processes
    processes.close()


@pytest.fixture
def start_service(tmp_path, preloaded):
    """Found a durable trust domain, and return a function that runs one step of its program."""

    def start(program: str, configuration: str):
        (tmp_path / "service.py").write_text(program, "utf-8")
        (tmp_path / "agentguard.toml").write_text(textwrap.dedent(configuration), "utf-8")
        settings = config.load(tmp_path / "agentguard.toml")
        domain.found(settings, b"of this test", now=datetime.now(UTC))

        def step(*arguments: str) -> str:
            result = preloaded.run("service.py", *arguments, cwd=tmp_path)
            assert (result.returncode, without_denials(result.stderr)) == (0, "")
            return result.stdout

        return step

    return start


# --- guards and their logs ----------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """A guard, an agent of it, and the log."""

    guard: Guard
    agent: Agent
    log: Log


def _new_setup(policy: Callable[[Any], Decision], **config: Any) -> Setup:
    guard = Guard.ephemeral(policy=policy, config=config)
    return Setup(guard, guard.new_agent("reviewer"), Log(guard))


@pytest.fixture
def make():
    """Make set-ups with a given policy; close their guards at the end."""
    setups: list[Setup] = []

    def _make(policy: Callable[[Any], Decision], **config: Any) -> Setup:
        setups.append(_new_setup(policy, **config))
        return setups[-1]

    yield _make
    for setup in setups:
        setup.guard.close()


@pytest.fixture
def allowing(make):
    """A guard that allows everything."""
    return make(lambda _input: Decision.allow())


@pytest.fixture
def denying(make):
    """A guard that denies everything."""
    return make(lambda _input: Decision.deny("not on a Sunday"))


@pytest.fixture
def limited(make):
    """A guard that allows calls whose argument ``x`` is below 10."""
    return make(
        lambda given: (
            Decision.allow() if given["args"].get("x", 0) < 10 else Decision.deny("x is over 9")
        )
    )


# --- models -------------------------------------------------------------------------------------


class ScriptedModel(BaseChatModel):
    """Says the messages of a script, and keeps the tools that it was given."""

    messages: Any
    given: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages, stop=None, run_manager=None, **_options):
        return ChatResult(generations=[ChatGeneration(message=next(self.messages))])

    def bind_tools(self, tools, **_options):
        self.given.append(list(tools))
        return self


@pytest.fixture
def scripted():
    """Make a model: each argument is a text, or a list of ``(tool, args)`` to call at once."""

    def message(numbers, line):
        if isinstance(line, str):
            return AIMessage(line)
        calls = [
            {"name": name, "args": args, "id": f"call{next(numbers)}", "type": "tool_call"}
            for name, args in line
        ]
        return AIMessage("", tool_calls=calls)

    def _scripted(*script):
        numbers = itertools.count(1)
        return ScriptedModel(messages=iter([message(numbers, line) for line in script]))

    return _scripted


@pytest.fixture
def obedient():
    """A model that makes the calls that the last message lists."""
    return Obedient()


# --- delegations --------------------------------------------------------------------------------


@pytest.fixture
def team():
    """A guard whose agents act for others."""
    team = DelegationTeam()
    yield team
    team.guard.close()


@pytest.fixture
def child(team):
    """A sub-agent of the team."""
    return Child(team)


# --- tools --------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request) -> Kind:
    """Each kind of tool in turn."""
    return request.param


@pytest.fixture(scope="session")
def kinds() -> dict[str, Kind]:
    """The kinds of tools, by name."""
    return {kind.name: kind for kind in KINDS}


@pytest.fixture
def counted():
    """A tool that tells how often it has run: ``counted.tool``, ``counted.runs``."""

    class Counted:
        def __init__(self) -> None:
            self.runs: list[int] = []
            self._numbers = itertools.count()
            runs = self.runs

            def count(x: int) -> str:
                """Count."""
                runs.append(x)
                return f"ran with {x}"

            async def acount(x: int) -> str:
                """Count."""
                runs.append(x)
                return f"ran with {x}"

            self.function = count
            self.tool = StructuredTool.from_function(count, acount, name="count")
            self.sync = StructuredTool.from_function(count, name="count")

    return Counted()


# --- approvals ----------------------------------------------------------------------------------


@pytest.fixture
def people():
    """Make ``People``: guards that ask people; close them at the end."""
    guards: list[People] = []

    def _people(*args: Any, **options: Any) -> People:
        guards.append(People(*args, **options))
        return guards[-1]

    yield _people
    for people in guards:
        people.guard.close()
