"""What the adapter relies on in CrewAI's tools and in its cache of results.

Nothing is guarded: each test states a fact of CrewAI alone, and fails when a release changes it.
"""

from __future__ import annotations

from typing import Any

import pytest
from crewai import Crew, Process
from crewai.agents.cache.cache_handler import CacheHandler
from crewai.agents.tools_handler import ToolsHandler
from crewai.tools import BaseTool, tool
from crewai.tools.base_tool import _TOOL_TYPE_REGISTRY, Tool
from crewai.tools.mcp_native_tool import MCPNativeTool
from crewai.tools.mcp_tool_wrapper import MCPToolWrapper
from crewai.tools.tool_failure import ToolFailureReason
from crewai.utilities.agent_utils import convert_tools_to_openai_schema, parse_tools
from crewai.utilities.string_utils import sanitize_tool_name
from crewai_unguarded import READ, Noting, changed, task_of, watched

from agentguard_crewai.sealing import SealedTool
from agentguard_crewai.tools import GuardedTool

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
    assert list(functions) == names, changed("tools of one name", "binding.py, model_names")
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
    # the classes of guarded and sealed tools have the name and the module of the tool's own class
    own = [kind for kind in known if not issubclass(kind, GuardedTool | SealedTool)]
    return {k for k in own if k.__module__.startswith("crewai.") and "MCP" in k.__name__}


def test_uses_are_counted_in_the_tools_own_state(way):
    made = Reads(max_usage_count=1)
    lead = way.agent("Lead", READ, ("read_file", {"path": "b"}), "done", tools=[made])
    output = way.crew(lead).kickoff()
    (failed,) = output.tasks_output[0].tool_failures
    assert failed.failure.reason is ToolFailureReason.USAGE_LIMIT
    assert "current_usage_count" in vars(made), changed("where uses are counted", "tools.py")


# --- the cache ----------------------------------------------------------------------------------


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
    where = "cache.py, AgentCache"
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
    where = "tools.py, _CacheFunction"
    assert asked[:2] == ["ran", ({"path": "plan"}, "plan")], changed("when it is asked", where)
    tries = asked.count("ran")
    assert (tries > 1) == (not way.native), changed(f"{tries} tries", where)


def test_of_a_models_text_a_tool_gets_what_its_schema_names(text, read_file, ran):
    further = ("read_file", {"path": "plan", "owner": "alice"})
    lead = text.agent("Lead", further, "done", tools=[read_file])
    assert text.crew(lead).kickoff().tasks_output[0].tool_failures == []
    assert ran == ["plan"], changed("further arguments", "cache.py, _tool_kwargs")


def test_a_tool_may_say_what_its_results_are():
    assert "result_schema" in BaseTool.model_fields, changed("result_schema", "call.py, Call")


def test_a_cache_is_named_in_its_representation():
    assert CacheHandler().__repr_name__() == "CacheHandler", changed("its name", "cache.py")
