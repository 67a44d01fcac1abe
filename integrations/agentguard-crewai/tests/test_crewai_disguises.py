"""Attacks on what a guarded call is decided on: another tool than runs, or other arguments.

Each has worked once, and each has what goes through beside it.
"""

from __future__ import annotations

import json
import posixpath
import uuid
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import pytest
from crewai import Task
from crewai.tools import BaseTool, tool
from crewai.tools.base_tool import Tool
from crewai.tools.mcp_native_tool import MCPNativeTool
from pydantic import BaseModel, Field, field_validator

from agentguard import ApprovalPending, Decision
from agentguard_crewai import guard_crew, resumable

DOWN = RuntimeError("the model is down")


def own(*names: str) -> dict[str, Any]:
    """Agents that act on their own authority."""
    return {name: {"authority": "own"} for name in names}


def failures(output: Any) -> list[str | None]:
    """The codes of what was refused in a crew's tasks."""
    return [
        failed.failure.code for one in output.tasks_output for failed in one.tool_failures or []
    ]


# two tools of one name


class Query(BaseTool):
    """Asks a database: which one is nothing that a model or a schema says."""

    name: str = "query"
    description: str = "Query a database."
    database: str
    asked: Any  # pydantic would copy a list

    def _run(self, sql: str) -> str:
        self.asked.append(self.database)
        return f"{sql} at {self.database}"


def of_a_class(database: str, asked: list[str]) -> BaseTool:
    return Query(database=database, asked=asked)


def of_a_closure(database: str, asked: list[str]) -> BaseTool:
    @tool("query")
    def query(sql: str) -> str:
        """Query a database."""
        asked.append(database)
        return f"{sql} at {database}"

    return query


class Sql(BaseModel):
    """What the tool of a server takes."""

    sql: str


class Client:
    """A server's client, which keeps who was asked."""

    is_error = False
    content = "asked"

    def __init__(self, database: str, asked: list[str]) -> None:
        self.database = database
        self.asked = asked

    async def connect(self) -> None:
        """Nothing to do: there is no server."""

    async def disconnect(self) -> None:
        """Nothing to do: there is no server."""

    async def call_tool_result(self, _name: str, _arguments: Any) -> Client:
        self.asked.append(self.database)
        return self


def of_a_server(database: str, asked: list[str]) -> BaseTool:
    schema = {"description": "Query a database.", "args_schema": Sql}
    return MCPNativeTool(lambda: Client(database, asked), "query", schema, "db")


@pytest.mark.parametrize("make", [of_a_class, of_a_closure, of_a_server])
@pytest.mark.parametrize("scope", [("test",), ("test", "prod")])
def test_tools_of_one_name_that_use_another_database_are_decided_on_as_two(
    native, recorded, signed, make: Callable[..., BaseTool], scope
):
    asked: list[str] = []
    tools = make("test", asked), make("prod", asked)
    one = tools[0].name
    requires = {one: {"requires": ["test"]}, f"{one}_2": {"requires": ["prod"]}}
    made = recorded(agents={"lead": {"max_scope": ["test", "prod"]}}, tools=requires)
    said = (one, {"sql": "select"}), (f"{one}_2", {"sql": "drop"}), "done"
    team = guard_crew(native.crew(native.agent("Lead", *said, tools=tools)), made.guard)
    with made.guard.delegate("user:alice", scope=scope):
        output = team.kickoff()
    assert [call.tool for call in signed(made.guard)] == [one, f"{one}_2"]
    if "prod" in scope:
        assert (asked, failures(output)) == (["test", "prod"], [])
    else:
        assert (asked, failures(output)) == (["test"], ["scope.exceeded"])


def test_an_approval_for_one_of_two_tools_of_one_name_is_none_for_the_other(native, recorded):
    made, asked = recorded(agents=own("lead")), []
    made.decide = lambda _document: Decision.require_approval()

    def tried(name: str) -> str:
        tools = of_a_class("test", asked), of_a_class("prod", asked)
        lead = native.agent("Lead", (name, {"sql": "drop"}), "done", tools=tools)
        return guard_crew(native.crew(lead), made.guard, on_approval="pause").kickoff().raw

    with pytest.raises(ApprovalPending):
        tried("query")
    made.approve()
    with pytest.raises(ApprovalPending):
        tried("query_2")
    assert asked == []
    assert tried("query") == "done"
    assert asked == ["test"]


def test_the_result_of_one_of_two_tools_of_one_name_is_not_replayed_for_the_other(native, recorded):
    made, asked = recorded(agents=own("lead")), []

    def tried(*steps: Any) -> None:
        tools = of_a_class("test", asked), of_a_class("prod", asked)
        lead = native.agent("Lead", *steps, tools=tools, max_retry_limit=0)
        with resumable("order-1"):
            guard_crew(native.crew(lead), made.guard).kickoff()

    with pytest.raises(RuntimeError, match="the model is down"):
        tried(("query", {"sql": "select"}), DOWN)
    tried(("query_2", {"sql": "select"}), "done")
    assert asked == ["test", "prod"]
    tried(("query", {"sql": "select"}), ("query_2", {"sql": "select"}), "done")
    assert asked == ["test", "prod"]


