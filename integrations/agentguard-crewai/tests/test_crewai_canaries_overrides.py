"""What the adapter overrides of CrewAI, and relies on: a new release fails here, and says where.

Nothing is guarded in these tests: each states a fact of CrewAI alone. Where one does not hold any
more, the module of the adapter that the message names has to be looked at.
"""

from __future__ import annotations

import ast
import asyncio
import contextvars
import copy
import functools
import inspect
import threading
from collections import defaultdict
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from queue import Queue
from typing import Any

import crewai
import pytest
import rounds
from crewai import Agent, Crew, Process, Task
from crewai.agent.planning_config import PlanningConfig
from crewai.agents.agent_executor import AgentExecutor
from crewai.agents.cache.cache_handler import CacheHandler
from crewai.agents.tools_handler import ToolsHandler
from crewai.events.event_context import _event_id_stack, restore_event_scope
from crewai.flow import Flow, listen, or_, start
from crewai.flow.async_feedback.types import HumanFeedbackPending, PendingFeedbackContext
from crewai.flow.flow_context import current_flow_method_name
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.flow.runtime import _iter_condition_events
from crewai.flow.types import FlowMethodName
from crewai.mcp.tool_resolver import MCPToolResolver
from crewai.project import CrewBase, agent, task
from crewai.project import crew as crew_method
from crewai.project.crew_base import AgentConfig, _filter_methods
from crewai.skills.tool import LoadSkillTool
from crewai.state.checkpoint_config import CheckpointConfig, apply_checkpoint
from crewai.tools import BaseTool, tool
from crewai.tools.agent_tools.base_agent_tools import BaseAgentTool
from crewai.tools.agent_tools.deferred_tool_result_reader import DeferredToolResultReader
from crewai.tools.base_tool import _TOOL_TYPE_REGISTRY, Tool
from crewai.tools.mcp_native_tool import MCPNativeTool
from crewai.tools.mcp_tool_wrapper import MCPToolWrapper
from crewai.tools.structured_tool import CrewStructuredTool
from crewai.tools.tool_failure import ToolFailure, ToolFailureReason
from crewai.utilities.agent_utils import convert_tools_to_openai_schema, parse_tools
from crewai.utilities.string_utils import sanitize_tool_name
from pydantic import BaseModel, PrivateAttr

from agentguard_crewai.agents import GuardedAgent
from agentguard_crewai.cache import OwnResults
from agentguard_crewai.crews import GuardedCrew
from agentguard_crewai.executor import GuardedExecutor, _GuardedReader

READ: Any = ("read_file", {"path": "plan"})


def changed(what, where):
    return f"CrewAI has changed: {what} (look at {where})"


def task_of(agent, **options):
    return Task(description="a task", expected_output="words", agent=agent, **options)


@pytest.fixture
def ran():
    """The paths that were read."""
    return []


@pytest.fixture
def read_file(ran):
    """A tool."""

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        ran.append(path)
        return f"the content of {path}"

    return read_file


class Watched(Agent):
    """An agent that notes when CrewAI calls its methods, and may put other tools in their place."""

    _noted: list[Any] = PrivateAttr(default_factory=list)
    _instead: bool = PrivateAttr(default=False)

    def _add_skill_loader_tool(self, tools: list[BaseTool], task: Any = None) -> list[BaseTool]:
        found = super()._add_skill_loader_tool(tools, task)
        if self._instead:  # as the adapter does
            found = [
                Tool(name=one.name, description="d", func=one.run, args_schema=one.args_schema)
                for one in found
            ]
        self._noted.append(("tools", found))
        return found

    def set_fingerprint(self, fingerprint: Any) -> None:
        super().set_fingerprint(fingerprint)
        self._noted.append(("fingerprint", fingerprint))

    def set_cache_handler(self, cache_handler: CacheHandler) -> None:
        super().set_cache_handler(cache_handler)
        self._noted.append(("cache", cache_handler))

    def noted(self, what):
        return [value for name, value in self._noted if name == what]


def watched(way, *steps, **options):
    llm = way.model(*steps)
    given = {"role": "Lead", "goal": "a goal", "backstory": "a story", "llm": llm, **options}
    return Watched(**given)


# --- what is overridden -------------------------------------------------------------------------

SIGNATURES = {
    Agent: {
        "_add_skill_loader_tool": "(tools, task=None)",
        "_prepare_kickoff": "(messages, response_format=None, input_files=None)",
        "create_agent_executor": "(tools=None, task=None)",
        "execute_task": "(task, context=None, tools=None)",
        "aexecute_task": "(task, context=None, tools=None)",
        "kickoff": "(messages, response_format=None, input_files=None, from_checkpoint=None)",
        "kickoff_async": "(messages, response_format=None, input_files=None, from_checkpoint=None)",
        "akickoff": "(messages, response_format=None, input_files=None, from_checkpoint=None)",
        "copy": "()",
        "__copy__": "()",
        "__deepcopy__": "(memo=None)",
        "model_copy": "(*, update=None, deep=False)",
        "set_fingerprint": "(fingerprint)",
        "set_cache_handler": "(cache_handler)",
    },
    Crew: {
        "kickoff": "(inputs=None, input_files=None, from_checkpoint=None)",
        "kickoff_async": "(inputs=None, input_files=None, from_checkpoint=None)",
        "akickoff": "(inputs=None, input_files=None, from_checkpoint=None)",
        "kickoff_for_each_async": "(inputs, input_files=None)",
        "akickoff_for_each": "(inputs, input_files=None)",
        "copy": "()",
        "_create_manager_agent": "()",
        "_get_agent_to_use": "(task)",
    },
    AgentExecutor: {"_register_deferred_file_reader": "(reader)"},
    DeferredToolResultReader: {"_run": "(file_path, start_line=1, line_count=None)"},
    CacheHandler: {"add": "(tool, input, output)", "read": "(tool, input)"},
    BaseTool: {
        "run": "(*args, **kwargs)",
        "arun": "(*args, **kwargs)",
        "_run": "(*args, **kwargs)",
        "_arun": "(*args, **kwargs)",
        "to_structured_tool": "()",
        "_validate_kwargs": "(kwargs)",
    },
    Tool: {
        "run": "(*args, **kwargs)",
        "arun": "(*args, **kwargs)",
        "_run": "(*args, **kwargs)",
        "_arun": "(*args, **kwargs)",
    },
    BaseAgentTool: {
        "_get_coworker": "(coworker, **kwargs)",
        "sanitize_agent_name": "(name)",
    },
}


