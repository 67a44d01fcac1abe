"""``agentguard demo``: agents at work for alice on a real git repository, offline, in seconds.

This file has the command, and one run: the run creates a trust domain, lets the agents work, and
verifies the log. The other modules are the parts of a run. ``setting.py`` makes the folder,
``server.py`` starts a guard server, ``team.py`` delegates alice's authority, ``forge.py`` and
``tools.py`` are what the agents act on, ``script.py`` is the model, and ``people.py`` has bob, who
approves. ``steps.py`` reads the log, ``proof.py`` proves calls, ``trace.py`` sends the trace, and
``timeline.py`` prints.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import click

# On Python 3.14, langchain-core warns each program that it imports version 1 of pydantic.
warnings.filterwarnings("ignore", "Core Pydantic V1 functionality isn't compatible", UserWarning)

from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langsmith import tracing_context
from rich.console import Console

from agentguard import AgentguardError, ApprovalRequest, ConfigError, Guard, Report, adapters
from agentguard.cli.terminal import options
from agentguard.cli.terminal.options import Option
from agentguard.store.reader import StoredLog
from agentguard_demo import people, proof, server, tampering, team, trace
from agentguard_demo.forge import CURRENT_FORGE
from agentguard_demo.people import Bob
from agentguard_demo.script import SYSTEM, TASK, ScriptedModel
from agentguard_demo.setting import AGENT, FIXER, ORCHESTRATOR, Setting, create_setting
from agentguard_demo.steps import Step, read_steps
from agentguard_demo.timeline import Timeline
from agentguard_demo.tools import forge_tools
from agentguard_demo.trace import SentTrace
from agentguard_langchain.middleware import GuardMiddleware
from agentguard_langchain.tools import guard_tools

_MAX_STEPS: Final = 120
_MAX_PAUSES: Final = 10
_PIPE_WIDTH: Final = 100


@dataclass(frozen=True, slots=True)
class Run:
    """One run: the steps in its log, and the reports on the log and on the changed copy.

    ``sent_trace`` is None where the run sent no trace.
    """

    setting: Setting
    steps: list[Step]
    report: Report
    copy_report: Report
    sent_trace: SentTrace | None

    @property
    def ok(self) -> bool:
        """Whether the log verifies, and the verification of the changed copy fails."""
        return self.report.ok and self.report.anchored and not self.copy_report.ok


@options.command(
    Option(
        "--dir DIR",
        "An empty or new folder, instead of a temporary one.",
        name="directory",
        type=options.PATH,
    ),
    Option(
        "--model PROVIDER:NAME",
        "A real model, as init_chat_model names it. CI then runs, on this machine and without a "
        "sandbox, whatever that model commits.",
    ),
    Option("--interactive", "Ask you, at the terminal, what bob says to the merge into main."),
    Option(
        "--otlp URL",
        "Send the trace to an OTLP receiver, such as Jaeger's http://localhost:4318, and print "
        "where to look for it.",
    ),
    Option(
        "--server",
        "Have the guard in a server, a process of its own (agentguard serve).",
        name="in_server",
    ),
    Option("--json", "One JSON object instead of the timeline.", name="as_json"),
)
def command(
    *,
    directory: Path | None,
    model: str | None,
    interactive: bool,
    otlp: str | None,
    in_server: bool,
    as_json: bool,
) -> None:
    """Show agents at work for alice on a real git repository, offline: allowed, denied, proved.

    The merge into main waits for a person: bob approves it, in a second process. With --json, one
    object: state, verified, and steps, each with tool, args, agent, decision (allow, deny or
    approval), reason and invocation_id, which is null for a call that waits for an approval. With
    --otlp also trace_id, and sent: whether the receiver took the trace in time.
    """
    if interactive and as_json:
        raise click.BadParameter("--interactive shows what it asks about, and --json shows nothing")
    console = Console(quiet=as_json, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    bob = people.terminal_bob(console) if interactive else people.approve
    chat_model = _chat_model(model)
    if otlp is not None:
        trace.begin(otlp)
    # absolute, so that the commands that are printed work from wherever the reader is
    folder = directory.absolute() if directory is not None else _temporary_folder()
    try:
        with _without_denial_lines():
            timeline = Timeline(console, _program())
            result = run(folder, chat_model, timeline, bob, otlp=otlp, is_served=in_server)
    except ConfigError:
        if directory is None:
            shutil.rmtree(folder)  # it has nothing that a user would look for
        raise
    sent_trace = result.sent_trace
    if as_json:
        output = {
            "state": str(result.setting.state),
            "verified": result.report.ok and result.report.anchored,
            "steps": [step.as_json() for step in result.steps],
            **(
                {"trace_id": sent_trace.trace_id, "sent": sent_trace.is_received}
                if sent_trace is not None
                else {}
            ),
        }
        click.echo(json.dumps(output))
    if not result.ok:
        raise SystemExit(1)


@contextmanager
def _without_denial_lines() -> Iterator[None]:
    """Keep the lines of refused calls off the screen: the timeline shows these calls."""
    logger = logging.getLogger("agentguard.decisions")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def run(
    directory: Path,
    model: BaseChatModel,
    timeline: Timeline,
    bob: Bob,
    *,
    otlp: str | None = None,
    is_served: bool = False,
) -> Run:
    """Run the demo in ``directory``, and print each step as it happens.

    ``bob`` answers the policy's requests for an approval; ``otlp`` is the URL of the trace's
    receiver; ``is_served`` puts the guard into a server. Raises ``ConfigError`` (a directory in
    use, no git, a model that fails), and the errors of the guard.
    """
    setting = create_setting(directory, is_served=is_served)
    requests: dict[str, ApprovalRequest] = {}

    def add_request(request: ApprovalRequest) -> None:
        requests[request.request_id] = request

    with (
        server.running(setting) if is_served else nullcontext() as process,
        Guard.open(setting.config, passphrase=setting.passphrase, on_request=add_request) as guard,
    ):
        if process is not None:
            timeline.show_server(process)
        display = _StepDisplay(guard, setting, timeline, requests)
        traceparent = _run_task(guard, setting, model, display, bob)
        steps = display.steps()
        timeline.show_waiting(guard.approvals.pending())
    timeline.show_effects(setting.forge, steps)
    report = tampering.verify(setting, setting.state)
    timeline.show_log_verdict(report)
    proofs = proof.prove(setting, steps)
    timeline.show_proofs(proofs)
    last = steps[-1].index if steps else report.entries - 1
    change = tampering.change_one_byte(setting, last)
    copy_report = tampering.verify(setting, setting.tampered_state)
    timeline.show_tampering(change, copy_report, setting)
    sent_trace = trace.end(otlp, traceparent) if otlp is not None else None
    if sent_trace is not None:
        timeline.show_trace(sent_trace)
    timeline.show_commands(setting, steps, proofs, sent_trace)
    return Run(setting, steps, report, copy_report, sent_trace)


def _run_task(
    guard: Guard, setting: Setting, model: BaseChatModel, display: _StepDisplay, bob: Bob
) -> str | None:
    """Let the agents do alice's task, and show each call once the log has it.

    Return the ``traceparent`` of the span around the task.
    """
    orchestrator, coder, fixer = map(guard.new_agent, (ORCHESTRATOR, AGENT, FIXER))
    tools = [*forge_tools(setting.forge), team.fix_tests(setting.forge, fixer)]
    graph = create_agent(
        model,
        guard_tools(tools, coder),
        system_prompt=SYSTEM,
        middleware=[GuardMiddleware(coder)],
        checkpointer=InMemorySaver(),
    )
    display.parameters.update({tool.name: tool.args for tool in tools})
    timeline = display.timeline

    def work() -> str:
        text = ""
        display.show_new_steps()
        graph_input: dict[str, Any] | None = {"messages": [{"role": "user", "content": TASK}]}
        for pauses in count():
            for message in _messages(graph, model, graph_input):
                if isinstance(message, AIMessage):
                    text = message.text
                    timeline.show_model_text(text)
                display.show_new_steps()
            display.show_new_steps()
            if pauses == _MAX_PAUSES or not _collect_answers(guard, setting, timeline, bob):
                break
            graph_input = None  # the graph goes on where it has paused
        return text

    delegation = team.delegate_task(guard)
    model_name = model._llm_type  # noqa: SLF001  a hook of LangChain
    timeline.show_opening(setting, delegation, TASK, model_name)
    token = CURRENT_FORGE.set(setting.forge)
    try:
        with delegation, adapters.agent_span(orchestrator, conversation="demo") as span:
            orchestrator.call(team.assign_task(guard, work), TASK, AGENT)
    finally:
        CURRENT_FORGE.reset(token)
    return span.traceparent


def _collect_answers(guard: Guard, setting: Setting, timeline: Timeline, bob: Bob) -> bool:
    """Let bob answer the pending requests, in a process of his own; return whether he has."""
    answers = 0
    for request in guard.approvals.pending():
        if guard.approvals.missing(request) is None:
            continue
        timeline.show_request(request)
        answer = bob(request)
        if answer is not None:
            command = people.command(setting, request, answer)
            timeline.show_answer(command, people.sign(setting, command))
            answers += 1
    return answers > 0


class _StepDisplay:
    """Shows each step of the log once; ``parameters`` has the argument schemas of each tool."""

    def __init__(
        self,
        guard: Guard,
        setting: Setting,
        timeline: Timeline,
        requests: Mapping[str, ApprovalRequest],
    ) -> None:
        self.timeline = timeline
        self.parameters: dict[str, Any] = {}
        self._guard = guard
        self._state = setting.state
        self._requests = requests
        self._shown_steps = 0

    def show_new_steps(self) -> None:
        """Show the steps that the log has got since the last call."""
        steps = self.steps()
        for step in steps[self._shown_steps :]:
            self.timeline.show_step(step, self.parameters.get(step.tool, {}))
        self._shown_steps = len(steps)

    def steps(self) -> list[Step]:
        """Read the log's files, as an auditor does: a guard in a server shows its log to nobody."""
        self._guard.flush()
        with closing(StoredLog.of(self._state)) as reader:
            return read_steps(reader, self._requests)


