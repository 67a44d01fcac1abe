"""What the adapter's tests share: guards in memory, their logs as a verifier reads them, tools.

``KINDS`` has one tool for each way in which LangChain lets a tool be written, with a call of it.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import uuid
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Interface, IPv4Network, IPv6Address
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pytest
import rounds
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import (
    BaseTool,
    InjectedToolArg,
    InjectedToolCallId,
    StructuredTool,
    Tool,
    tool,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.prebuilt import InjectedState, ToolRuntime
from obedient import Obedient
from preloaded import Preloaded
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

from agentguard import Agent, Decision, Guard, Requirement, verify_evidence
from agentguard.approvals.answer import seal_answer
from agentguard.audit.entry import parse_entry
from agentguard.identity import credential
from agentguard.signing.dsse import Envelope, parse_statement
from agentguard.signing.keys import Ed25519Signer
from agentguard_langchain import GuardMiddleware


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the cases of a test with ``invoke`` and ``ainvoke`` by turns, unless a test is named."""
    rounds.leave_out(config, items, Path(__file__).parent, "sync", marked=True)


# --- processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    """Processes that have what LangChain's programs import."""
    made = Preloaded(
        "agentguard.cli",
        "langchain.agents",
        "langgraph.checkpoint.sqlite",
        "obedient",
        "cheap_keys",
    )
    yield made
    made.close()


# --- guards and their logs ----------------------------------------------------------------------


@dataclass(frozen=True)
class Logged:
    """An authorization entry, its signature verified with the key of the agent that it names."""

    agent: str
    tool: str
    decision: str
    code: str
    values: Any
    encoded: bytes | None
    predicate: Any
    outcome: str | None


class Log:
    """The log of a guard, read the way an auditor would."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def calls(self) -> list[Logged]:
        reader, keys, found, outcomes = self.guard.reader(), {}, [], {}
        for shard in reader.shards():
            for stored in reader.stored(shard):
                read = parse_entry(stored.body)
                members: Any = read.members
                if read.kind == "identity":
                    at = int(datetime.fromisoformat(read.at).timestamp())
                    issued = credential.verify(members["credential"], self.guard.trust, at=at)
                    keys[issued.uri] = issued.key
                elif read.kind == "authorization":
                    attached = {a.role: a.data for a in stored.attachments}
                    found.append((stored.index, members, attached.get("arguments")))
                elif read.kind == "outcome":
                    payload = json.loads(b64decode(members["statement"]["payload"]))
                    place = payload["predicate"]["authorization"]["index"]
                    outcomes[place] = payload["predicate"]["status"]
        return [self._logged(keys, outcomes, *one) for one in found]

    def _logged(self, keys, outcomes, index, members, encoded) -> Logged:
        sealed = Envelope.parse(members["invocation"])
        claimed = json.loads(sealed.payload)["predicate"]["agent"]
        payload = sealed.verify(keys[claimed])
        predicate: Any = parse_statement(payload, "invocation").predicate
        return Logged(
            agent=predicate["agent"],
            tool=predicate["tool"]["name"],
            decision=members["decision"],
            code=members["code"],
            values=None if encoded is None else json.loads(encoded),
            encoded=encoded,
            predicate=predicate,
            outcome=outcomes.get(index),
        )


@dataclass(frozen=True)
class Setup:
    """A guard, an agent of it, and the log."""

    guard: Guard
    agent: Agent
    log: Log


def _setup(policy: Callable[[Any], Decision], **config: Any) -> Setup:
    guard = Guard.ephemeral(policy=policy, config=config)
    return Setup(guard, guard.new_agent("reviewer"), Log(guard))


@pytest.fixture
def make():
    """Make set-ups with a policy of one's own; they are closed in the end."""
    made: list[Setup] = []

    def _make(policy: Callable[[Any], Decision], **config: Any) -> Setup:
        made.append(_setup(policy, **config))
        return made[-1]

    yield _make
    for setup in made:
        setup.guard.close()


@pytest.fixture
def allowing(make):
    """A guard that allows everything."""
    return make(lambda _input: Decision.allow())


@pytest.fixture
def denying(make):
    """A guard that denies everything."""
    return make(lambda _input: Decision.deny("not on a Sunday"))


@pytest.fixture
def limited(make):
    """A guard that allows calls whose argument ``x`` is below 10."""
    return make(
        lambda given: (
            Decision.allow() if given["args"].get("x", 0) < 10 else Decision.deny("x is over 9")
        )
    )


# --- a model that says what it is told ----------------------------------------------------------


class ScriptedModel(BaseChatModel):
    """Says the messages of a script, and keeps the tools that it was given."""

    messages: Any
    given: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages, stop=None, run_manager=None, **_options):
        return ChatResult(generations=[ChatGeneration(message=next(self.messages))])

    def bind_tools(self, tools, **_options):
        self.given.append(list(tools))
        return self