def signature_of(kind, name):
    signature = inspect.signature(getattr(kind, name))
    plain = [p.replace(annotation=p.empty) for n, p in signature.parameters.items() if n != "self"]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in SIGNATURES.items() for name in names]
)
def test_what_is_overridden_or_called_takes_what_it_took(kind, name):
    found = signature_of(kind, name) if hasattr(kind, name) else None
    expected = SIGNATURES[kind][name]
    assert found == expected, changed(f"{kind.__name__}.{name} is {found}", "its override")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (GuardedAgent, Agent),
        (GuardedCrew, Crew),
        (GuardedExecutor, AgentExecutor),
        (_GuardedReader, DeferredToolResultReader),
        (OwnResults, CacheHandler),
    ],
)
def test_whatever_the_adapter_overrides_stands_in_this_file(ours, theirs):
    written = {name for name, value in vars(ours).items() if inspect.isfunction(value)}
    overridden = {name for name in written if hasattr(theirs, name)}
    pydantics = {"model_post_init", "__replace__", "__init__", "__repr_name__", "__setattr__"}
    assert overridden - pydantics <= set(SIGNATURES[theirs])


@pytest.mark.parametrize("ours", [GuardedAgent, GuardedCrew, GuardedExecutor, _GuardedReader])
def test_no_method_of_the_adapter_takes_the_place_of_a_users(ours):
    theirs = ours.__mro__[2 if ours is _GuardedReader else 1]
    written = {name for name, value in vars(ours).items() if inspect.isfunction(value)}
    own = {name for name in written if not hasattr(theirs, name)}
    assert {name for name in own if not name.startswith("_agentguard")} == set()


def test_a_tool_of_a_server_is_told_from_others_by_the_configuration_of_its_client():
    known = MCPToolResolver._resolve_native.__code__.co_cellvars
    assert "mcp_config" in known, changed("an MCP tool's client factory", "binding.py, _state")
    made = MCPNativeTool(dict, "look", {}, "files", server_reference="docs")
    assert made.server_reference == "docs", changed("MCPNativeTool", "binding.py, _state")
    assert made._client_factory is dict, changed("MCPNativeTool", "binding.py, _state")


def test_remote_agents_replace_what_the_adapter_looks_at_on_the_object():
    written = ast.parse((Path(crewai.__file__).parent / "a2a" / "wrapper.py").read_text("utf-8"))
    found = {
        node.args[1].value
        for node in ast.walk(written)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "object.__setattr__"
        and isinstance(node.args[1], ast.Constant)
    }
    known = {"execute_task", "aexecute_task", "kickoff", "kickoff_async"}
    assert found == known, changed(f"Agent(a2a=...) replaces {found}", "agents.py, _ENTRY_POINTS")


@pytest.mark.parametrize("private", ["_original_role", "tools_handler"])
def test_an_agent_has_what_the_adapter_looks_for(private):
    known = {*Agent.__private_attributes__, *Agent.model_fields}
    assert private in known, changed(f"Agent.{private} is gone", "agents.py")


# --- where tools go -----------------------------------------------------------------------------

CALLED = {
    "parse_tools": {
        "agent/core.py:Agent.create_agent_executor",
        "agent/core.py:Agent._prepare_kickoff",
        "lite_agent.py:LiteAgent.kickoff",  # no crew's agent
        "lite_agent.py:LiteAgent.parse_tools",
    },
    "to_structured_tool": {
        "utilities/agent_utils.py:parse_tools",
        "tools/base_tool.py:to_langchain",
        "agents/agent_executor.py:AgentExecutor._register_deferred_file_reader",
    },
    "CrewStructuredTool": {"tools/base_tool.py:BaseTool.to_structured_tool"},
    "AgentExecutor": {"agent/core.py:Agent._prepare_kickoff"},
    "executor_class": {"agent/core.py:Agent.create_agent_executor"},
    "StepExecutor": {"agents/agent_executor.py:AgentExecutor._ensure_step_executor"},
    "_add_skill_loader_tool": {
        "agent/core.py:Agent.create_agent_executor",
        "agent/core.py:Agent._prepare_kickoff",
    },
    "_prepare_kickoff": {"agent/core.py:Agent.kickoff", "agent/core.py:Agent.kickoff_async"},
    "create_agent_executor": {
        "agent/utils.py:prepare_tools",
        "crews/utils.py:setup_agents",
        # agents that run their tools by themselves: they can't be guarded
        "agents/agent_adapters/langgraph/langgraph_adapter.py:LangGraphAgentAdapter.execute_task",
        "agents/agent_adapters/openai_agents/openai_adapter.py:OpenAIAgentAdapter.execute_task",
    },
    "execute_task": {
        "agent/core.py:Agent._handle_execution_error",
        "task.py:Task._execute_core",
        "task.py:Task._invoke_guardrail_function",
        "tools/agent_tools/base_agent_tools.py:BaseAgentTool._execute",
    },
    "aexecute_task": {
        "agent/core.py:Agent._handle_execution_error_async",
        "task.py:Task._aexecute_core",
        "task.py:Task._ainvoke_guardrail_function",
        "a2a/utils/task.py:_execute_impl",
    },
    "set_fingerprint": {
        "utilities/tool_utils.py:execute_tool_and_check_finality",
        "utilities/tool_utils.py:aexecute_tool_and_check_finality",
    },
    "execute_tool_and_check_finality": {
        "agents/agent_executor.py:AgentExecutor.execute_tool_action",
        "agents/step_executor.py:StepExecutor._execute_text_tool_with_events",
        "lite_agent.py:LiteAgent._invoke_loop",
    },
    "aexecute_tool_and_check_finality": set[str](),
    "_register_deferred_file_reader": {
        "agents/agent_executor.py:AgentExecutor._prepare_tool_result_for_context"
    },
    "set_cache_handler": {
        "agent/core.py:Agent._setup_agent_executor",
        "crew.py:Crew.check_config",
        "crew.py:Crew._create_manager_agent",
    },
    "_create_manager_agent": {
        "crew.py:Crew._run_hierarchical_process",
        "crew.py:Crew._arun_hierarchical_process",
        "crew.py:Crew.replay",
    },
    "_get_agent_to_use": {"crews/utils.py:prepare_task_execution"},
}
RUN = {
    "run": {
        "utilities/agent_utils.py:convert_tools_to_openai_schema",
        "flow/runtime/_actions.py",  # a flow's own step, which is no agent's
        "agents/agent_adapters",
    },
    "_run": {
        "tools/base_tool.py",
        "agents/agent_adapters",
        "tools/structured_tool.py",
    },
    "func": {"tools/base_tool.py", "tools/structured_tool.py"},
}


