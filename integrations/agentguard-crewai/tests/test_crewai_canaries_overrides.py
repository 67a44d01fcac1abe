"""What the adapter overrides and calls of CrewAI, and where CrewAI takes tools from.

A new release of CrewAI fails here. Nothing is guarded: each test states a fact of CrewAI alone.
Where a fact does not hold any more, look at the module of the adapter that the message names.
"""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import crewai
import pytest
from crewai import Agent, Crew
from crewai.agents.agent_executor import AgentExecutor
from crewai.agents.cache.cache_handler import CacheHandler
from crewai.mcp.tool_resolver import MCPToolResolver
from crewai.skills.tool import LoadSkillTool
from crewai.tools import BaseTool
from crewai.tools.agent_tools.base_agent_tools import BaseAgentTool
from crewai.tools.agent_tools.deferred_tool_result_reader import DeferredToolResultReader
from crewai.tools.base_tool import Tool
from crewai.tools.mcp_native_tool import MCPNativeTool
from crewai_unguarded import READ, changed, watched

from agentguard_crewai.agents import GuardedAgent
from agentguard_crewai.cache import AgentCache
from agentguard_crewai.crews import GuardedCrew
from agentguard_crewai.executor import GuardedExecutor, _GuardedReader

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
        (AgentCache, CacheHandler),
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
