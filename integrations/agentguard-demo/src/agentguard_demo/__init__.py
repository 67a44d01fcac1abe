"""``agentguard demo``: agents at work for alice on a real git repository, offline, in seconds.

The command, and one run from the founding of a trust domain to the verification of its log. Where
it plays stands in ``setting.py``, who works in it in ``team.py``, what they act on in ``forge.py``
and ``tools.py``, the model in ``script.py``, who approves in ``people.py``; the log is read by
``steps.py``, a call of it proved by ``proof.py``, its trace sent by ``trace.py``, and all of it
printed by ``timeline.py``.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langsmith import tracing_context
from rich.console import Console

from agentguard import AgentguardError, ApprovalRequest, ConfigError, Guard, Report, adapters
from agentguard_demo import people, proof, steps, tampering, team, trace
from agentguard_demo import setting as scene
from agentguard_demo.forge import IN_USE
from agentguard_demo.people import Bob
from agentguard_demo.script import SYSTEM, TASK, ScriptedModel
from agentguard_demo.setting import Setting
from agentguard_demo.steps import Step
from agentguard_demo.timeline import Timeline
from agentguard_demo.tools import tools_of
from agentguard_demo.trace import Sent
from agentguard_langchain.middleware import GuardMiddleware
from agentguard_langchain.tools import guard_tools

_MOST_STEPS: Final = 120
_MOST_PAUSES: Final = 10
_PIPE_WIDTH: Final = 100


@dataclass(frozen=True, slots=True)
class Run:
    """One run: the steps that its log tells, the verdict on the log and on the changed copy.

    ``sent`` is its trace, None for one that is not sent anywhere.
    """

    setting: Setting
    steps: list[Step]
    report: Report
    tampered: Report
    sent: Sent | None

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
    interactive: Annotated[  # noqa: FBT002  a flag of the command line
        bool,
        typer.Option(
            "--interactive", help="Ask you, at the terminal, what bob says to the merge into main."
        ),
    ] = False,
    otlp: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Send the trace to an OTLP receiver, such as Jaeger's http://localhost:4318, and "
            "print where to look for it.",
        ),
    ] = None,
    as_json: Annotated[  # noqa: FBT002  a flag of the command line
        bool, typer.Option("--json", help="One JSON object instead of the timeline.")
    ] = False,
) -> None:
    """Show agents at work for alice on a real git repository, offline: allowed, denied, proved.

    The merge into main waits for a person: bob approves it, in a second process. With --json, one
    object: state, verified, and steps, each with tool, args, agent, decision (allow, deny or
    approval), reason and invocation_id; of a call that waits, an approval, the last is null. With
    --otlp also trace_id, and sent: whether the trace was taken in time.
    """
    if interactive and as_json:
        raise typer.BadParameter("--interactive shows what it asks about, and --json shows nothing")
    console = Console(quiet=as_json, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    bob = people.asked_at(console) if interactive else people.agreeing
    chosen = _model(model)
    if otlp is not None:
        trace.begin(otlp)
    # absolute, so that the commands that are printed work from wherever the reader is
    where = directory.absolute() if directory is not None else _temporary()
    try:
        done = run(where, chosen, Timeline(console, _program()), bob, otlp=otlp)
    except ConfigError:
        if directory is None:
            shutil.rmtree(where)  # nothing in it that anybody would look for
        raise
    sent = done.sent
    if as_json:
        result = {
            "state": str(done.setting.state),
            "verified": done.report.ok and done.report.anchored,
            "steps": [step.as_json() for step in done.steps],
            **({"trace_id": sent.trace_id, "sent": sent.in_time} if sent is not None else {}),
        }
        typer.echo(json.dumps(result))
    if not done.ok:
        raise typer.Exit(1)


def run(
    directory: Path,
    model: BaseChatModel,
    timeline: Timeline,
    bob: Bob,
    *,
    otlp: str | None = None,
) -> Run:
    """Play the whole story in ``directory`` and print it as it happens.

    ``bob`` answers what the policy asks people; to ``otlp`` the trace is sent. Raises
    ``ConfigError`` (a directory in use, no git, a model that fails) and what the guard's own parts
    raise.
    """
    setting = scene.found(directory)
    asked: dict[str, ApprovalRequest] = {}

    def note(request: ApprovalRequest) -> None:
        asked[request.request_id] = request

    with Guard.open(setting.config, passphrase=setting.passphrase, on_request=note) as guard:
        shown = _Shown(guard, timeline, asked)
        traceparent = _work(guard, setting, model, shown, bob)
        recorded = steps.read(guard.reader(), asked)
        timeline.waiting(guard.approvals.pending())
    timeline.effects(setting.forge, recorded)
    report = tampering.verify(setting, setting.state)
    timeline.verified(report)
    proofs = proof.prove(setting, recorded)
    timeline.proved(proofs)
    last = recorded[-1].index if recorded else report.entries - 1
    change = tampering.change_one_byte(setting, last)
    tampered = tampering.verify(setting, setting.tampered)
    timeline.tampered(change, tampered, setting)
    sent = trace.end(otlp, traceparent) if otlp is not None else None
    if sent is not None:
        timeline.sent(sent)
    timeline.commands(setting, recorded, proofs, sent)
    return Run(setting, recorded, report, tampered, sent)


def _work(
    guard: Guard, setting: Setting, model: BaseChatModel, shown: _Shown, bob: Bob
) -> str | None:
    """Let the task be done for which alice lends; each call is shown once the log has it.

    Returns the span of all of it, a ``traceparent``.
    """
    names = (scene.ORCHESTRATOR, scene.AGENT, scene.FIXER)
    orchestrator, coder, fixer = map(guard.new_agent, names)
    given = [*tools_of(setting.forge), team.fix_tests(setting.forge, fixer)]
    graph = create_agent(
        model,
        guard_tools(given, coder),
        system_prompt=SYSTEM,
        middleware=[GuardMiddleware(coder)],
        checkpointer=InMemorySaver(),
    )
    shown.parameters.update({tool.name: tool.args for tool in given})
    timeline = shown.timeline

    def work() -> str:
        said = ""
        shown.go_on()
        begun: dict[str, Any] | None = {"messages": [{"role": "user", "content": TASK}]}
        for pauses in count():
            for message in _messages(graph, model, begun):
                if isinstance(message, AIMessage):
                    said = message.text
                    timeline.said(said)
                shown.go_on()
            shown.go_on()
            if pauses == _MOST_PAUSES or not _answered(guard, setting, timeline, bob):
                break
            begun = None  # the graph goes on where it has paused
        return said

    lent = team.lend(guard)
    timeline.opening(setting, lent, TASK, model._llm_type)  # noqa: SLF001  a hook of LangChain
    in_use = IN_USE.set(setting.forge)
    try:
        with lent, adapters.agent_span(orchestrator, conversation="demo") as span:
            orchestrator.call(team.assign_task(guard, work), TASK, scene.AGENT)
    finally:
        IN_USE.reset(in_use)
    return span.traceparent


def _answered(guard: Guard, setting: Setting, timeline: Timeline, bob: Bob) -> bool:
    """Let bob answer what waits, from a process of his own; return whether he has."""
    answers = 0
    for request in guard.approvals.pending():
        if guard.approvals.missing(request) is None:
            continue
        timeline.asked(request)
        said = bob(request)
        if said is not None:
            command = people.command(setting, request, said)
            timeline.answered(command, people.sign(setting, command))
            answers += 1
    return answers > 0


class _Shown:
    """The steps of the log that were shown so far; ``parameters`` are the tools' schemas."""

    def __init__(
        self, guard: Guard, timeline: Timeline, asked: Mapping[str, ApprovalRequest]
    ) -> None:
        self.timeline = timeline
        self.parameters: dict[str, Any] = {}
        self._guard = guard
        self._asked = asked
        self._steps = 0

    def go_on(self) -> None:
        """Show those that have come since."""
        recorded = steps.read(self._guard.reader(), self._asked)
        for step in recorded[self._steps :]:
            self.timeline.step(step, self.parameters.get(step.tool, {}))
        self._steps = len(recorded)


def _messages(
    graph: Any, model: BaseChatModel, begun: dict[str, Any] | None
) -> Iterator[BaseMessage]:
    """Run the graph to its end or its next pause, yielding its messages as they come.

    Nothing is traced to anywhere.
    """
    options: RunnableConfig = {
        "configurable": {"thread_id": "demo"},
        "recursion_limit": _MOST_STEPS,
    }
    with tracing_context(enabled=False):
        try:
            for update in graph.stream(begun, options, stream_mode="updates"):
                for node in update.values():
                    # the nodes of a middleware have none, nor has a pause
                    yield from node.get("messages", ()) if isinstance(node, dict) else ()
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
