"""``DelegationTeam``: a guard whose agents act for users, and what its log says of their calls.

``Child`` is a sub-agent of that team.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from call_log import Log, Logged
from graph_runs import last_text
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.tools import StructuredTool, tool
from obedient import Obedient

from agentguard import Decision, Guard, verify_evidence
from agentguard_langchain import guard_subagent, guard_tools

CONFIGURATION: Any = {
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


@dataclass
class User:
    """A graph's run-time context: who asks, as the application has authenticated it."""

    name: str


class CallRow(NamedTuple):
    """One call of the log: its tool and argument, the decision's code, and for whom it was made.

    ``path`` is the principal and the agents of the chain, as a verifier finds them offline.
    """

    tool: str
    value: Any
    code: str
    path: str
    scope: str


class DelegationTeam:
    """A guard whose agents act for others, the policy's inputs (``seen``), and its log."""

    read = tool(read)
    aread = tool(aread)
    write = tool(write)
    secret = tool(secret)

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.guard = Guard.ephemeral(policy=self._decide, config=CONFIGURATION)
        self.log = Log(self.guard)
        self._chains: dict[str | None, Any] = {}

    def _decide(self, document):
        self.seen.append(document)
        return Decision.allow()

    def lend(self, user="alice", scope=("pr:write", "repo:read", "secret:read"), **options):
        """Delegate a user's authority: all scopes by default."""
        return self.guard.delegate(f"user:{user}", scope=scope, **options)

    def agents(self, *names):
        return [self.guard.new_agent(name) for name in names]

    def graph(self, tools, **options):
        """An agent's graph, whose model does as it is row."""
        return create_agent(Obedient(), tools, **options)

    def asking(self, *calls):
        """Return the input of such a graph, to make these calls at once."""
        return {"messages": [HumanMessage(self.task(*calls))]}

    def task(self, *calls):
        return json.dumps(calls)

    def rows(self) -> list[CallRow]:
        return [self.row(call) for call in self.log.calls()]

    def row(self, call: Logged) -> CallRow:
        chain = self._chain(call.predicate)
        actors = chain.actors if chain else ()
        agents = [actor for actor in actors if actor.startswith("agent:")]
        names = [call.predicate["principal"], *agents]
        path = ">".join(name.partition(":")[2] for name in names)
        value = next(iter((call.values or {}).values()), None)
        scope = " ".join(chain.leaf.scope) if chain else ""
        return CallRow(call.tool, value, call.code or call.decision, path, scope)

    def _chain(self, predicate):
        """Return the chain that a call names, from the evidence of the first call that names it."""
        digest = predicate.get("chain_sha256")
        if digest not in self._chains:
            proof = self.guard.prove(predicate["invocation_id"])
            self._chains[digest] = chain = verify_evidence(proof, self.guard.trust).chain
            assert digest == (chain and chain.sha256)
        return self._chains[digest]


READ = ["repo:read"]
"""The scope that most sub-agents here get."""

ONLY_READS = [
    ("read", "allow", "alice>fixer", "repo:read"),
    ("write", "scope.exceeded", "alice>fixer", "repo:read"),
]
"""The rows of the task ``Child.both`` in that scope."""


class Child:
    """A sub-agent, the fixer: its task ``reads`` is one call, and its task ``both`` is two."""

    def __init__(self, team) -> None:
        self.orchestrator, self.fixer = team.agents("orchestrator", "fixer")
        self.tools = guard_tools([team.read, team.aread, team.write], self.fixer)
        self.graph = team.graph(self.tools, name="fixer")
        self.reads = team.task(("read", {"path": "a"}))
        self.both = team.task(("read", {"path": "a"}), ("write", {"path": "b"}))
        self.task = {"messages": [("user", self.both)]}

    def only_reading(self, scope=READ):
        return guard_subagent(self.graph, self.fixer, scope=scope)


def tool_asking(child):
    """Return a tool that runs ``child``, sync and async."""

    def ask(task: str) -> str:
        """Ask the sub-agent."""
        return last_text(child.invoke({"messages": [("user", task)]}))

    async def aask(task: str) -> str:
        """Ask the sub-agent."""
        return last_text(await child.ainvoke({"messages": [("user", task)]}))

    return StructuredTool.from_function(ask, aask, name="ask")


def decision_rows(team):
    """Return the log's rows without arguments, sorted: calls that ran at once have no order."""
    return sorted((one.tool, one.code, one.path, one.scope) for one in team.rows())


def decision_codes(team):
    """Return the code of each call in the log, or ``allow``."""
    return [row.code for row in team.rows()]