def _messages(
    graph: Any, model: BaseChatModel, graph_input: dict[str, Any] | None
) -> Iterator[BaseMessage]:
    """Run the graph to its end or its next pause, and yield each message as the graph makes it.

    LangSmith's tracing is off.
    """
    options: RunnableConfig = {
        "configurable": {"thread_id": "demo"},
        "recursion_limit": _MAX_STEPS,
    }
    with tracing_context(enabled=False):
        try:
            for update in graph.stream(graph_input, options, stream_mode="updates"):
                for node in update.values():
                    # the updates of a middleware and of a pause have no messages
                    yield from node.get("messages", ()) if isinstance(node, dict) else ()
        except AgentguardError:
            raise  # the guard's own, whatever the model
        except Exception as error:
            if isinstance(model, ScriptedModel):
                raise
            message = f"the model failed ({type(error).__name__}: {error})"
            raise ConfigError(message, code="model.failed") from error


def _chat_model(name: str | None) -> BaseChatModel:
    if name is None:
        return ScriptedModel()
    try:
        model: object = init_chat_model(name)
    except ImportError as error:  # LangChain's text gives the command that installs the package
        message = f"the model {name!r} needs a package that is not here: {error}"
        raise ConfigError(message, code="model.unusable") from error
    except Exception as error:
        message = f"the model {name!r} can't be used ({type(error).__name__}: {error})"
        raise ConfigError(message, code="model.unusable") from error
    if not isinstance(model, BaseChatModel):  # an empty name makes a configurable model
        message = f"the model {name!r} is none: name one as PROVIDER:NAME"
        raise ConfigError(message, code="model.unusable")
    return model


def _temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="agentguard-demo-"))


def _program() -> str:
    """Return the words that call agentguard in the reader's shell.

    ``uv run`` puts agentguard on the PATH of its own process only: there, and elsewhere where PATH
    lacks agentguard, the words are a path.
    """
    executable = Path(sys.argv[0])
    if executable.name == "__main__.py":
        return shlex.join([sys.executable, "-m", "agentguard.cli"])
    if shutil.which("agentguard") == str(executable) and "UV_RUN_RECURSION_DEPTH" not in os.environ:
        return "agentguard"
    return shlex.quote(str(executable.absolute()))