def _tree(text: str) -> ast.AST:
    """Parse a module; CPython up to 3.11.7 may take two threads' depths for one (gh-106905)."""
    for _try in range(9):
        with suppress(SystemError):
            return ast.parse(text)
    return ast.parse(text)


@pytest.fixture(scope="module")
def census():
    """Where CrewAI's code calls what the adapter stands in the way of, and runs tools."""
    root = Path(crewai.__file__).parent
    calls: dict[str, set[str]] = defaultdict(set)
    runs: dict[str, set[str]] = defaultdict(set)

    def walk(node: ast.AST, where: list[str], file: str) -> None:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            inside = [*where, child.name] if named else where  # type: ignore[attr-defined]
            if isinstance(child, ast.Call):
                name = getattr(child.func, "attr", getattr(child.func, "id", ""))
                if name in CALLED:
                    calls[name].add(f"{file}:{'.'.join(inside)}")
            if (
                isinstance(child, ast.Attribute)
                and child.attr in RUN
                and isinstance(child.ctx, ast.Load)
                and ast.unparse(child.value).endswith("tool")
            ):
                runs[child.attr].add(f"{file}:{'.'.join(inside)}")
            walk(child, inside, file)

    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if any(f"{name}(" in text for name in CALLED) or "tool." in text:
            walk(_tree(text), [], path.relative_to(root).as_posix())
    return calls, runs


@pytest.mark.parametrize("name", CALLED)
def test_no_other_code_of_crewai_calls(census, name):
    found = census[0][name]
    new, gone = found - CALLED[name], CALLED[name] - found
    message = changed(f"{name} is called by {sorted(new)}, no more by {sorted(gone)}", "agents.py")
    assert found == CALLED[name], message


@pytest.mark.parametrize("name", RUN)
def test_no_other_code_of_crewai_runs_a_tool(census, name):
    new = {one for one in census[1][name] if not one.startswith(tuple(RUN[name]))}
    assert not new, changed(f"tools are run ({name}) by {sorted(new)}", "tools.py")


def test_what_a_model_calls_are_the_tools_that_came_last(way, read_file, ran):
    lead = watched(way, READ, "done", tools=[read_file])
    lead._instead = True
    way.crew(lead).kickoff()
    executor: Any = lead.agent_executor
    (found,) = lead.noted("tools")[-1]
    where = "agents.py"
    assert executor.original_tools == [found], changed("an executor got other tools", where)
    (structured,) = executor.tools
    assert structured._original_tool is found, changed("an executor runs other tools", where)
    assert (ran, found.func) == (["plan"], read_file.run)
    assert len(lead.noted("tools")) == 2, changed("tools are prepared at other times", where)


def test_what_an_agent_by_itself_is_prepared_with(way, read_file, ran):
    lead = watched(way, tools=[read_file])
    lead._instead = True
    prepared = lead._prepare_kickoff("go on")
    where = "agents.py, _prepare_kickoff"
    assert isinstance(prepared[0], AgentExecutor), changed("what it returns", where)
    assert lead.agent_executor is not prepared[0]
    (found,) = lead.noted("tools")[-1]
    assert prepared[0].original_tools == [found], changed("an executor got other tools", where)
    assert [one._original_tool for one in prepared[0].tools] == [found]
    assert ran == []


def test_the_loader_of_skills_is_the_last_of_the_tools(native, read_file, tmp_path):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "SKILL.md").write_text("---\nname: plan\ndescription: d\n---\nall\n")
    lead = native.agent("Lead", tools=[read_file], skills=[tmp_path])
    kinds = [type(one) for one in lead._add_skill_loader_tool([read_file])]
    assert kinds == [Tool, LoadSkillTool], changed("how skills are loaded", "agents.py")


def test_an_executor_keeps_what_runs_a_planners_steps(native, read_file):
    lead: Any = native.agent("Lead", tools=[read_file])
    lead.create_agent_executor()
    executor = lead.agent_executor
    steps = executor._ensure_step_executor()
    assert executor._step_executor is steps, changed("where steps are kept", "executor.py")
    assert steps.original_tools == executor.original_tools
    assert steps.tools == executor.tools
    executor._step_executor = None
    assert executor._ensure_step_executor() is not steps, changed("how it is made", "executor.py")


def test_an_executor_is_kept_and_given_new_tools(native, read_file):
    lead: Any = native.agent("Lead", tools=[read_file])
    lead.create_agent_executor()
    before = lead.agent_executor
    lead.create_agent_executor([])
    assert lead.agent_executor is before
    assert (before.original_tools, before.tools) == ([], []), changed("its tools", "executor.py")


def test_the_reader_of_deferred_results_is_a_tool_like_others(native, read_file):
    lead: Any = native.agent("Lead", tools=[read_file])
    lead.create_agent_executor()
    executor = lead.agent_executor
    reader = DeferredToolResultReader()
    executor._register_deferred_file_reader(reader)
    where = "executor.py"
    assert executor.original_tools[-1] is reader, changed("where it is put", where)
    assert executor.tools[-1]._original_tool is reader, changed("where it is put", where)
    assert executor._tool_name_mapping["read_a_deferred_tool_result"] is reader


# --- tools --------------------------------------------------------------------------------------


class Reads(BaseTool):
    """A tool class."""

    name: str = "read_file"
    description: str = "Read a file."

    def _run(self, path: str) -> str:
        return f"_run {path}"