@pytest.fixture
def scripted():
    """Make a model: each argument is a text, or a list of ``(tool, args)`` to call at once."""

    def say(numbers, said):
        if isinstance(said, str):
            return AIMessage(said)
        calls = [
            {"name": name, "args": args, "id": f"call{next(numbers)}", "type": "tool_call"}
            for name, args in said
        ]
        return AIMessage("", tool_calls=calls)

    def _scripted(*script):
        numbers = itertools.count(1)
        return ScriptedModel(messages=iter([say(numbers, said) for said in script]))

    return _scripted


@pytest.fixture
def obedient():
    """A model that does as it is told."""
    return Obedient()


# --- a domain in which authority is lent --------------------------------------------------------

LENT: Any = {
    "agents": {
        "orchestrator": {"max_scope": ["repo:read", "pr:write", "secret:read"]},
        "fixer": {"max_scope": ["repo:read", "pr:write"]},
        "tester": {"max_scope": ["repo:read"]},
        "loner": {"authority": "own", "max_scope": ["repo:read"]},
    },
    "tools": {
        "read": {"requires": ["repo:read"]},
        "aread": {"requires": ["repo:read"]},
        "write": {"requires": ["pr:write"]},
        "secret": {"requires": ["secret:read"]},
    },
}


def read(path: str) -> str:
    """Read a file."""
    return f"content of {path}"


async def aread(path: str) -> str:
    """Read a file."""
    await asyncio.sleep(0)
    return f"content of {path}"


def write(path: str) -> str:
    """Write a file."""
    return f"wrote {path}"


def secret(name: str) -> str:
    """Read a secret."""
    return f"secret {name}"


class Told(NamedTuple):
    """One call of the log: its tool and argument, the answer's code, and for whom it was made.

    ``path`` is the principal and the agents of the chain, as a verifier finds them offline.
    """

    tool: str
    value: Any
    code: str
    path: str
    scope: str


class Lent:
    """A guard whose agents act for others, the policy's inputs, and the story of its log."""

    read = tool(read)
    aread = tool(aread)
    write = tool(write)
    secret = tool(secret)

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.guard = Guard.ephemeral(policy=self._decide, config=LENT)
        self.log = Log(self.guard)
        self._chains: dict[str | None, Any] = {}

    def _decide(self, document):
        self.seen.append(document)
        return Decision.allow()

    def lend(self, user="alice", scope=("pr:write", "repo:read", "secret:read"), **options):
        """What a user lends: all scopes, unless said otherwise."""
        return self.guard.delegate(f"user:{user}", scope=scope, **options)

    def agents(self, *names):
        return [self.guard.new_agent(name) for name in names]

    def graph(self, tools, **options):
        """An agent's graph, whose model does as it is told."""
        return create_agent(Obedient(), tools, **options)

    def asking(self, *calls):
        """The input of such a graph, to make these calls at once."""
        return {"messages": [HumanMessage(self.task(*calls))]}

    def task(self, *calls):
        return json.dumps(calls)

    def story(self) -> list[Told]:
        return [self.told(call) for call in self.log.calls()]

    def told(self, call: Logged) -> Told:
        chain = self._chain(call.predicate)
        actors = chain.actors if chain else ()
        agents = [actor for actor in actors if actor.startswith("agent:")]
        names = [call.predicate["principal"], *agents]
        path = ">".join(name.partition(":")[2] for name in names)
        value = next(iter((call.values or {}).values()), None)
        scope = " ".join(chain.leaf.scope) if chain else ""
        return Told(call.tool, value, call.code or call.decision, path, scope)

    def _chain(self, predicate):
        """The chain that a call names: the first such call is proved, and its proof has it."""
        named = predicate.get("chain_sha256")
        if named not in self._chains:
            proof = self.guard.prove(predicate["invocation_id"])
            self._chains[named] = chain = verify_evidence(proof, self.guard.trust).chain
            assert named == (chain and chain.sha256)
        return self._chains[named]


@pytest.fixture
def lent():
    """A guard whose agents act for others."""
    made = Lent()
    yield made
    made.guard.close()


# --- a tool of each kind ------------------------------------------------------------------------


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
    """A way to write a tool: how to make one, what a model gives, what the framework adds."""

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


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request) -> Kind:
    """Each kind of tool in turn."""
    return request.param


@pytest.fixture(scope="session")
def kinds() -> dict[str, Kind]:
    """The kinds of tools, by name."""
    return {kind.name: kind for kind in KINDS}


