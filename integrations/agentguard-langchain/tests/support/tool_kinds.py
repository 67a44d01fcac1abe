"""``KINDS``: one tool for each way in which LangChain lets a tool be written, with a call of it."""

from __future__ import annotations

import functools
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Interface, IPv4Network, IPv6Address
from typing import Annotated, Any, NamedTuple

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import (
    BaseTool,
    InjectedToolArg,
    InjectedToolCallId,
    StructuredTool,
    Tool,
    tool,
)
from langgraph.prebuilt import InjectedState, ToolRuntime
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)
from pydantic.v1 import BaseModel as BaseModelV1
from pydantic.v1 import Field as FieldV1
from pydantic.v1 import validator as validator_v1


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    x: int
    label: str = "here"


class Single(BaseModel):
    x: int


class Ticket(BaseModel):
    title: str
    id: uuid.UUID = Field(default_factory=uuid.uuid4)
    tags: list[str] = Field(default_factory=list)


class Batch(BaseModel):
    first: Ticket
    by_day: dict[str, tuple[Ticket, ...]]


class Pair(NamedTuple):
    ticket: Ticket
    times: int = 1


class TicketV1(BaseModelV1):
    title: str
    id: uuid.UUID = FieldV1(default_factory=uuid.uuid4)


@dataclass
class Span:
    start: int
    stop: int = 9


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: int