def test_a_tools_ways_lead_to_one_another(read_file):
    where = "tools.py, _STOCK"
    plain, made = Reads(), read_file
    assert plain.run(path="a") == "_run a", changed("BaseTool.run calls _run no more", where)
    made.func = lambda path: f"func {path}"
    assert made.run(path="a") == "func a", changed("Tool.run calls func no more", where)
    assert made._run(path="a") == "func a", changed("Tool._run calls func no more", where)
    object.__setattr__(made, "_run", lambda path: f"_run {path}")
    assert made.run(path="a") == "func a", changed("Tool.run calls _run now", where)


async def test_a_tools_async_ways_lead_to_one_another():
    async def reads(path: str) -> str:
        """Read a file."""
        return f"func {path}"

    read_file: Any = tool("read_file")(reads)
    where = "tools.py, _STOCK"
    assert await read_file._arun(path="a") == "func a", changed("Tool._arun", where)
    assert await read_file.arun(path="a") == "func a", changed("Tool.arun", where)
    with pytest.raises(NotImplementedError):
        await Reads()._arun(path="a")


def test_a_structured_tool_runs_the_method_of_the_tool(read_file):
    for one in (read_file, Reads()):
        structured = one.to_structured_tool()
        where = "tools.py, _Structured"
        assert structured.func == one._run, changed("what a structured tool runs", where)
        assert structured._original_tool is one, changed("what it keeps of the tool", where)


def test_each_path_runs_a_tool_by_what_the_adapter_gates(way):
    """Natively ``run``, which is looked up on the tool, and in text ``_run``."""
    entered: list[str] = []

    class Entered(Reads):
        def run(self, *args: Any, **kwargs: Any) -> Any:
            entered.append("run")
            return super().run(*args, **kwargs)

        def _run(self, path: str) -> str:
            entered.append("_run")
            return path

    way.crew(way.agent("Lead", READ, "done", tools=[Entered()])).kickoff()
    expected = ["run", "_run"] if way.native else ["_run"]
    assert entered == expected, changed(f"a tool is run by {entered}", "tools.py")


def test_the_names_of_tools():
    assert sanitize_tool_name('A "Fine" readTool!') == "a_fine_read_tool"
    long = sanitize_tool_name("x" * 100)
    assert len(long) == len(sanitize_tool_name(long)) == 64

    def other(path: str) -> str:
        """Read another file."""
        return path

    made: list[BaseTool] = [
        tool(name)(other) for name in ("read_file", "Read File", "readFile", "read_file_2")
    ]
    _schema, functions, mapping = convert_tools_to_openai_schema(made)
    names = ["read_file", "read_file_2", "read_file_3", "read_file_2_2"]
    assert list(functions) == names, changed("tools of one name", "binding.py, names_of")
    assert list(mapping.values()) == made
    assert [one.name for one in parse_tools(made)] == [one.name for one in made]


def test_the_registry_of_tool_classes():
    key = f"{Reads.__module__}.{Reads.__qualname__}"
    assert _TOOL_TYPE_REGISTRY[key] is Reads, changed("the registry", "tools.py, _guarded_class")
    assert Reads().tool_type == key


def test_tools_of_servers_know_their_server():
    wrapped = MCPToolWrapper({"url": "http://localhost"}, "write", {}, "docs")
    native = MCPNativeTool(lambda: None, "write", {}, "docs")
    for one in (wrapped, native):
        assert one.server_name == "docs", changed("server_name", "binding.py, _origin")
        assert sanitize_tool_name(one.name) == "docs_write"
    assert {MCPToolWrapper, MCPNativeTool} == set(server_tools()), changed(
        "there is another class for tools of servers", "binding.py, _origin"
    )


def server_tools():
    known: list[type] = [Tool]
    todo = list(BaseTool.__subclasses__())
    while todo:
        kind = todo.pop()
        known.append(kind)
        todo.extend(kind.__subclasses__())
    return {k for k in known if k.__module__.startswith("crewai.") and "MCP" in k.__name__}


def test_uses_are_counted_in_the_tools_own_state(way):
    made = Reads(max_usage_count=1)
    lead = way.agent("Lead", READ, ("read_file", {"path": "b"}), "done", tools=[made])
    output = way.crew(lead).kickoff()
    (failed,) = output.tasks_output[0].tool_failures
    assert failed.failure.reason is ToolFailureReason.USAGE_LIMIT
    assert "current_usage_count" in vars(made), changed("where uses are counted", "tools.py")


# --- the cache ----------------------------------------------------------------------------------


class Noting(CacheHandler):
    """A cache that notes how it is used, together with what ran."""

    _noted: list[Any] = PrivateAttr(default_factory=list)

    def add(self, tool: str, input: str, output: Any) -> None:  # noqa: A002  CrewAI's name
        self._noted.append(("add", tool, input))
        super().add(tool, input, output)

    def read(self, tool: str, input: str) -> Any | None:  # noqa: A002  CrewAI's name
        self._noted.append(("read", tool, input))
        return super().read(tool, input)


def test_the_cache_is_asked_before_a_tool_is(way):
    handler = Noting()

    @tool("Read File")
    def read_file(path: str) -> str:
        """Read a file."""
        handler._noted.append(("ran", path))
        return path

    again = ("read_file", {"path": "b"})
    lead = way.agent("Lead", READ, again, READ, "done", tools=[read_file], cache_handler=handler)
    way.crew(lead).kickoff()
    told = '{"path": "plan"}'
    where = "cache.py, OwnResults"
    assert handler._noted[:3] == [
        ("read", "read_file", told),
        ("ran", "plan"),
        ("add", handler._noted[2][1], told),
    ], changed("how the cache is used", where)
    assert handler._noted[-1] == ("read", "read_file", told), changed("it is not read", where)
    assert handler._noted.count(("ran", "plan")) == 1
    assert sanitize_tool_name(handler._noted[2][1]) == "read_file"