class Cautious:
    """A value that can't be compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("compare me not")

    __hash__ = None  # type: ignore[assignment]


def test_tools_of_one_name_that_can_not_be_compared_are_two(native, recorded, signed):
    made = recorded(agents=own("lead"))
    tools = Query(database="a", asked=Cautious()), Query(database="a", asked=Cautious())
    made.decide = lambda _document: Decision.deny("no")
    said = ("query", {"sql": "x"}), ("query_2", {"sql": "x"}), "done"
    guard_crew(native.crew(native.agent("Lead", *said, tools=tools)), made.guard).kickoff()
    assert [call.tool for call in signed(made.guard)] == ["query", "query_2"]


# tools with a run of their own


class Place(BaseModel):
    """Where something is written; a path is one below /data."""

    path: str
    mode: str = "overwrite"

    @field_validator("path")
    @classmethod
    def below_data(cls, path: str) -> str:
        return posixpath.normpath(posixpath.join("/data", path.strip()))


class Write(BaseTool):
    """Writes a file."""

    name: str = "write"
    description: str = "Write a file."
    args_schema: type[BaseModel] = Place
    written: Any

    def _run(self, path: str, mode: str) -> str:
        self.written.append((path, mode))
        return f"wrote {path}"


class Timed(Write):
    """Looks at how long it takes, as many a tool does around CrewAI's own run."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        return super().run(*args, **kwargs)


class Alone(Write):
    """Does all its work in run."""

    def run(self, **kwargs: Any) -> Any:
        return self._run(kwargs["path"], kwargs.get("mode", "overwrite"))


def traced(run: Callable[..., Any]) -> Callable[..., Any]:
    def outer(*args: Any, **kwargs: Any) -> Any:
        return run(*args, **kwargs)

    return outer


def traced_class(written: Any, monkeypatch: Any) -> BaseTool:
    monkeypatch.setattr(BaseTool, "run", traced(BaseTool.run))
    fresh: Any = type("Fresh", (Write,), {})  # one that nothing has looked at so far
    return fresh(written=written)


def traced_object(written: Any, _monkeypatch: Any) -> BaseTool:
    made = Write(written=written)
    vars(made)["run"] = traced(made.run)
    return made


WRITERS = {
    "CrewAI's run": lambda written, _: Write(written=written),
    "a run of its own": lambda written, _: Timed(written=written),
    "a run that does the work": lambda written, _: Alone(written=written),
    "a run traced in CrewAI's class": traced_class,
    "a run traced on the object": traced_object,
}


def no_secrets(document: Mapping[str, Any]) -> Decision:
    """A policy: nothing below /data/secret, and nothing that is there is lost."""
    given = document["args"]
    if given["path"].startswith("/data/secret"):
        return Decision.deny("it is secret")
    return Decision.deny("append") if given["mode"] == "overwrite" else Decision.allow()


@pytest.mark.parametrize("writer", WRITERS)
def test_a_policy_sees_the_arguments_that_the_tools_code_gets(
    way, recorded, signed, monkeypatch, writer
):
    made, written = recorded(agents=own("lead")), []
    made.decide = no_secrets
    said = (
        ("write", {"path": " public/../secret/keys", "mode": "append"}),
        ("write", {"path": "notes"}),
        ("write", {"path": " public/../notes", "mode": "append"}),
        "done",
    )
    lead = way.agent("Lead", *said, tools=[WRITERS[writer](written, monkeypatch)])
    output = guard_crew(way.crew(lead), made.guard).kickoff()
    assert failures(output) == ["policy.denied", "policy.denied"]
    assert written == [("/data/notes", "append")]
    assert [call.arguments for call in signed(made.guard)] == [
        {"path": "/data/secret/keys", "mode": "append"},
        {"path": "/data/notes", "mode": "overwrite"},
        {"path": "/data/notes", "mode": "append"},
    ]


@pytest.mark.parametrize("writer", WRITERS)
def test_people_approve_the_arguments_that_the_tools_code_gets(
    native, recorded, monkeypatch, writer
):
    made, written = recorded(agents=own("lead")), []
    made.decide = lambda _document: Decision.require_approval()

    def tried() -> str:
        writing = WRITERS[writer](written, monkeypatch)
        lead = native.agent("Lead", ("write", {"path": "notes"}), "done", tools=[writing])
        return guard_crew(native.crew(lead), made.guard, on_approval="pause").kickoff().raw

    with pytest.raises(ApprovalPending) as asked:
        tried()
    shown = json.loads(asked.value.request.arguments)
    assert shown == {"path": "/data/notes", "mode": "overwrite"}
    made.approve()
    assert tried() == "done"
    assert written == [("/data/notes", "overwrite")]