class Aliased(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    x: int = Field(alias="theX")
    when: str = Field(default_factory=lambda: "now", alias="theWhen")


class Capped(BaseModel):
    x: int
    y: int = 0

    @field_validator("x")
    @classmethod
    def cap(cls, value: int) -> int:
        return min(value, 100)

    @model_validator(mode="before")
    @classmethod
    def default_y(cls, values: Any) -> Any:
        return {"y": 7, **values}


class OldStyle(BaseModelV1):
    x: int
    y: int = FieldV1(2)

    @validator_v1("x")
    def cap(cls, value: int) -> int:  # noqa: N805  pydantic v1's form
        return min(value, 100)


class OldTicket(BaseModelV1):
    ticket: TicketV1
    serial: uuid.UUID = FieldV1(default_factory=uuid.uuid4)


class WithState(BaseModel):
    """Find things."""

    x: int
    state: Annotated[dict, InjectedState]


class Written(BaseTool):
    """A tool class as the documentation has it."""

    name: str = "written"
    description: str = "Adds."
    _seen: list[int] = PrivateAttr(default_factory=list)

    def _run(self, x: int, y: int = 3, run_manager=None) -> str:
        self._seen.append(x)
        return f"{x + y} {run_manager is not None}"


class WrittenBoth(Written):
    name: str = "written_both"
    args_schema: type[BaseModel] = Capped

    async def _arun(self, x: int, y: int = 3, run_manager=None) -> str:
        return f"{x + y} async {run_manager is not None}"


class WrittenConfig(BaseTool):
    name: str = "written_config"
    description: str = "Adds."
    args_schema: type[BaseModel] = Point

    def _run(self, x: int, label: str, config: RunnableConfig, run_manager=None) -> str:
        return f"{x}{label}{config['configurable'].get('thread_id')}"


class WrittenAsync(BaseTool):
    name: str = "written_async"
    description: str = "Adds."
    args_schema: type[BaseModel] = Point

    def _run(self, *args: Any, **kwargs: Any) -> str:
        raise NotImplementedError("async only")

    async def _arun(self, x: int, label: str = "there") -> str:
        return f"{x}{label}"


class Retrying(StructuredTool):
    """A StructuredTool with a ``_run`` of its own around the stock one."""

    def _run(self, *args: Any, config: RunnableConfig, run_manager=None, **kwargs: Any) -> Any:
        super()._run(*args, config=config, run_manager=run_manager, **kwargs)
        again = super()._run(*args, config=config, run_manager=run_manager, **kwargs)
        return f"twice {again}"


class Adder:
    """A callable object."""

    def __call__(self, x: int, y: int = 3) -> str:
        """Add."""
        return str(x + y)


def plain(x: int, y: int = 3) -> str:
    """Add.

    Args:
        x: one
        y: the other
    """
    return str(x + y)


async def plain_async(x: int, y: int = 3) -> str:
    """Add."""
    return str(x + y)


def with_config(x: int, config: RunnableConfig) -> str:
    """Tell the thread."""
    return f"{x} {config['configurable'].get('thread_id')}"


def with_callbacks(x: int, callbacks: Any = None) -> str:
    """Tell whether callbacks came."""
    return f"{x} {callbacks is not None}"


def with_kwargs(x: int, **kwargs: Any) -> str:
    """Take anything."""
    return f"{x} {sorted(kwargs.items())}"


def with_runtime(x: int, runtime: ToolRuntime) -> str:
    """Use the runtime."""
    return f"{x} {runtime.tool_call_id}"


def with_state(x: int, state: Annotated[dict, InjectedState]) -> str:
    """Use the state."""
    return f"{x} {len(state)}"


def with_user(x: int, user: Annotated[str, InjectedToolArg]) -> str:
    """Use what the application injects."""
    return f"{x} {user}"


def with_call_id(x: int, tool_call_id: Annotated[str, InjectedToolCallId]) -> str:
    """Tell the id."""
    return f"{x} {tool_call_id}"


CLIENT = Adder()


def with_hidden_default(x: int, client: object = CLIENT) -> str:
    """Use a client that no model can name."""
    return f"{x} {type(client).__name__}"


def pair(x: int) -> tuple[str, list[int]]:
    """Give content and an artifact."""
    return str(x), [x]


def of_types(  # noqa: PLR0917
    when: datetime,
    price: Decimal,
    data: bytes,
    colour: Colour,
    span: Span,
    point: Point,
    ident: uuid.UUID,
    several: set[int],
    ratio: float = 0.5,
) -> str:
    """Take one of each."""
    return repr((when, price, data, colour, span, point, ident, several, ratio))


def of_batch(batch: Batch) -> str:
    """Take a batch of tickets."""
    return batch.first.title


def of_queue(queue: deque[Ticket], pair: Pair) -> str:
    """Take tickets in other containers."""
    return f"{len(queue)} {pair.ticket.title} {pair.times}"


def of_addresses(host: IPv6Address, net: IPv4Network, at: IPv4Interface, size: ByteSize) -> str:
    """Take what a network has."""
    return f"{host} {net} {at} {size + 0}"


def of_ticket(ticket: Ticket, more: list[Ticket]) -> str:
    """Take tickets."""
    return f"{ticket.title} {len(more)}"


SERIAL: Any = Field(default_factory=uuid.uuid4)


def with_serial(x: int, serial: uuid.UUID = SERIAL) -> str:
    """Take or make a serial number."""
    return f"{x} {type(serial).__name__}"


async def mcp_shaped(runtime: Any = None, **arguments: Any) -> str:
    """Pass on."""
    return f"{sorted(arguments.items())}"


def dict_schema(x: int, y: int = 3) -> str:
    """Add."""
    return str(int(x) + y)


def nothing() -> str:
    """Take nothing."""
    return "done"


JSON_SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "note": {"type": "string"}},
    "required": ["x"],
}


OF_TYPES = {
    "when": datetime(2026, 1, 2, 3, 4, tzinfo=UTC).isoformat(),
    "price": "1.50",
    "data": "abc",
    "colour": "red",
    "span": {"start": 1},
    "point": {"x": 4},
    "ident": "12345678-1234-5678-1234-567812345678",
    "several": [3, 1, 2],
}


@dataclass(frozen=True)
class Kind:
    """A way to write a tool: how to make one, what a model passes, what the framework adds."""

    name: str
    make: Callable[[], BaseTool]
    args: Any
    injected: dict[str, Any] = field(default_factory=dict)
    is_async: bool = False
    standard: bool = True
    """Whether langchain-tests' suites pass on the unguarded tool."""

    @property
    def given(self) -> Any:
        return self.args if isinstance(self.args, str) else {**self.args, **self.injected}


def _runtime() -> ToolRuntime:
    return ToolRuntime(
        state={}, context=None, config={}, stream_writer=print, tool_call_id="123", store=None
    )


def _function(function, **options):
    return functools.partial(StructuredTool.from_function, function, **options)


X = {"x": 4}