def test_a_crew_offers_its_agents_one_cache(way, native):
    lead, hand = (watched(way, "done") for _agent in range(2))
    crew = Crew(
        agents=[lead, hand],
        tasks=[task_of(lead)],
        process=Process.hierarchical,
        manager_llm=native.model("done"),
        cache=True,
    )
    where = "agents.py, assign_identity"
    for one in (lead, hand):
        assert one.noted("cache") == [crew._cache_handler], changed("who offers a cache", where)
        assert isinstance(one.tools_handler, ToolsHandler)
        assert one.tools_handler.cache is crew._cache_handler
    crew.kickoff()
    manager: Any = crew.manager_agent
    assert manager.cache_handler is crew._cache_handler, changed("the manager's cache", where)
    assert not watched(way).noted("cache"), changed("agents cache by themselves", where)


def test_a_cache_function_is_asked_once_a_tool_has_run_and_its_error_is_another_try(way):
    asked: list[Any] = []

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        asked.append("ran")
        return path

    def cached(args: Any, result: Any) -> bool:
        asked.append((args, result))
        raise ValueError("not to be had")

    read_file.cache_function = cached
    lead = way.agent("Lead", READ, "done", tools=[read_file], cache_handler=CacheHandler())
    way.crew(lead).kickoff()
    where = "tools.py, _Caching"
    assert asked[:2] == ["ran", ({"path": "plan"}, "plan")], changed("when it is asked", where)
    tries = asked.count("ran")
    assert (tries > 1) == (not way.native), changed(f"{tries} tries", where)


def test_of_a_models_text_a_tool_gets_what_its_schema_names(text, read_file, ran):
    further = ("read_file", {"path": "plan", "owner": "alice"})
    lead = text.agent("Lead", further, "done", tools=[read_file])
    assert text.crew(lead).kickoff().tasks_output[0].tool_failures == []
    assert ran == ["plan"], changed("further arguments", "cache.py, _received")


def test_a_tool_may_say_what_its_results_are():
    assert "result_schema" in BaseTool.model_fields, changed("result_schema", "call.py, Call")


def test_a_cache_is_named_in_its_representation():
    assert CacheHandler().__repr_name__() == "CacheHandler", changed("its name", "cache.py")


# --- failures and tries -------------------------------------------------------------------------


def test_a_failure_is_one_execution_that_model_and_task_are_told_of(way):
    tries: list[str] = []
    handler = Noting()

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        tries.append(path)
        return ToolFailure(message="not this one", code="policy.denied")  # type: ignore[return-value]

    lead = way.agent("Lead", READ, "done", tools=[read_file], cache_handler=handler)
    output = way.crew(lead).kickoff()
    where = "denial.py"
    assert tries == ["plan"], changed("a failure is tried again", where)
    (failed,) = output.tasks_output[0].tool_failures
    assert (failed.failure.code, failed.failure.message) == ("policy.denied", "not this one")
    said = str(output.tasks_output[0].messages)
    assert "not this one (code: policy.denied)" in said, changed("what a model is told", where)
    (stored,) = [handler.read("read_file", '{"path": "plan"}')]
    assert stored is None, changed("a failure is cached", where)


def test_a_result_that_is_the_answer_is_none_where_it_has_failed(way):
    @tool(result_as_answer=True)
    def read_file(path: str) -> str:
        """Read a file."""
        return ToolFailure(message="no")  # type: ignore[return-value]

    lead = way.agent("Lead", READ, "done", tools=[read_file])
    assert way.crew(lead).kickoff().raw == "done", changed("a failure is the answer", "denial.py")


def test_a_fingerprint_is_set_once_before_each_text_action(text):
    tries: list[str] = []

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        tries.append(path)
        raise ValueError(path)

    lead = watched(text, READ, ("read_file", {"path": "b"}), "done", tools=[read_file])
    text.crew(lead).kickoff()
    where = "call.py, Action"
    assert tries == [*["plan"] * 6, *["b"] * 6], changed("how often CrewAI tries", where)
    assert len(lead.noted("fingerprint")) == 2, changed("when a fingerprint is set", where)


def test_a_fingerprint_is_not_set_for_native_calls(native, read_file):
    lead = watched(native, READ, "done", tools=[read_file])
    native.crew(lead).kickoff()
    assert lead.noted("fingerprint") == [], changed("native calls set it", "call.py, Action")


def test_a_native_call_is_tried_once(native):
    tries: list[str] = []

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        tries.append(path)
        raise ValueError(path)

    output = native.crew(native.agent("Lead", READ, "done", tools=[read_file])).kickoff()
    assert tries == ["plan"], changed("native calls are tried again", "call.py, Action")
    (failed,) = output.tasks_output[0].tool_failures
    assert failed.failure.reason is ToolFailureReason.EXCEPTION


class Stop(BaseException):
    """What is no Exception."""


@pytest.mark.parametrize("how", ["alone", "several", "coworker", "akickoff"])
def test_what_is_no_exception_passes_through_crewai(native, text, how):
    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        raise Stop

    for way in (native, text):
        if how == "several" and not way.native:
            continue
        steps: Any = [[READ, READ]] if how == "several" else [READ]
        lead = way.agent("Lead", *steps, "done", tools=[read_file])
        crew = way.crew(lead)
        if how == "coworker":
            hands = ("delegate_work_to_coworker", {"task": "t", "context": "c", "coworker": "Lead"})
            boss = way.agent("Boss", hands, "done", allow_delegation=True)
            crew = Crew(agents=[boss, lead], tasks=[task_of(boss)])
        begin = (lambda: asyncio.run(crew.akickoff())) if how == "akickoff" else crew.kickoff  # noqa: B023
        with pytest.raises(Stop):
            contextvars.copy_context().run(begin)  # CrewAI leaves its scopes open


def test_what_is_no_exception_ends_the_thread_of_a_task_and_leaves_it_open(native, monkeypatch):
    ended: Queue[Any] = Queue()
    monkeypatch.setattr(threading, "excepthook", lambda told: ended.put(told.exc_type))

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        raise Stop

    lead = native.agent("Lead", READ, "done", tools=[read_file])
    future = task_of(lead, async_execution=True).execute_async(lead)
    assert ended.get(timeout=120) is Stop
    assert not future.done(), changed("whoever waits for such a task is told", "agents.py")


