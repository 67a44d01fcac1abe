"""For tests: a fixture for programs that use agentguard, and a test kit for adapters.

In a program's ``conftest.py``, ``pytest_plugins = ["agentguard.testing"]`` adds the fixture
``recorded_guard``. The tests of an adapter subclass ``AdapterTests``, implement how the adapter
calls a function, and inherit the tests of the guarantees of a guarded call. The module needs
pytest, and nothing from agentguard's own tests.
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
from agentguard.audit.entry import Entry
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry, OutcomeEntry
from agentguard.call.decision import Decision, Denied
from agentguard.errors import AgentguardError
from agentguard.guard.agent import Agent
from agentguard.guard.guard import Guard
from agentguard.signing.keys import Ed25519Signer

APPROVER: Final = "user:approver"
"""The principal who approves in a ``RecordedGuard``."""


@dataclass(slots=True)
class RecordedGuard:
    """A guard in memory whose policy a test sets, with a short way to read the guard's log.

    ``decide`` receives the policy's input of each call and returns the decision.
    ``policy_inputs`` has the inputs of all calls so far. ``approver`` is the key with
    which ``approve`` signs.
    """

    guard: Guard
    approver: Ed25519Signer
    decide: Callable[[Mapping[str, Any]], Decision] = lambda _input: Decision.allow()
    policy_inputs: list[Mapping[str, Any]] = field(default_factory=list)

    @classmethod
    def make(cls, **tables: Any) -> RecordedGuard:
        """Make a recorded guard; ``tables`` are the tables of an ``agentguard.toml``."""
        approver = Ed25519Signer.from_seed(os.urandom(32))
        people = {"approver": {"principal": APPROVER, "keys": [approver.public_key.openssh()]}}
        recorded: RecordedGuard

        def policy(document: Mapping[str, Any]) -> Decision:
            recorded.policy_inputs.append(document)
            return recorded.decide(document)

        guard = Guard.ephemeral(policy, config={"approvers": people, **tables})
        recorded = cls(guard, approver)
        return recorded

    def calls(self) -> list[CallEntry]:
        """Return the log's records of all decided calls so far, in their order."""
        return [entry for entry in self._entries() if isinstance(entry, CallEntry)]

    def outcomes(self) -> list[str]:
        """Return the status of each allowed call, in their order: ``ok``, ``error``, ..."""
        return [one.status for one in self._entries() if isinstance(one, OutcomeEntry)]

    def approve(self) -> None:
        """Approve all pending requests."""
        for request in self.guard.approvals.pending():
            self.guard.approvals.approve(request, self.approver)

    def require_sound(self) -> None:
        """Fail unless the log verifies."""
        report = self.guard.verify()
        if not report.ok:
            pytest.fail("\n".join(problem.what for problem in report.problems))

    def _entries(self) -> list[Entry]:
        with closing(self.guard.reader()) as reader:
            return [parse_entry(body) for _index, body in reader.entries()]


@pytest.fixture
def recorded_guard() -> Iterator[RecordedGuard]:
    """A guard in memory that allows each call until the test sets ``decide``.

    The fixture verifies the guard's log after the test.
    """
    recorded = RecordedGuard.make()
    with recorded.guard:
        yield recorded
        recorded.require_sound()