@pytest.fixture
def counted():
    """A tool that tells how often it has run: ``counted.tool``, ``counted.runs``."""

    class Counted:
        def __init__(self) -> None:
            self.runs: list[int] = []
            self._numbers = itertools.count()
            runs = self.runs

            def count(x: int) -> str:
                """Count."""
                runs.append(x)
                return f"ran with {x}"

            async def acount(x: int) -> str:
                """Count."""
                runs.append(x)
                return f"ran with {x}"

            self.function = count
            self.tool = StructuredTool.from_function(count, acount, name="count")
            self.sync = StructuredTool.from_function(count, name="count")

    return Counted()


# --- a domain in which people are asked ---------------------------------------------------------

KEYS = {name: Ed25519Signer.from_seed(name[:1].encode() * 32) for name in ("bob", "carol", "eve")}


def may_pay(document):
    """Everybody may look; a payment over 100 needs a person, one over 10000 is denied."""
    if document["action"] not in ("pay", "apay"):
        return Decision.allow()
    cents = document["args"]["cents"]
    if cents > 10_000:
        return Decision.deny("that is too much")
    if cents > 100:
        return Decision.require_approval(Requirement(f"{cents} cents is over 100"))
    return Decision.allow()


def _pay(to: str, cents: int) -> str:
    """Pay somebody."""
    raise NotImplementedError


def _look(what: str) -> str:
    """Look at something."""
    raise NotImplementedError


PAY, LOOK = StructuredTool.from_function(_pay, name="pay"), tool("look")(_look)
"""Their schemas take LangChain longest to make: the tools of all ``People`` have them."""


class People:
    """A guard that asks bob or carol about payments over 100, and what has been paid."""

    def __init__(self, policy=may_pay, *, delegated=False, **approvals: Any) -> None:
        self.paid: list[tuple[str, int]] = []
        self.asked: list[Any] = []
        agents = {"authority": "delegated" if delegated else "own", "owner": "user:carol"}
        config: dict[str, Any] = {
            "approvers": {
                name: {"principal": f"user:{name}", "keys": [KEYS[name].public_key.openssh()]}
                for name in ("bob", "carol")
            },
            "approvals": approvals,
            "agents": {
                "payer": {"max_scope": ["pay"], **agents},
                **{name: {"max_scope": ["pay"], "authority": "own"} for name in ("clerk", "other")},
            },
        }
        self.guard = Guard.ephemeral(policy=policy, config=config, on_request=self.asked.append)
        self.agent = self.guard.new_agent("payer")
        self.log = Log(self.guard)
        paid = self.paid

        def pay(to: str, cents: int) -> str:
            paid.append((to, cents))
            return f"paid {cents} to {to}"

        async def apay(to: str, cents: int) -> str:
            return pay(to, cents)

        def look(what: str) -> str:
            paid.append((what, 0))
            return f"looked at {what}"

        self.pay = PAY.model_copy(update={"func": pay, "coroutine": apay})
        self.look = LOOK.model_copy(update={"func": look})
        self.tools: list[Any] = [self.pay, self.look]

    def graph(self, *, tools=None, middleware=None, saver=None, model=None, **options):
        """An agent that does as it is told, guarded by the middleware."""
        guarding = GuardMiddleware(self.agent, **options)
        return create_agent(
            model or Obedient(),
            self.tools if tools is None else tools,
            middleware=[guarding] if middleware is None else middleware(guarding),
            checkpointer=InMemorySaver() if saver is None else saver,
        )

    def asking(self, *calls):
        return {"messages": [HumanMessage(json.dumps(calls))]}

    @property
    def waiting(self):
        """The requests that wait, the oldest first."""
        return self.guard.approvals.pending()

    def approve(self, *requests, by="bob"):
        for request in requests or self.waiting:
            self.guard.approvals.approve(request, KEYS[by])

    def reject(self, *requests, by="bob", note=""):
        for request in requests or self.waiting:
            self.guard.approvals.reject(request, KEYS[by], note=note)

    def signed(self, request, verdict="approve", by="bob"):
        """An answer that somebody has signed elsewhere, as JSON."""
        sealed = seal_answer(
            request,
            verdict,
            approver=f"user:{by}",
            approval_id=uuid.uuid4().hex,
            at=request.requested_at,
            signer=KEYS[by],
        )
        return sealed.as_json()

    def codes(self):
        """What the log says of each payment: how much, and the answer."""
        calls = [call for call in self.log.calls() if call.tool == "pay"]
        return sorted((call.values["cents"], call.code or call.decision) for call in calls)


@pytest.fixture
def people():
    """A guard that asks people."""
    made: list[People] = []

    def _people(*args: Any, **options: Any) -> People:
        made.append(People(*args, **options))
        return made[-1]

    yield _people
    for one in made:
        one.guard.close()