def test_parallel_steps_of_a_plan_take_what_is_no_exception_for_a_failure():
    path = Path(crewai.__file__).parent / "agents" / "agent_executor.py"
    written = ast.parse(path.read_text("utf-8"))
    gathered = [
        node
        for node in ast.walk(written)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "asyncio.gather"
    ]
    taken = [{one.arg: ast.unparse(one.value) for one in node.keywords} for node in gathered]
    where = "agents.py, _executing"
    assert taken == [{"return_exceptions": "True"}], changed("how steps end", where)


# --- work that is handed on ---------------------------------------------------------------------


class Handed(Agent):
    """An agent that notes the work it is given."""

    _given: list[Any] = PrivateAttr(default_factory=list)

    def execute_task(self, task: Any, context: Any = None, tools: Any = None) -> Any:
        self._given.append((task.description, context, tools))
        if task.description == "fail":
            raise ValueError("it can't be done")
        return "it is done"


@pytest.mark.parametrize(("number", "argument"), [(0, "task"), (1, "question")])
def test_a_delegation_tool_has_its_coworker_execute_a_task(native, number, argument):
    twins: list[Any] = [
        Handed(role=role, goal="g", backstory="b", llm=native.model())
        for role in ("Hand", " HAND", "Other")
    ]
    made = native.agent("Lead").get_delegation_tools(twins)[number]
    where = "coworkers.py, coworker_of"
    assert isinstance(made, BaseAgentTool)
    assert made.agents == twins
    told = {"context": "c", "coworker": "[ hand , Other]"}
    assert made.run(**{argument: "work", **told}) == "it is done"
    given = [one._given for one in twins]
    assert given == [[("work", "c", None)], [], []], changed("who gets the work", where)
    said = made.run(**{argument: "fail", **told})
    where = "coworkers.py, run_handed_over"
    assert "it can't be done" in said, changed("what a coworker raises is not a text", where)
    assert made._get_coworker("a", co_worker="b") == "a"
    assert made._get_coworker(None, co_worker="b") == "b"
    assert made._get_coworker(coworker=None, co_worker="[x, y]") == "x"
    assert made.sanitize_agent_name(' A "b"\n c ') == "a b c"


def test_delegation_tools_are_the_only_ones_that_hand_work_on():
    kinds = {kind.__name__ for kind in BaseAgentTool.__subclasses__()}
    theirs = {k for k in kinds if not k.startswith("_")}
    assert theirs == {"DelegateWorkTool", "AskQuestionTool"}, changed("those tools", "coworkers.py")


@pytest.mark.parametrize("begin", ["kickoff", "akickoff", "replay"])
def test_a_hierarchical_crew_makes_its_manager_and_asks_who_is_to_work(native, begin):
    asked: list[Any] = []

    class Asking(Crew):
        def _create_manager_agent(self) -> None:
            super()._create_manager_agent()
            asked.append(self.manager_agent)

        def _get_agent_to_use(self, task: Task) -> Any:
            asked.append(super()._get_agent_to_use(task))
            return asked[-1]

    hand = native.agent("Hand", "done")
    crew = Asking(
        agents=[hand],
        tasks=[task_of(hand)],
        process=Process.hierarchical,
        manager_llm=native.model("done", "done"),
    )
    if begin == "akickoff":
        asyncio.run(crew.akickoff())
    else:
        crew.kickoff()
    if begin == "replay":
        asked.clear()
        crew.replay(str(crew.tasks[0].id))
    manager = crew.manager_agent
    assert manager is not None
    assert asked == [manager, manager], changed("when it is made, and who works", "crews.py")
    assert manager.role == "Crew Manager", changed("its role", "the pages: crew-manager")


@pytest.mark.parametrize("begin", ["kickoff", "akickoff"])
def test_a_sequential_crew_asks_who_is_to_work(native, begin):
    asked: list[Any] = []

    class Asking(Crew):
        def _get_agent_to_use(self, task: Task) -> Any:
            asked.append(super()._get_agent_to_use(task))
            return asked[-1]

    lead, hand = native.agent("Lead", "done"), native.agent("Hand", "done")
    crew = Asking(agents=[lead, hand], tasks=[task_of(hand), task_of(lead)])
    asyncio.run(crew.akickoff()) if begin == "akickoff" else crew.kickoff()
    assert asked == [hand, lead], changed("who works at a task", "crews.py, _get_agent_to_use")


# --- what is in a context -----------------------------------------------------------------------

WHO: ContextVar[str] = ContextVar("who", default="nobody")


def planned(native):
    steps: list[dict[str, Any]] = [
        {"step_number": at, "description": "read", "tool_to_use": None, "depends_on": []}
        for at in (1, 2)
    ]
    said = str({"plan": "p", "ready": True, "steps": steps})
    said = said.replace("'", '"').replace("True", "true").replace("None", "null")
    return PlanningConfig(reasoning_effort="low", max_attempts=1, llm=native.model(said))


CONTEXTS = {
    "kickoff": lambda crew: crew.kickoff(),
    "kickoff_async": lambda crew: asyncio.run(crew.kickoff_async()),
    "akickoff": lambda crew: asyncio.run(crew.akickoff()),
    "for-each": lambda crew: asyncio.run(crew.akickoff_for_each([{}])),
    "agent": lambda crew: crew.agents[0].kickoff("go on"),
    "async-task": lambda crew: crew.tasks[0].execute_async().result(),
    "stream": lambda crew: list(crew.model_copy(update={"stream": True}).kickoff()),
}


@pytest.mark.parametrize(
    ("begin", "options"), rounds.half(CONTEXTS, ["", "timeout", "several", "planner"])
)
def test_a_context_reaches_the_tools(native, text, begin, options):
    for way in (native, text):
        seen: list[str] = []

        @tool
        def read_file(path: str) -> str:
            """Read a file."""
            seen.append(WHO.get())  # noqa: B023  it is called in this turn
            return path

        steps: Any = [READ, "done"]
        given: dict[str, Any] = {"tools": [read_file]}
        if options == "timeout":
            given["max_execution_time"] = 60
        elif options == "several" and way.native:
            steps = [[READ, ("read_file", {"path": "b"})], "done"]
        elif options == "planner":
            given["planning_config"] = planned(native)
            steps = [READ, READ, "done", "done", "done"]
        crew = way.crew(way.agent("Lead", *steps, **given))
        token = WHO.set("alice")
        try:
            CONTEXTS[begin](crew)
        finally:
            WHO.reset(token)
        assert seen, changed("the tool was not called", "the design of chains")
        assert set(seen) == {"alice"}, changed("contexts are lost", "the design of chains")