class Counted(BaseModel):
    """Each check adds one."""

    amount: int

    @field_validator("amount")
    @classmethod
    def one_more(cls, amount: int) -> int:
        return amount + 1


class Pay(BaseTool):
    """Pays."""

    name: str = "pay"
    description: str = "Pay."
    args_schema: type[BaseModel] = Counted
    paid: Any

    def _run(self, amount: int) -> str:
        self.paid.append(amount)
        return "paid"


class TimedPay(Pay):
    """Pays, in a run of its own."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        return super().run(*args, **kwargs)


@pytest.mark.parametrize("kind", [Pay, TimedPay])
def test_a_run_of_its_own_whose_arguments_would_be_others_does_not_run(
    native, recorded, signed, kind
):
    made, paid = recorded(agents=own("lead")), []
    lead = native.agent("Lead", ("pay", {"amount": 1}), "done", tools=[kind(paid=paid)])
    guard_crew(native.crew(lead), made.guard).kickoff()
    if kind is Pay:
        assert (paid, [call.arguments for call in signed(made.guard)]) == ([2], [{"amount": 2}])
    else:
        assert (paid, signed(made.guard)) == ([], [])
        assert "write _run instead of run" in lead.llm.heard[-1]


# results from the cache


@pytest.mark.parametrize("tenants", [("acme", "acme"), ("acme", "evil")])
def test_a_result_from_the_cache_is_that_of_the_very_arguments(way, recorded, signed, tenants):
    made, asked, tenant = recorded(agents=own("lead")), [], ["acme"]

    class Asked(BaseModel):
        sql: str
        tenant: str = Field(default_factory=lambda: tenant[0])

    def query(sql: str, tenant: str) -> str:
        asked.append(tenant)
        return f"{sql} of {tenant}"

    querying = Tool(name="query", description="Query.", func=query, args_schema=Asked)
    lead = way.agent("Lead", *[("query", {"sql": "all"}), "done"] * 2, tools=[querying])
    team = guard_crew(way.crew(lead, cache=True), made.guard)
    for tenant[0] in tenants:
        output = team.kickoff()
    assert asked == list(dict.fromkeys(tenants))
    assert f"all of {tenants[-1]}" in str(output.tasks_output[-1].messages)
    assert [call.arguments["tenant"] for call in signed(made.guard)] == list(tenants)


@pytest.mark.parametrize("databases", [("test", "test"), ("test", "prod")])
def test_a_result_from_the_cache_is_that_of_the_very_tool(native, recorded, databases):
    made, asked = recorded(agents=own("lead")), []
    lead = native.agent("Lead", *[("query", {"sql": "all"}), "done"] * 2)
    tasks = [
        Task(
            description="a task",
            expected_output="words",
            agent=lead,
            tools=[Query(database=one, asked=asked)],
        )
        for one in databases
    ]
    output = guard_crew(native.crew(lead, tasks=tasks, cache=True), made.guard).kickoff()
    assert asked == list(dict.fromkeys(databases))
    assert f"all at {databases[-1]}" in str(output.tasks_output[-1].messages)


# arguments that a schema makes anew


class Keyed(BaseModel):
    """Has a key that is made anew with each call."""

    key: str = Field(default_factory=lambda: uuid.uuid4().hex)


class Direct(Keyed):
    """Whom to pay, and a key."""

    to: str


class Nested(BaseModel):
    """Whom to pay, and further below a key."""

    to: str
    more: list[Keyed] = [Keyed()]


class Made(BaseModel):
    """Whom to pay, and what is made in the same way each time."""

    to: str
    notes: list[str] = Field(default_factory=list)
    more: list[Sql] = Field(default_factory=list)


@pytest.mark.parametrize("schema", [Direct, Nested, Made])
@pytest.mark.parametrize("how", ["a run with a name", "a pause", "neither"])
def test_a_call_that_would_not_be_known_again_is_refused(native, recorded, schema, how):
    made, paid = recorded(agents=own("lead")), []
    made.decide = lambda _document: (
        Decision.require_approval() if how == "a pause" and not paid else Decision.allow()
    )

    def pay(to: str, **_more: Any) -> str:
        paid.append(to)
        return "paid"

    def tried() -> Any:
        paying = Tool(name="pay", description="Pay.", func=pay, args_schema=schema)
        lead = native.agent("Lead", ("pay", {"to": "ann"}), "done", tools=[paying])
        team = guard_crew(native.crew(lead), made.guard, on_approval="pause")
        with resumable("order-1") if how == "a run with a name" else nullcontext():
            return team.kickoff()

    if schema is Made and how == "a pause":
        with pytest.raises(ApprovalPending):
            tried()
        made.approve()
    output = tried()
    if schema is Made or how == "neither":
        assert (paid, failures(output)) == (["ann"], [])
    else:
        assert (paid, failures(output)) == ([], ["arguments.unrepeatable"])
