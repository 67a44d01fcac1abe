"""A pending turn: what people were shown of a turn's calls, and what their answers have changed.

The state directory keeps it durably, beside the requests for approvals. A task that pauses runs
again from its beginning, perhaps in another process, and must know which answers belong to what was
shown. Approvals are kept elsewhere, with their request, and are verified there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple, Self, cast

from langchain_core.messages import ToolCall

from agentguard import Agent, Decision
from agentguard.adapters import RunStore, run_store
from agentguard_langchain.graph_task import GraphTask
from agentguard_langchain.payload import Problem
from agentguard_langchain.turn import Turn


class ShownCall(NamedTuple):
    """One call of a batch as it was shown: the call's id, the request's id, and the call site."""

    call_id: str
    request_id: str
    call_site: str


class Edit(NamedTuple):
    """The arguments that a person has put in the place of the model's; ``number`` counts edits."""

    args: dict[str, Any]
    number: int


@dataclass
class PendingTurn:
    """What people have done in a turn, or in a task that was made for one call.

    ``task`` is the id of the task that pauses. ``owner`` is the id of the call that the task was
    made for, None where the task serves a whole turn. ``answered`` counts the answers that were
    taken, ``applied`` has the digests of those that came without an interrupt's id, and ``shown``
    is the batch that waits for an answer. ``edits``, ``refusals`` (why a person does not want a
    call) and ``problems`` (why an answer did not count) are by the id of the call. ``restarts``
    says that graphs within the call run from their beginning when the call is made again.
    """

    name: str
    task: str | None = None
    owner: str | None = None
    answered: int = 0
    applied: list[str] = field(default_factory=list)
    shown: list[ShownCall] | None = None
    edits: dict[str, Edit] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)
    restarts: bool = False

    @classmethod
    def of_turn(cls, agent: Agent, task: GraphTask, turn: str | None) -> Self:
        """Return the pending turn of a model's message, or a new one."""
        return cls._read(run_store(agent), _name("turn", agent, task.thread, task.namespace, turn))

    @classmethod
    def of_task(cls, agent: Agent, task: GraphTask) -> Self:
        """Return the pending turn of a task that was made for one call, or a new one."""
        return cls._read(run_store(agent), _name("task", agent, task.thread, task.id))

    @classmethod
    def _read(cls, runs: RunStore, name: str) -> Self:
        data = runs.read(name)
        if data is None:
            return cls(name)
        fields = json.loads(data)
        shown = fields.pop("shown")
        edits = {call_id: Edit(*edit) for call_id, edit in fields.pop("edits").items()}
        problems = {call_id: Problem(*one) for call_id, one in fields.pop("problems").items()}
        batch = None if shown is None else [ShownCall(*one) for one in shown]
        return cls(name, shown=batch, edits=edits, problems=problems, **fields)

    def begin(self, task: str | None) -> None:
        """Begin a pause of this task; forget what another task has shown, and its answers."""
        if self.task != task:
            self.task, self.answered, self.shown, self.applied = task, 0, None, []

    def save(self, runs: RunStore) -> None:
        """Write the pending turn, durably."""
        fields = {name: value for name, value in asdict(self).items() if name != "name"}
        runs.write(self.name, json.dumps(fields).encode())

    # --- what the answers have changed --------------------------------------------------------

    def note_applied(self, digest: str | None) -> None:
        """Keep the digest of an answer that was applied; None for one that has no digest."""
        if digest is not None:
            self.applied.append(digest)

    def edited(self, call: ToolCall) -> ToolCall:
        """Return a call with the arguments that a person has put in the place of the model's."""
        edit = self.edits.get(call["id"] or "")
        return call if edit is None else cast("ToolCall", {**call, "args": edit.args})

    def site_id(self, call_id: str) -> str:
        """Return the call's id in its call site: with edited arguments, it is another call."""
        edit = self.edits.get(call_id)
        return call_id if edit is None else f"{call_id}#{edit.number}"

    def refuse(self, call_id: str, reason: str) -> None:
        """Keep that a person does not want the call."""
        self.refusals[call_id] = reason

    def refusal(self, call_id: str) -> Decision | None:
        """Return the refusal of a call that a person does not want; None for any other."""
        reason = self.refusals.get(call_id)
        return None if reason is None else Decision.refusal(reason, code="approval.rejected")

    def edit(self, call_id: str, args: dict[str, Any]) -> None:
        """Put ``args``, which ``json_arguments`` has made, in the place of the call's."""
        previous = self.edits.get(call_id)
        number = 1 if previous is None else previous.number + 1
        self.edits[call_id] = Edit(args, number)

    def open_calls(self, turn: Turn) -> list[ToolCall]:
        """Return the calls of a turn that may still be made, with edited arguments."""
        return [self.edited(call) for call in turn.open if call["id"] not in self.refusals]


def json_arguments(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as JSON has them; raises ``TypeError`` or ``ValueError`` for no JSON."""
    arguments: dict[str, Any] = json.loads(json.dumps(dict(args)))
    return arguments


def claim(agent: Agent, task: GraphTask, call_id: str) -> bool:
    """Reserve the task for a call, durably; return whether the task is that call's alone."""
    name, owner = _name("owner", agent, task.thread, task.id), call_id.encode()
    return run_store(agent).add(name, owner) or run_store(agent).read(name) == owner


def forget_turn(agent: Agent, task: GraphTask, turn: str | None) -> None:
    """Remove the pending turn of a message whose calls all have results."""
    run_store(agent).remove(_name("turn", agent, task.thread, task.namespace, turn))


# --- what waits in a thread ---------------------------------------------------------------------

_LISTING: Final = threading.Lock()


def list_waiting(
    agent: Agent, task: GraphTask, run: str | None, batch: Sequence[ShownCall]
) -> None:
    """Note which calls a run and its sub-agents wait for, so that the calls can be withdrawn.

    ``run`` is the handle of the run: another graph may have a thread of the same name.
    """
    with _LISTING:
        sites = [
            site
            for site in _listed(agent, task, run)
            if agent.approvals.request_at(site) is not None
        ]
        sites += [one.call_site for one in batch if one.call_site not in sites]
        run_store(agent).write(_list_name(task, run), json.dumps(sites).encode())


def withdraw_all(agent: Agent, task: GraphTask, run: str) -> dict[str, str]:
    """Withdraw the requests that a run waits for; return their ids by the sites of their calls.

    A call that another process has begun with the approval meanwhile is not among them.
    """
    withdrawn: dict[str, str] = {}
    with _LISTING:
        sites = _listed(agent, task, run)
        for site in sites:
            request = agent.approvals.request_at(site)
            if request is not None and agent.approvals.withdraw(request):
                withdrawn[site] = request.request_id
        if sites:
            run_store(agent).remove(_list_name(task, run))
    return withdrawn


def _listed(agent: Agent, task: GraphTask, run: str | None) -> list[str]:
    data = run_store(agent).read(_list_name(task, run))
    return [] if data is None else list(json.loads(data))


def _list_name(task: GraphTask, run: str | None) -> str:
    return f"waiting {json.dumps([task.thread, run])}"


def _name(kind: str, agent: Agent, *place: str | None) -> str:
    return f"{kind} {json.dumps([agent.name, *place])}"
