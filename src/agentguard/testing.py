"""For tests: a fixture for programs that use agentguard, and a kit for adapters of frameworks.

In a program's ``conftest.py``, ``pytest_plugins = ["agentguard.testing"]`` brings the fixture
``recorded_guard``. An adapter subclasses ``AdapterTests``, says how a function is called through
it, and inherits the tests of what the line of a guarded call promises. It needs pytest, and nothing
of agentguard's own tests.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from agentguard.approvals.request import ApprovalPending
from agentguard.audit.calls import Authorization, read_authorization, read_outcome
from agentguard.audit.entry import Entry, parse_entry
from agentguard.call.decision import Decision, Denied
from agentguard.errors import AgentguardError
from agentguard.guard.agent import Agent
from agentguard.guard.guard import Guard
from agentguard.signing.keys import Ed25519Signer

APPROVER: Final = "user:approver"
"""The principal who approves in a ``RecordedGuard``."""


@dataclass(slots=True)
class RecordedGuard:
    """A guard in memory, whose policy a test sets, and what its log says.

    ``decide`` is asked about each call, with the policy's input; ``asked`` are those inputs.
    """

    guard: Guard
    approver: Ed25519Signer
    decide: Callable[[Mapping[str, Any]], Decision] = lambda _input: Decision.allow()
    asked: list[Mapping[str, Any]] = field(default_factory=list)

    @classmethod
    def make(cls, **tables: Any) -> RecordedGuard:
        """Make one; ``tables`` are those of an ``agentguard.toml``."""
        approver = Ed25519Signer.from_seed(os.urandom(32))
        people = {"approver": {"principal": APPROVER, "keys": [approver.public_key.openssh()]}}
        made: RecordedGuard

        def policy(document: Mapping[str, Any]) -> Decision:
            made.asked.append(document)
            return made.decide(document)

        guard = Guard.ephemeral(policy, config={"approvers": people, **tables})
        made = cls(guard, approver)
        return made

    def calls(self) -> list[Authorization]:
        """Return the answers to all calls so far, in their order."""
        return [
            read_authorization(parsed)
            for parsed in self._entries()
            if parsed.kind == "authorization"
        ]

    def outcomes(self) -> list[str]:
        """Return what became of the calls that were allowed: ``ok``, ``error``, ..."""
        return [
            read_outcome(parsed).status for parsed in self._entries() if parsed.kind == "outcome"
        ]

    def approve(self) -> None:
        """Approve all that waits."""
        for request in self.guard.approvals.pending():
            self.guard.approvals.approve(request, self.approver)

    def require_sound(self) -> None:
        """Fail unless the log verifies."""
        report = self.guard.verify()
        if not report.ok:
            pytest.fail("\n".join(problem.what for problem in report.problems))

    def _entries(self) -> list[Entry]:
        with closing(self.guard.reader()) as reader:
            return [parse_entry(body) for _index, body in reader.entries(0)]


@pytest.fixture
def recorded_guard() -> Iterator[RecordedGuard]:
    """A guard in memory that allows everything until the test sets ``decide``; its log verifies."""
    recorded = RecordedGuard.make()
    with recorded.guard:
        yield recorded
        recorded.require_sound()


class AdapterTests:
    """What every adapter must keep; a subclass whose name begins with ``Test`` runs it all.

    It overrides ``call``, and ``acall`` where the framework has an async way. A framework that
    can't express something overrides that test and says why.
    """

    def call(self, agent: Agent, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Call ``function``, guarded for ``agent``, through the framework, once, by keywords.

        Return its result, or raise what the call raised: ``Denied``, ``ApprovalPending``, or the
        function's own exception. A function is guarded anew, under its own name, by each call.
        """
        raise NotImplementedError

    async def acall(
        self, agent: Agent, function: Callable[..., Any], arguments: Mapping[str, Any]
    ) -> Any:
        """Call a coroutine function on the event loop; the async twin of ``call``."""
        raise NotImplementedError

    @pytest.fixture
    def recorded(self) -> Iterator[RecordedGuard]:
        """The guard of a test, with one agent that acts by itself and one that is lent to."""
        agents = {"worker": {"authority": "own"}, "lent": {"max_scope": ["repo:read"]}}
        recorded = RecordedGuard.make(agents=agents)
        with recorded.guard:
            yield recorded
            recorded.require_sound()

    @pytest.fixture
    def agent(self, recorded: RecordedGuard) -> Agent:
        """The agent of a test."""
        return recorded.guard.new_agent("worker")

    def test_an_allowed_call_runs_once_and_is_on_record(
        self, recorded: RecordedGuard, agent: Agent
    ) -> None:
        """The result comes back, and the log names who called what."""
        probe = Probe()
        result = self.call(agent, probe.read_file, {"path": "a.txt"})
        assert "a.txt" in str(result)
        assert probe.ran == [{"path": "a.txt"}]
        (call,) = recorded.calls()
        assert (call.agent, call.tool, call.decision) == (agent.id, "read_file", "allow")
        assert recorded.outcomes() == ["ok"]

    def test_a_denied_call_does_not_run(self, recorded: RecordedGuard, agent: Agent) -> None:
        """It is on record, signed, and its reason reaches whoever called."""
        recorded.decide = lambda _input: Decision.deny("not today")
        probe = Probe()
        with pytest.raises(Denied, match="not today"):
            self.call(agent, probe.read_file, {"path": "a.txt"})
        assert probe.ran == []
        (call,) = recorded.calls()
        assert (call.decision, call.reasons) == ("deny", ("not today",))

    def test_a_policy_that_fails_denies(self, recorded: RecordedGuard, agent: Agent) -> None:
        """An exception is no permission."""

        def broken(_input: Mapping[str, Any]) -> Decision:
            raise RuntimeError

        recorded.decide = broken
        probe = Probe()
        with pytest.raises(Denied):
            self.call(agent, probe.read_file, {"path": "a.txt"})
        assert probe.ran == []

    def test_the_policy_sees_the_arguments_that_the_function_receives(
        self, recorded: RecordedGuard, agent: Agent
    ) -> None:
        """Those that the caller gave, and the defaults."""
        probe = Probe()
        self.call(agent, probe.search, {"query": "é\u202e", "limit": 3})
        (document,) = recorded.asked
        assert document["args"] == {"query": "é\u202e", "limit": 3, "exact": False}
        assert probe.ran == [document["args"]]

    def test_an_argument_that_can_not_be_written_down_refuses_the_call(
        self, recorded: RecordedGuard, agent: Agent
    ) -> None:
        """What nobody can bind, nobody has decided on."""
        probe = Probe()
        with pytest.raises(Denied) as denied:
            self.call(agent, probe.keep, {"value": object()})
        assert (denied.value.code, probe.ran) == ("arguments.unencodable", [])
        assert [call.decision for call in recorded.calls()] == ["deny"]
        assert recorded.asked == []

    def test_an_argument_plays_no_identity(self, recorded: RecordedGuard, agent: Agent) -> None:
        """Whatever a model calls its arguments, the policy's input says who acts."""
        probe = Probe()
        self.call(
            agent, probe.spoof, {"agent": "root", "delegation": "user:root", "approval": "yes"}
        )
        (document,) = recorded.asked
        assert document["agent"]["id"] == agent.id
        assert document["delegation"] is None
        assert "approval" not in document

    def test_an_exception_of_the_function_is_its_own(
        self, recorded: RecordedGuard, agent: Agent
    ) -> None:
        """It is on record as an error, and reaches whoever called."""
        probe = Probe()
        with pytest.raises(FileNotFoundError, match="missing"):
            self.call(agent, probe.read_file, {"path": "missing"})
        assert recorded.outcomes() == ["error"]

    def test_each_agent_is_itself(self, recorded: RecordedGuard, agent: Agent) -> None:
        """Two instances of one agent have two keys, and each signs its own calls."""
        other = recorded.guard.new_agent("worker")
        for caller in (agent, other):
            self.call(caller, Probe().read_file, {"path": "a.txt"})
        assert [call.agent for call in recorded.calls()] == [agent.id, other.id]

    def test_without_a_delegation_an_agent_that_needs_one_is_denied(
        self, recorded: RecordedGuard
    ) -> None:
        """Losing a context never widens authority."""
        lent, probe = recorded.guard.new_agent("lent"), Probe()
        with pytest.raises(Denied) as denied:
            self.call(lent, probe.read_file, {"path": "a.txt"})
        assert (denied.value.code, probe.ran) == ("delegation.missing", [])
        with recorded.guard.delegate("user:alice", scope=["repo:read"]):
            self.call(lent, probe.read_file, {"path": "a.txt"})
        assert recorded.calls()[-1].principal == "user:alice"

    def test_a_call_that_needs_an_approval_waits_and_runs_once(
        self, recorded: RecordedGuard, agent: Agent
    ) -> None:
        """Nothing runs before somebody has signed, and then it runs once."""
        recorded.decide = lambda _input: Decision.require_approval()
        probe = Probe()
        with pytest.raises(ApprovalPending):
            self.call(agent, probe.read_file, {"path": "a.txt"})
        assert probe.ran == []
        recorded.approve()
        self.call(agent, probe.read_file, {"path": "a.txt"})
        with pytest.raises(ApprovalPending):
            self.call(agent, probe.read_file, {"path": "a.txt"})
        assert probe.ran == [{"path": "a.txt"}]

    def test_calls_at_the_same_time_do_not_mix(self, recorded: RecordedGuard, agent: Agent) -> None:
        """Each is decided by its own arguments, and runs once."""
        recorded.decide = lambda document: (
            Decision.allow() if document["args"]["limit"] % 2 else Decision.deny("it is even")
        )
        probe = Probe()

        def one(limit: int) -> bool:
            try:
                self.call(agent, probe.search, {"query": "q", "limit": limit})
            except Denied:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(one, range(16)))
        assert answers == [bool(limit % 2) for limit in range(16)]
        assert sorted(ran["limit"] for ran in probe.ran) == list(range(1, 16, 2))
        assert len(recorded.calls()) == 16  # noqa: PLR2004

    def test_a_coroutine_function_runs_once_and_a_denied_one_not_at_all(
        self, recorded: RecordedGuard, agent: Agent
    ) -> None:
        """The async way is the same line."""
        if type(self).acall is AdapterTests.acall:
            pytest.skip("this adapter has no async way")
        probe = Probe()
        assert "a.txt" in str(asyncio.run(self.acall(agent, probe.fetch, {"path": "a.txt"})))
        recorded.decide = lambda _input: Decision.deny("not today")
        with pytest.raises(Denied, match="not today"):
            asyncio.run(self.acall(agent, probe.fetch, {"path": "b.txt"}))
        assert probe.ran == [{"path": "a.txt"}]
        assert [call.decision for call in recorded.calls()] == ["allow", "deny"]
        assert recorded.outcomes() == ["ok"]

    def test_no_attribute_of_a_denial_tells_a_secret(
        self, recorded: RecordedGuard, agent: Agent
    ) -> None:
        """What a model may read of a refusal is the reason, and no argument."""
        recorded.decide = lambda _input: Decision.deny("no")
        with pytest.raises(AgentguardError) as refused:
            self.call(agent, Probe().read_file, {"path": "hunter2"})
        assert "hunter2" not in str(refused.value)


