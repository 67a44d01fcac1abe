"""Graphs that die once their tools have run, before a checkpoint has what the tools did."""

from __future__ import annotations

from typing import Any

import pytest
from graph_runs import CONFIG, invoke_thread
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from agentguard.audit.state import RUN_ONCE
from agentguard_langchain import guard_tool_node, guard_tools

OTHER: Any = {"configurable": {"thread_id": "t2"}}


def model_turn(*calls, turn="turn1"):
    tool_calls = [
        {"name": name, "args": args, "id": f"call{number}", "type": "tool_call"}
        for number, (name, args) in enumerate(calls)
    ]
    return {"messages": [HumanMessage("go", id="h"), AIMessage("", tool_calls=tool_calls, id=turn)]}


def journal_size(inbox):
    """How many calls the journal knows."""
    ports = inbox.guard._parts.runtime._ports
    begun = ports.log._store.look(lambda values: len([*values.items(RUN_ONCE)]))
    return max(begun, pages_kept(inbox))


def pages_kept(inbox):
    """How many results the journal keeps."""
    log = inbox.guard._parts.runtime._ports.log
    return log.read(lambda view: len(view.pages("journal")))


class CrashError(Exception):
    """Stands for the death of the process."""


class Dying(InMemorySaver):
    """A checkpointer that raises ``CrashError`` when it should keep the results of tools."""

    dies = False

    def put(self, config, checkpoint, metadata, new_versions):
        if self.dies and "tool" in message_kinds(checkpoint["channel_values"].get("messages")):
            raise CrashError
        return super().put(config, checkpoint, metadata, new_versions)

    def put_writes(self, config, writes, task_id, task_path=""):
        if self.dies and any("tool" in message_kinds(value) for _channel, value in writes):
            raise CrashError
        super().put_writes(config, writes, task_id, task_path)

    async def aput(self, config, checkpoint, metadata, new_versions):
        return self.put(config, checkpoint, metadata, new_versions)

    async def aput_writes(self, config, writes, task_id, task_path=""):
        self.put_writes(config, writes, task_id, task_path)


def message_kinds(value):
    """Return the kinds of the messages in a channel's value."""
    messages = value if isinstance(value, list) else [value]
    return [message.type for message in messages if isinstance(message, BaseMessage)]


async def crash_after_tools(graph, given, *, sync, config=CONFIG):
    """Run a graph until its tools have run: it dies before a checkpoint has their results."""
    graph.checkpointer.dies = True
    with pytest.raises(CrashError):
        await invoke_thread(graph, given, sync=sync, config=config, durability="sync")
    graph.checkpointer.dies = False


def graph_of(inbox, tools, *, way="tools", saver=None, node=None):
    """Return a graph whose calls of one message share a task; ``way`` says what guards them."""
    graph = StateGraph(MessagesState)
    if node is None and way == "tools":
        node = ToolNode(guard_tools(tools, inbox.agent))
    elif node is None:
        node = guard_tool_node(tools, inbox.agent)
    graph.add_node("tools", node)
    graph.add_edge(START, "tools")
    graph.add_edge("tools", END)
    return graph.compile(checkpointer=Dying() if saver is None else saver)


WAYS = pytest.mark.parametrize("way", ["tools", "node"])