# --- what an agent and a crew are ---------------------------------------------------------------


class Private(BaseModel):
    """A mixin such as the adapter's."""

    _secret: Any = PrivateAttr(default=None)


def swapped(one, secret):
    kind = type(type(one).__name__, (Private, type(one)), {"__module__": type(one).__module__})
    one.__class__ = kind
    one._secret = secret
    return one


def test_what_is_private_is_written_down_nowhere(native):
    lead: Any = swapped(native.agent("Lead"), "hidden treasure")
    crew: Any = swapped(native.crew(lead), "hidden treasure")
    for one in (lead, crew):
        assert one._secret == "hidden treasure"
        for text in (repr(one), str(one.model_dump()), str(dict(one))):
            assert "hidden treasure" not in text, changed("private attributes", "agents.py")
    assert "hidden treasure" not in lead.model_dump_json()


def test_a_copy_of_an_agent_is_of_its_class_and_of_a_crew_is_not(native):
    lead: Any = swapped(native.agent("Lead"), "it")
    crew: Any = swapped(native.crew(lead), "it")
    for copied in (lead.copy(), crew.copy().agents[0]):
        assert type(copied) is type(lead), changed("Agent.copy", "agents.py, copy")
        assert copied._secret is None
        assert copied.id != lead.id
        assert copied.agent_executor is None, changed("a copy's executor", "agents.py, copy")
    assert type(crew.copy()) is Crew, changed("Crew.copy", "crews.py, copy")
    for copied in (copy.copy(lead), lead.model_copy()):
        assert copied._secret == "it", changed("shallow copies", "agents.py, __copy__")


def test_a_copy_of_a_crew_keeps_the_order_of_agents_and_finds_a_tasks_by_its_role(native):
    twins = [native.agent("Lead"), native.agent("Lead"), native.agent("Hand")]
    crew = Crew(agents=twins, tasks=[task_of(one) for one in twins])
    copied = crew.copy()
    where = "crews.py, copy"
    assert [one.role for one in copied.agents] == ["Lead", "Lead", "Hand"], changed("order", where)
    found = [copied.agents.index(one.agent) for one in copied.tasks]
    assert found == [0, 0, 2], changed("how a task's agent is found", where)


async def test_an_agents_akickoff_is_its_kickoff_async(native):
    asked: list[Any] = []

    class Asked(Agent):
        async def kickoff_async(self, *args: Any, **kwargs: Any) -> Any:
            asked.append((args, kwargs))
            return "done"

    lead = Asked(role="Lead", goal="g", backstory="b", llm=native.model())
    assert await lead.akickoff("go on") == "done"
    assert len(asked) == 1, changed("Agent.akickoff", "agents.py, kickoff_async")


def test_a_role_is_kept_as_it_was_written(native):
    lead: Any = native.agent("{what} Writer", "done")
    assert lead._original_role is None
    native.crew(lead).kickoff(inputs={"what": "Senior"})
    assert lead.role == "Senior Writer"
    assert lead._original_role == "{what} Writer", changed(
        "_original_role", "agents.py, _require_of_crewai"
    )
    assert lead.copy().role in ("Senior Writer", "{what} Writer")


def test_a_checkpoint_is_restored_as_the_class_that_it_is_asked_of(tmp_path):
    asked: list[Any] = []

    class Asked:
        checkpoint: Any = None

        @classmethod
        def from_checkpoint(cls, config: Any) -> Any:
            asked.append(config)
            return cls()

    config = CheckpointConfig(location=str(tmp_path), restore_from=str(tmp_path))
    assert isinstance(apply_checkpoint(Asked(), config), Asked)
    assert asked == [config], changed("restore_from", "agents.py, refuse_restoring")
    assert apply_checkpoint(Asked(), CheckpointConfig(location=str(tmp_path))) is None
    for kind, place in ((Crew, 2), (Agent, 3)):
        for name in ("kickoff", "kickoff_async", "akickoff"):
            names = [n for n in inspect.signature(getattr(kind, name)).parameters if n != "self"]
            found = names.index("from_checkpoint")
            assert found == place, changed(f"{kind.__name__}.{name}", "refuse_restoring")


def test_event_scopes_are_kept_in_a_context(native):
    seen: list[Any] = []

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        seen.append(_event_id_stack.get())
        return path

    native.crew(native.agent("Lead", READ, "done", tools=[read_file])).kickoff()
    kinds = [kind for _event, kind in seen[0]][len(_event_id_stack.get()) :]
    assert kinds[:3] == ["crew_kickoff_started", "task_started", "agent_execution_started"], (
        changed(f"the scopes around a tool: {kinds}", "event_scopes.py")
    )
    before = _event_id_stack.get()
    restore_event_scope((("id", "crew_kickoff_started"),))
    assert _event_id_stack.get() == (("id", "crew_kickoff_started"),)
    restore_event_scope(before)


# --- classes of crews ---------------------------------------------------------------------------

AGENTS_YAML = """
lead:
  role: Lead
  goal: a goal
  backstory: a story
  identity: boss
"""


@pytest.fixture
def made(tmp_path, native):
    """An instance of a class of crews, as its authors write it."""
    (tmp_path / "agents.yaml").write_text(AGENTS_YAML)
    (tmp_path / "tasks.yaml").write_text(
        "it:\n  description: d\n  expected_output: w\n  agent: lead\n"
    )

    @CrewBase
    class Crews:
        """A class of crews."""

        agents_config = str(tmp_path / "agents.yaml")
        tasks_config = str(tmp_path / "tasks.yaml")

        @agent
        def lead(self) -> Agent:
            return Agent(config=self.agents_config["lead"], llm=native.model("done"))  # type: ignore[index]

        @task
        def it(self) -> Task:
            told: Any = self.tasks_config
            return Task(config=told["it"])  # type: ignore[call-arg]

        @crew_method
        def crew(self) -> Crew:
            return Crew(agents=self.agents, tasks=self.tasks)  # type: ignore[attr-defined]

    return Crews()