class Probe:
    """Functions to be guarded; ``ran`` are the arguments that they received."""

    def __init__(self) -> None:
        self.ran: list[Mapping[str, Any]] = []
        ran = self.ran

        def read_file(path: str) -> str:
            """Read a file."""
            ran.append({"path": path})
            if path == "missing":
                raise FileNotFoundError(path)
            return f"the content of {path}"

        def search(query: str, limit: int, exact: bool = False) -> str:  # noqa: FBT001, FBT002
            """Search."""
            ran.append({"query": query, "limit": limit, "exact": exact})
            return query

        def spoof(agent: str, delegation: str, approval: str) -> str:
            """Take arguments with names that mean something elsewhere."""
            ran.append({"agent": agent, "delegation": delegation, "approval": approval})
            return agent

        async def fetch(path: str) -> str:
            """Fetch a file."""
            await asyncio.sleep(0)
            ran.append({"path": path})
            return f"fetched {path}"

        def keep(value: Any) -> str:
            """Keep anything."""
            ran.append({"value": value})
            return "kept"

        self.fetch: Callable[..., Any] = fetch
        self.keep: Callable[..., Any] = keep
        self.read_file: Callable[..., Any] = read_file
        self.search: Callable[..., Any] = search
        self.spoof: Callable[..., Any] = spoof