class AdapterTests:
    """The tests that every adapter must pass; pytest runs subclasses named ``Test...``.

    A subclass overrides ``call``, and ``acall`` if the framework has async calls. If a framework
    can't express the subject of a test, the subclass overrides the test and says why.
    """

    def call(self, agent: Agent, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        """Guard ``function`` for ``agent`` and call ``function`` once, through the framework.

        ``arguments`` are keyword arguments. Return the function's result, or raise the call's
        exception: ``Denied``, ``ApprovalPending``, or the function's own exception. Each call
        guards the function again, under the function's name.
        """
        raise NotImplementedError

    async def acall(
        self, agent: Agent, function: Callable[..., Any], arguments: Mapping[str, Any]
    ) -> Any:
        """Guard and call a coroutine function on the running event loop; see ``call``."""
        raise NotImplementedError

    @pytest.fixture
    def recorded(self) -> Iterator[RecordedGuard]:
        """The guard of a test; ``worker`` acts on its own authority, ``lent`` by delegation."""
        agents = {"worker": {"authority": "own"}, "lent": {"max_scope": ["repo:read"]}}
        recorded = RecordedGuard.make(agents=agents)
        with recorded.guard:
            yield recorded
            recorded.require_sound()

    @pytest.fixture
    def agent(self, recorded: RecordedGuard) -> Agent:
        """An agent that acts on its own authority."""
        return recorded.guard.new_agent("worker")

    def test_an_allowed_call_runs_once_and_is_on_record(
        self, recorded: RecordedGuard, agent: Agent
    ) -> None:
        """The caller gets the result, and the log has the agent, the tool and the outcome."""
        probe = Probe()
        result = self.call(agent, probe.read_file, {"path": "a.txt"})
        assert "a.txt" in str(result)
        assert probe.ran == [{"path": "a.txt"}]
        (call,) = recorded.calls()
        assert (call.agent, call.tool, call.decision) == (agent.id, "read_file", "allow")
        assert recorded.outcomes() == ["ok"]

    def test_a_denied_call_does_not_run(self, recorded: RecordedGuard, agent: Agent) -> None:
        """The log has the signed denial, and the caller gets the reason."""
        recorded.decide = lambda _input: Decision.deny("not today")
        probe = Probe()
        with pytest.raises(Denied, match="not today"):
            self.call(agent, probe.read_file, {"path": "a.txt"})
        assert probe.ran == []
        (call,) = recorded.calls()
        assert (call.decision, call.reasons) == ("deny", ("not today",))

    def test_a_policy_that_fails_denies(self, recorded: RecordedGuard, agent: Agent) -> None:
        """An exception of the policy denies the call."""

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
        """The policy's input has the caller's arguments and the defaults of the others."""
        probe = Probe()
        self.call(agent, probe.search, {"query": "é\u202e", "limit": 3})
        (document,) = recorded.policy_inputs
        assert document["args"] == {"query": "é\u202e", "limit": 3, "exact": False}
        assert probe.ran == [document["args"]]

    def test_an_argument_that_can_not_be_written_down_refuses_the_call(
        self, recorded: RecordedGuard, agent: Agent
    ) -> None:
        """The policy is not asked about a call whose arguments can't be encoded."""
        probe = Probe()
        with pytest.raises(Denied) as denied:
            self.call(agent, probe.keep, {"value": object()})
        assert (denied.value.code, probe.ran) == ("arguments.unencodable", [])
        assert [call.decision for call in recorded.calls()] == ["deny"]
        assert recorded.policy_inputs == []

    def test_an_argument_plays_no_identity(self, recorded: RecordedGuard, agent: Agent) -> None:
        """An argument named ``agent`` or ``delegation`` does not replace the real identity."""
        probe = Probe()
        self.call(
            agent, probe.spoof, {"agent": "root", "delegation": "user:root", "approval": "yes"}
        )
        (document,) = recorded.policy_inputs
        assert document["agent"]["id"] == agent.id
        assert document["delegation"] is None
        assert "approval" not in document

    def test_an_exception_of_the_function_is_its_own(
        self, recorded: RecordedGuard, agent: Agent
    ) -> None:
        """The log has the outcome ``error``, and the caller gets the function's exception."""
        probe = Probe()
        with pytest.raises(FileNotFoundError, match="missing"):
            self.call(agent, probe.read_file, {"path": "missing"})
        assert recorded.outcomes() == ["error"]

    def test_each_agent_is_itself(self, recorded: RecordedGuard, agent: Agent) -> None:
        """Two instances of one agent have two keys, and each instance signs its own calls."""
        other = recorded.guard.new_agent("worker")
        for caller in (agent, other):
            self.call(caller, Probe().read_file, {"path": "a.txt"})
        assert [call.agent for call in recorded.calls()] == [agent.id, other.id]

    def test_without_a_delegation_an_agent_that_needs_one_is_denied(
        self, recorded: RecordedGuard
    ) -> None:
        """Outside a delegation's block the agent has no authority."""
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
        """The function runs after the approval only, and once for one approval."""
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
        """Each call is decided by its own arguments, and each allowed call runs once."""
        recorded.decide = lambda document: (
            Decision.allow() if document["args"]["limit"] % 2 else Decision.deny("it is even")
        )
        probe = Probe()

        def is_allowed(limit: int) -> bool:
            try:
                self.call(agent, probe.search, {"query": "q", "limit": limit})
            except Denied:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(is_allowed, range(16)))
        assert answers == [bool(limit % 2) for limit in range(16)]
        assert sorted(ran["limit"] for ran in probe.ran) == list(range(1, 16, 2))
        assert len(recorded.calls()) == 16  # noqa: PLR2004

    def test_a_coroutine_function_runs_once_and_a_denied_one_not_at_all(
        self, recorded: RecordedGuard, agent: Agent
    ) -> None:
        """An async call has the same guarantees."""
        if type(self).acall is AdapterTests.acall:
            pytest.skip("this adapter has no async calls")
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
        """The text of a denial, which a model may read, has the reason and no argument."""
        recorded.decide = lambda _input: Decision.deny("no")
        with pytest.raises(AgentguardError) as denial:
            self.call(agent, Probe().read_file, {"path": "hunter2"})
        assert "hunter2" not in str(denial.value)


class Probe:
    """Functions for adapters to guard; ``ran`` has the arguments of each run of a function."""

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
            """Take arguments that have the names of members of the policy's input."""
            ran.append({"agent": agent, "delegation": delegation, "approval": approval})
            return agent

        async def fetch(path: str) -> str:
            """Fetch a file."""
            await asyncio.sleep(0)
            ran.append({"path": path})
            return f"fetched {path}"

        def keep(value: Any) -> str:
            """Accept any value."""
            ran.append({"value": value})
            return "kept"

        self.fetch: Callable[..., Any] = fetch
        self.keep: Callable[..., Any] = keep
        self.read_file: Callable[..., Any] = read_file
        self.search: Callable[..., Any] = search
        self.spoof: Callable[..., Any] = spoof