KINDS = [
    Kind("plain", lambda: tool(plain), X),
    Kind("docstring", lambda: tool(parse_docstring=True)(plain), {"x": 4, "y": 5}),
    Kind("coercing", lambda: tool(plain), {"x": "4"}),
    Kind("config", lambda: tool(with_config), X),
    Kind("callbacks", lambda: tool(with_callbacks), X),
    Kind("kwargs", lambda: tool(with_kwargs, args_schema=Open), {"x": 4, "more": [1], "z": None}),
    Kind("extra", _function(with_kwargs, args_schema=Open), {"x": 4, "callbacks": "sneaky"}),
    Kind("alias", _function(with_kwargs, args_schema=Aliased), {"theX": 4, "theWhen": "then"}),
    Kind("alias-made", _function(with_kwargs, args_schema=Aliased), {"theX": 4}),
    Kind("validators", _function(plain, args_schema=Capped), {"x": 500}),
    Kind("v1", _function(plain, args_schema=OldStyle), {"x": 500}),
    Kind(
        "v1-factory",
        _function(
            with_kwargs_of_ticket := lambda ticket, serial: f"{ticket.title}{type(serial)}",
            name="old",
            description="Old.",
            args_schema=OldTicket,
        ),
        {"ticket": {"title": "t"}},
    ),
    Kind(
        "string", lambda: Tool("s", lambda query: f"<{query}>", "Search."), "what", standard=False
    ),
    Kind(
        "string-dict",
        lambda: Tool("s", lambda query: f"<{query}>", "Search."),
        {"q": "what"},
        standard=False,
    ),
    Kind("class", Written, X),
    Kind("class-both", WrittenBoth, {"x": 500}),
    Kind("class-config", WrittenConfig, X),
    Kind("class-async", WrittenAsync, X, is_async=True),
    Kind("class-around-stock", lambda: Retrying.from_function(plain), X),
    Kind("async", lambda: tool(plain_async), X, is_async=True),
    Kind("both", lambda: StructuredTool.from_function(plain, plain_async), X),
    Kind("object", _function(Adder(), name="add", description="Add.", args_schema=Capped), X),
    Kind(
        "partial",
        _function(functools.partial(plain, y=4), name="p", description="Add.", args_schema=Single),
        X,
    ),
    Kind("runtime", lambda: tool(with_runtime), X, {"runtime": _runtime()}),
    Kind("state", lambda: tool(with_state), X, {"state": {"a": 1}}),
    Kind("state-schema", _function(with_kwargs, args_schema=WithState), X, {"state": {"a": 1}}),
    Kind("user", lambda: tool(with_user), X, {"user": "alice"}),
    Kind("call-id", lambda: tool(with_call_id), X, standard=False),
    Kind("hidden-default", _function(with_hidden_default, args_schema=Open), X),
    Kind("artifact", lambda: tool(response_format="content_and_artifact")(pair), X),
    Kind("types", lambda: tool(of_types), OF_TYPES),
    Kind(
        "factory-nested",
        lambda: tool(of_ticket),
        {"ticket": {"title": "t"}, "more": [{"title": "u"}]},
    ),
    Kind(
        "factory-deep",
        lambda: tool(of_batch),
        {"batch": {"first": {"title": "t"}, "by_day": {"monday": [{"title": "u"}]}}},
    ),
    Kind(
        "factory-queue",
        lambda: tool(of_queue),
        {"queue": [{"title": "t"}], "pair": [{"title": "u"}]},
    ),
    Kind(
        "addresses",
        lambda: tool(of_addresses),
        {"host": "::1", "net": "10.0.0.0/8", "at": "10.0.0.1/8", "size": "1KB"},
    ),
    Kind("factory", lambda: tool(with_serial), X),
    Kind("factory-given", lambda: tool(with_serial), {"x": 4, "serial": OF_TYPES["ident"]}),
    Kind(
        "mcp",
        lambda: StructuredTool(
            name="m", description="Pass on.", args_schema=JSON_SCHEMA, coroutine=mcp_shaped
        ),
        {"x": "5", "note": "n"},
        {"runtime": _runtime()},
        is_async=True,
        standard=False,
    ),
    Kind(
        "dict-schema",
        lambda: StructuredTool(
            name="d", description="Add.", args_schema=JSON_SCHEMA, func=dict_schema
        ),
        {"x": "5"},
        standard=False,
    ),
    Kind("nothing", lambda: tool(nothing), {}),
]