def test_the_method_below_crew_is_one_of_crewais_wrappers(made):
    layers, found = vars(type(made))["crew"], []
    while layers is not None:
        found.append(layers)
        layers = getattr(layers, "__wrapped__", None)
    wrappers = [
        one
        for one in found
        if getattr(one, "__code__", None) is not None
        and one.__code__.co_qualname == "crew.<locals>.wrapper"
        and one.__globals__["__name__"] == "crewai.project.annotations"
    ]
    assert len(wrappers) == 1, changed(f"how @crew wraps: {found}", "crewbase.py, _is_crew")
    assert isinstance(made.crew(), Crew)


def test_a_class_of_crews_keeps_its_file_and_its_methods(made):
    where = "crewbase.py"
    assert made.agents_config["lead"]["identity"] == "boss", changed("agents_config", where)
    assert str(made.original_agents_config_path).endswith("agents.yaml"), changed("path", where)
    methods = _filter_methods(made._all_methods, "is_agent")
    assert list(methods) == ["lead"], changed("_all_methods", where)
    assert made.lead() is made.crew().agents[0], changed("agents are made anew", where)


def test_a_key_that_crewai_does_not_know_is_dropped(native):
    told = {"role": "Lead", "goal": "g", "backstory": "b", "identity": "boss"}
    lead = Agent(config=told, llm=native.model())
    assert not hasattr(lead, "identity"), changed("Agent has an identity now", "crewbase.py")
    assert {"role", "goal", "backstory", "tools", "llm"} <= set(AgentConfig.__annotations__)
    assert "identity" not in {*Agent.model_fields, *AgentConfig.__annotations__}


# --- flows --------------------------------------------------------------------------------------


TURNS: list[Any] = []


class Pausing(Flow[dict[str, Any]]):
    """A flow that pauses once, and goes on with what it is told."""

    @start()
    def begin(self) -> None:
        pass

    @listen(or_(begin, "answered"))
    def first(self) -> str:
        TURNS.append(current_flow_method_name.get())
        if self.last_human_feedback is None:
            context = PendingFeedbackContext(
                flow_id=self.flow_id,
                flow_class=f"{type(self).__module__}.{type(self).__qualname__}",
                method_name="first",
                method_output=None,
                message="it waits",
                emit=["answered"],
                default_outcome="answered",
            )
            raise HumanFeedbackPending(context)
        return "done"

    @listen(first)
    async def second(self, result: str) -> str:
        TURNS.append(current_flow_method_name.get())
        return result


def test_a_flow_that_pauses_keeps_what_it_is_told_to(tmp_path):
    kept = functools.partial(SQLiteFlowPersistence, str(tmp_path / "flows.db"))
    TURNS.clear()
    flow = Pausing(persistence=kept(), suppress_flow_events=True)
    paused = flow.kickoff()
    where = "flows.py"
    assert isinstance(paused, HumanFeedbackPending), changed("a pause", where)
    assert paused.context.method_name == "first", changed("the method of a pause", where)
    resumed: Any = Pausing.from_pending(flow.flow_id, kept(), suppress_flow_events=True)
    assert resumed.resume() == "done", changed("how a flow goes on", where)
    assert TURNS == ["first", "first", "second"], changed("current_flow_method_name", where)
    assert not hasattr(Pausing, current_flow_method_name.get()), changed("its default", where)


def test_a_flow_tells_what_its_methods_listen_to():
    flow, where = Pausing(suppress_flow_events=True), "flows.py"
    told = {
        name: listens if listens is None else sorted(_iter_condition_events(listens))
        for name in ("begin", "first", "second")
        for listens in [flow._listen_condition(FlowMethodName(name))]
    }
    expected = {"begin": None, "first": ["answered", "begin"], "second": ["first"]}
    assert told == expected, changed("_listen_condition", where)


def test_a_stream_runs_when_it_is_read(native):
    where = "crews.py, _within_run"
    crew = native.crew(native.agent("Lead", "done"), stream=True)
    streaming: Any = crew.kickoff()
    assert streaming._sync_iterator is not None, changed("what is iterated", where)
    assert crew.agents[0].llm.heard == [], changed("it runs at once", where)  # type: ignore[union-attr]
    list(streaming)
    assert streaming.result.raw == "done"

    async def later() -> Any:
        return await crew.akickoff()

    assert asyncio.run(later())._async_iterator is not None, changed("what is iterated", where)


@pytest.mark.parametrize("begin", ["execute_task", "aexecute_task"])
def test_an_agent_answers_with_any_result_that_is_there(native, begin):
    lead: Any = native.agent("Lead", "done")
    lead.tools_results.append({"result": "of another task", "result_as_answer": True})
    task = task_of(lead)
    said = (
        lead.execute_task(task)
        if begin == "execute_task"
        else asyncio.run(lead.aexecute_task(task))
    )
    where = "agents.py, tools_results"
    assert said == "of another task", changed("results of tools are emptied", where)


def test_without_a_role_no_fingerprint_is_set(text, read_file, ran):
    lead = watched(text, READ, "done", tools=[read_file], role="")
    text.crew(lead).kickoff()
    assert ran == ["plan"]
    assert lead.noted("fingerprint") == [], changed("it is set now", "agents.py, _executing")


def test_threads_of_crewai_are_those_that_the_adapter_knows(native):
    """A tool runs beside the loop, not on it: a call that waits for people blocks no other."""
    seen: list[Any] = []

    @tool
    def read_file(path: str) -> str:
        """Read a file."""
        seen.append(threading.current_thread())
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return path

    async def both() -> None:
        crew = native.crew(native.agent("Lead", READ, "done", tools=[read_file]))
        await crew.akickoff()
        seen.append(threading.current_thread())

    asyncio.run(both())
    tools, loop = seen
    assert tools is not loop, changed("tools run on the event loop", "gate.py, run")


def test_a_structured_tool_runs_its_function_and_no_other(read_file):
    structured = CrewStructuredTool.from_function(lambda path: path, name="n", description="d")
    assert structured.invoke({"path": "a"}) == "a"
    structured.func = lambda path: path * 2
    assert structured.invoke({"path": "a"}) == "aa", changed("invoke", "tools.py, _Structured")
