"""Every middleware of langchain and deepagents, beside a guard that allows everything.

The classes are read from the packages: a new one is tried as it is, and asks for a line in
``CASES`` where its constructor wants arguments.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import itertools
import pkgutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from deepagents import create_deep_agent
from deepagents.backends import FilesystemBackend
from langchain.agents import create_agent
from langchain.agents.middleware import ModelChoice
from langchain.agents.middleware.types import AgentMiddleware
from langchain_core.decisions import BaseDecisionModel, ClassifierResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import Field

from agentguard_langchain import GuardMiddleware

ROOTS = ("langchain.agents.middleware", "deepagents")
# what LangChain says of its own: a class is in beta, a shell's pipes are closed late
pytestmark = [
    pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
CONFIG: Any = {"configurable": {"thread_id": "t1"}}


@pytest.fixture(autouse=True)
def _no_shell_outlives_its_test():
    """Wait for the threads that read a shell: their late warnings would fail another test."""
    yield
    if reading := [one for one in threading.enumerate() if "_enqueue_stream" in one.name]:
        gc.collect()  # a session that nobody has stopped ends with its middleware
        for thread in reading:
            thread.join(60)


@tool
def look(what: str) -> str:
    """Look at something."""
    return f"looked at {what}"


class Model(BaseChatModel):
    """Makes these calls once, in answer to the first message; else it is done."""

    calls: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages, stop=None, run_manager=None, **_options):
        done = any(message.type == "tool" for message in messages)
        calls = [] if done or messages[-1].type != "human" else self.calls
        message = AIMessage("" if calls else "Done.", tool_calls=calls, id=f"ai{len(messages)}")
        return ChatResult(generations=[ChatGeneration(message=message)])

    def bind_tools(self, tools, **_options):
        return self


class ChatOpenAI(Model):
    """Passes for a model whose provider looks tools up."""


class Judge(BaseDecisionModel):
    """Finds nothing risky, and takes the first of what it may choose from."""

    model: str = "judge"

    @property
    def _provider(self) -> str:
        return "nobody"

    def _classify(self, state, questions):
        answers: dict[str, Any] = {}
        for name, question in questions.items():
            if question.type == "noul":
                answers[name] = {"type": "noul", "noul": 0.0}
            else:
                options = list(question.criteria)
                shares = dict.fromkeys(options, 0.0) | {options[0]: 1.0}
                chosen = {"choice": options[0], "probabilities": shares, "confidence": 1.0}
                answers[name] = {"type": "choice", **chosen}
        usage = {"input_tokens": 1, "output_tokens": 0, "total_tokens": 1}
        said = {"id": "1", "model": "judge", "answers": answers, "usage": usage}
        return ClassifierResponse.model_validate(said)


class Case(NamedTuple):
    """How a middleware is tried: what it is made of, and the calls of the model."""

    options: Mapping[str, Any] = MappingProxyType({})
    calls: Sequence[tuple[str, dict[str, Any]]] = (("look", {"what": "a"}),)
    model: type[Model] = Model


def _child() -> dict[str, Any]:
    child = create_agent(Model(calls=_calls([("look", {"what": "inside"})])), [look])
    return {"name": "clerk", "description": "Looks.", "runnable": child}


def _summaries(folder: Path) -> Any:
    module = importlib.import_module("deepagents.middleware.summarization")
    return module._DeepAgentsSummarizationMiddleware(model=Model(), backend=_files(folder))


def _files(folder: Path) -> FilesystemBackend:
    return FilesystemBackend(root_dir=folder, virtual_mode=True)


WRITTEN = (("write_file", {"file_path": "/a.txt", "content": "hello"}),)
CASES: dict[str, Callable[[Path], Case]] = {
    "AutoModeMiddleware": lambda _: Case({"tools": ["look"], "classifier": Judge()}),
    "FilesystemFileSearchMiddleware": lambda folder: Case(
        {"root_path": str(folder), "use_ripgrep": False}, [("glob_search", {"pattern": "*.md"})]
    ),
    "HumanInTheLoopMiddleware": lambda _: Case({"interrupt_on": {"other": True}}),
    "LLMToolEmulator": lambda _: Case({"model": Model(), "tools": ["other"]}),
    "LLMToolSelectorMiddleware": lambda _: Case({"model": Model(), "on_parsing_failure": "all"}),
    "ModelCallLimitMiddleware": lambda _: Case({"run_limit": 5}),
    "ModelFallbackMiddleware": lambda _: Case({"first_model": Model()}),
    "ModelRouterMiddleware": lambda _: Case(
        {
            "choices": {"one": ModelChoice(Model(calls=_calls(Case().calls)), "all")},
            "instructions": "Which?",
            "classifier": Judge(),
        }
    ),
    "PIIMiddleware": lambda _: Case({"pii_type": "email"}),
    "ProviderToolSearchMiddleware": lambda _: Case(
        {"searchable_tools": ["look"]}, model=ChatOpenAI
    ),
    "ShellToolMiddleware": lambda folder: Case(
        {"workspace_root": folder}, [("shell", {"command": "echo hello"})]
    ),
    "SummarizationMiddleware": lambda folder: Case({"model": Model()}),
    "deepagents.SummarizationMiddleware": lambda folder: Case(
        {"model": Model(), "backend": _files(folder)}
    ),
    "_DeepAgentsSummarizationMiddleware": lambda folder: Case(
        {"model": Model(), "backend": _files(folder)}
    ),
    "SummarizationToolMiddleware": lambda folder: Case(
        {"summarization": _summaries(folder)}, [("compact_conversation", {})]
    ),
    "TodoListMiddleware": lambda _: Case(
        {}, [("write_todos", {"todos": [{"content": "a", "status": "pending"}]})]
    ),
    "ToolCallLimitMiddleware": lambda _: Case({"run_limit": 5}),
    "ToolErrorMiddleware": lambda _: Case({"on_error": lambda error, request: str(error)}),
    "_ToolExclusionMiddleware": lambda _: Case({"excluded": frozenset({"other"})}),
    "AsyncSubAgentMiddleware": lambda _: Case(
        {"async_subagents": [{"name": "far", "description": "Far.", "graph_id": "far"}]},
        [("list_async_tasks", {})],
    ),
    "FilesystemMiddleware": lambda folder: Case({"backend": _files(folder)}, WRITTEN),
    "MemoryMiddleware": lambda folder: Case({"backend": _files(folder), "sources": ["/A.md"]}),
    "RubricMiddleware": lambda _: Case({"model": Model()}),
    "SkillsMiddleware": lambda folder: Case({"backend": _files(folder), "sources": ["/skills"]}),
    "SubAgentMiddleware": lambda folder: Case(
        {"backend": _files(folder), "subagents": [_child()]},
        [("task", {"subagent_type": "clerk", "description": "look"})],
    ),
    "_ForkTaskToolMiddleware": lambda _: Case({"task_tool": look}),
}


def _classes() -> list[tuple[str, type[AgentMiddleware[Any, Any, Any]]]]:
    found: list[tuple[str, type[AgentMiddleware[Any, Any, Any]]]] = []
    for root in ROOTS:
        package = importlib.import_module(root)
        for info in pkgutil.walk_packages(package.__path__, f"{root}."):
            module = importlib.import_module(info.name)
            for name, value in sorted(vars(module).items()):
                ours = inspect.isclass(value) and value.__module__ == info.name
                if ours and issubclass(value, AgentMiddleware) and value is not AgentMiddleware:
                    found.append((f"{root.partition('.')[0]}.{name}", value))
    return found


CLASSES = _classes()


def test_the_packages_are_read():
    names = {kind.__name__ for _name, kind in CLASSES}
    assert {"ShellToolMiddleware", "ToolRetryMiddleware", "FilesystemMiddleware"} <= names
    unknown = {name.rpartition(".")[2] for name in CASES} - names
    assert not unknown, "CASES name what is not there any more"


def _calls(calls):
    numbers = itertools.count(1)
    return [
        {"name": name, "args": args, "id": f"call{next(numbers)}", "type": "tool_call"}
        for name, args in calls
    ]


def _case(name: str, folder: Path) -> Case:
    kind = name.rpartition(".")[2]
    make = CASES.get(name) or CASES.get(kind)
    return Case() if make is None else make(folder)


def _ended(messages):
    """What a run has said and done, without ids."""
    return [
        (m.type, m.name, m.content, getattr(m, "status", None), getattr(m, "tool_calls", None))
        for m in messages
    ]


async def _run(graph, *, sync):
    given = {"messages": [HumanMessage("go", id="h1")]}
    state = graph.invoke(given, CONFIG) if sync else await graph.ainvoke(given, CONFIG)
    return _ended(state["messages"])


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize(("name", "kind"), CLASSES, ids=[name for name, _kind in CLASSES])
async def test_a_run_ends_as_it_does_without_the_guard(allowing, tmp_path, name, kind, sync):
    ends = []
    for guarded in (False, True):
        folder = tmp_path / str(guarded)
        folder.mkdir()
        case = _case(name, folder)
        middleware = [kind(**case.options)]
        if guarded:
            middleware.append(GuardMiddleware(allowing.agent))
        graph = create_agent(
            case.model(calls=_calls(case.calls)),
            [look],
            middleware=middleware,
            checkpointer=InMemorySaver(),
        )
        ends.append(await _run(graph, sync=sync))
    bare, behind = ends
    assert behind == bare
    assert bare[-1][2] == "Done."
    assert any(said[0] == "tool" for said in bare), "no tool was called: the case shows nothing"
    made = [(call.tool, call.decision) for call in allowing.log.calls()]
    assert {decision for _tool, decision in made} == {"allow"}
    assert {tool for tool, _decision in made} >= {name for name, _args in case.calls}


@pytest.mark.parametrize("sync", [True, False])
async def test_a_deep_agent_ends_as_it_does_without_the_guard(allowing, tmp_path, sync):
    """What deepagents puts around every agent of its own is there as well."""
    ends = []
    calls = [*WRITTEN, ("look", {"what": "a"})]
    for guarded in (False, True):
        folder = tmp_path / str(guarded)
        folder.mkdir()
        graph = create_deep_agent(
            Model(calls=_calls(calls)),
            tools=[look],
            backend=_files(folder),
            middleware=[GuardMiddleware(allowing.agent)] if guarded else [],
            checkpointer=InMemorySaver(),
        )
        ends.append(await _run(graph, sync=sync))
    assert ends[1] == ends[0]
    assert sum(said[0] == "tool" for said in ends[0]) == 2
    made = sorted((call.tool, call.decision) for call in allowing.log.calls())
    assert made == [("look", "allow"), ("write_file", "allow")]


def test_a_denial_behind_them_is_seen(denying, tmp_path):
    """The twin: the same comparison tells a run in which the guard refuses."""
    case = _case("ShellToolMiddleware", tmp_path)
    kind = dict(CLASSES)["langchain.ShellToolMiddleware"]
    middleware = [kind(**case.options), GuardMiddleware(denying.agent)]
    graph = create_agent(Model(calls=_calls(case.calls)), [look], middleware=middleware)
    state = graph.invoke({"messages": [HumanMessage("go")]})
    (answer,) = (m for m in state["messages"] if isinstance(m, ToolMessage))
    assert (answer.status, "[policy.denied]" in answer.text) == ("error", True)
    assert [call.code for call in denying.log.calls()] == ["policy.denied"]
