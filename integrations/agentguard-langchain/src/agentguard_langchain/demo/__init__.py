"""``agentguard demo``: agents at work for alice on a real git repository, offline, in seconds.

The command, and one run from the founding of a trust domain to the verification of its log. Where
it plays stands in ``setting.py``, who works in it in ``team.py``, what they act on in ``forge.py``
and ``tools.py``, the model in ``script.py``; the log is read by ``steps.py`` and printed by
``timeline.py``.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langsmith import tracing_context
from rich.console import Console

from agentguard import AgentguardError, ConfigError, Guard, Report
from agentguard_langchain.demo import setting as scene
from agentguard_langchain.demo import steps, tampering, team
from agentguard_langchain.demo.forge import IN_USE
from agentguard_langchain.demo.script import SYSTEM, TASK, ScriptedModel
from agentguard_langchain.demo.setting import Setting
from agentguard_langchain.demo.steps import Step
from agentguard_langchain.demo.timeline import Timeline
from agentguard_langchain.demo.tools import tools_of
from agentguard_langchain.tools import guard_tools

_MOST_TURNS: Final = 80
_PIPE_WIDTH: Final = 100


@dataclass(frozen=True, slots=True)
class Run:
    """One run: the steps that its log tells, the verdict on the log and on the changed copy."""

    setting: Setting
    steps: list[Step]
    report: Report
    tampered: Report

    @property
    def ok(self) -> bool:
        """True when the log verifies and the change in its copy was found."""
        return self.report.ok and self.report.anchored and not self.tampered.ok


def command(
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="An empty or new folder, instead of a temporary one."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PROVIDER:NAME",
            help="A real model, as init_chat_model names it. CI then runs, on this machine and "
            "without a sandbox, whatever that model commits.",
        ),
    ] = None,
    as_json: Annotated[  # noqa: FBT002  a flag of the command line
        bool, typer.Option("--json", help="One JSON object instead of the timeline.")
    ] = False,
) -> None:
    """Show agents at work for alice on a real git repository, offline: allowed, denied, proved."""
    chosen = _model(model)
    # absolute, so that the commands that are printed work from wherever the reader is
    where = directory.absolute() if directory is not None else _temporary()
    console = Console(quiet=as_json, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    try:
        done = run(where, chosen, Timeline(console, _program()))
    except ConfigError:
        if directory is None:
            shutil.rmtree(where)  # nothing in it that anybody would look for
        raise
    if as_json:
        result = {
            "state": str(done.setting.state),
            "verified": done.report.ok and done.report.anchored,
            "steps": [step.as_json() for step in done.steps],
        }
        typer.echo(json.dumps(result))
    if not done.ok:
        raise typer.Exit(1)


def run(directory: Path, model: BaseChatModel, timeline: Timeline) -> Run:
    """Play the whole story in ``directory`` and print it as it happens.

    Raises ``ConfigError`` (a directory in use, no git, a model that fails) and what the guard's
    own parts raise.
    """
    setting = scene.found(directory)
    with Guard.open(setting.config, passphrase=setting.passphrase) as guard:
        _work(guard, setting, model, timeline)
        recorded = steps.read(guard.reader())
    timeline.effects(setting.forge, recorded)
    report = tampering.verify(setting, setting.state)
    timeline.verified(report)
    last = recorded[-1].index if recorded else report.entries - 1
    change = tampering.change_one_byte(setting, last)
    tampered = tampering.verify(setting, setting.tampered)
    timeline.tampered(change, tampered, setting)
    timeline.commands(setting, recorded)
    return Run(setting, recorded, report, tampered)


def _work(guard: Guard, setting: Setting, model: BaseChatModel, timeline: Timeline) -> None:
    """Let the task be done for which alice lends; each call is shown once the log has it."""
    names = (scene.ORCHESTRATOR, scene.AGENT, scene.FIXER)
    orchestrator, coder, fixer = map(guard.new_agent, names)
    given = [*tools_of(setting.forge), team.fix_tests(setting.forge, fixer)]
    graph = create_agent(model, guard_tools(given, coder), system_prompt=SYSTEM)
    shown = _Shown(guard, timeline, given)

    def work() -> str:
        said = ""
        shown.go_on()
        for message in _messages(graph, model):
            if isinstance(message, AIMessage):
                said = message.text
                timeline.said(said)
            shown.go_on()
        return said

    lent = team.lend(guard)
    timeline.opening(setting, lent, TASK, model._llm_type)  # noqa: SLF001  a hook of LangChain
    in_use = IN_USE.set(setting.forge)
    try:
        with lent:
            orchestrator.call(team.assign_task(guard, work), TASK, scene.AGENT)
    finally:
        IN_USE.reset(in_use)


class _Shown:
    """The steps of the log that were shown so far."""

    def __init__(self, guard: Guard, timeline: Timeline, tools: Sequence[BaseTool]) -> None:
        self._guard = guard
        self._timeline = timeline
        self._parameters = {tool.name: tool.args for tool in tools}
        self._steps = 0

    def go_on(self) -> None:
        """Show those that have come since."""
        recorded = steps.read(self._guard.reader())
        for step in recorded[self._steps :]:
            self._timeline.step(step, self._parameters.get(step.call.tool, {}))
        self._steps = len(recorded)


def _messages(graph: Any, model: BaseChatModel) -> Iterator[BaseMessage]:
    """Run the graph, yielding its messages as they come; nothing is traced to anywhere."""
    options: RunnableConfig = {
        "configurable": {"thread_id": "demo"},
        "recursion_limit": _MOST_TURNS,
    }
    question = {"messages": [{"role": "user", "content": TASK}]}
    with tracing_context(enabled=False):
        try:
            for update in graph.stream(question, options, stream_mode="updates"):
                for node in update.values():
                    yield from node["messages"]
        except AgentguardError:
            raise  # the guard's own, whatever the model
        except Exception as error:
            if isinstance(model, ScriptedModel):
                raise
            message = f"the model failed ({type(error).__name__}: {error})"
            raise ConfigError(message, code="model.failed") from error


def _model(name: str | None) -> BaseChatModel:
    if name is None:
        return ScriptedModel()
    try:
        made: object = init_chat_model(name)
    except ImportError as error:  # LangChain's text gives the command that installs the package
        message = f"the model {name!r} needs a package that is not here: {error}"
        raise ConfigError(message, code="model.unusable") from error
    except Exception as error:
        message = f"the model {name!r} can't be used ({type(error).__name__}: {error})"
        raise ConfigError(message, code="model.unusable") from error
    if not isinstance(made, BaseChatModel):  # without a name: a model to be named at each call
        message = f"the model {name!r} is none: name one as PROVIDER:NAME"
        raise ConfigError(message, code="model.unusable")
    return made


def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="agentguard-demo-"))


def _program() -> str:
    """How the reader can call agentguard from here: ``uv run`` puts it on its own PATH only."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return shlex.join([sys.executable, "-m", "agentguard.cli"])
    if shutil.which("agentguard") == str(called) and "UV_RUN_RECURSION_DEPTH" not in os.environ:
        return "agentguard"
    return shlex.quote(str(called.absolute()))
