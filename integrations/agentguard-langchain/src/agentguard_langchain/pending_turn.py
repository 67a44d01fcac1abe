"""A pending turn: what people were shown of one turn's calls, and what their answers have changed.

It is kept durably, beside the requests: a task that pauses runs again from its beginning, perhaps
in another process, and has to know which answers belong to what it had shown. Answers that let a
call run are not here but with the request that they answer, and verified there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple, Self, cast

from langchain_core.messages import ToolCall

from agentguard import Agent, Decision
from agentguard.call.journal import Runs
from agentguard_langchain.graph_task import Place, Turn


class Shown(NamedTuple):
    """One call of a batch, as it was shown: whose call, under which request, at which site."""

    call_id: str
    request_id: str
    call_site: str


class Edit(NamedTuple):
    """The arguments that a person has put in the place of the model's; ``number`` counts them."""

    args: dict[str, Any]
    number: int


@dataclass
class PendingTurn:
    """What is known of the people's part in a turn, or in one call's task.

    ``task`` is the task that pauses, ``owner`` the call that it pauses for, None for a turn's;
    ``answered`` how many answers it has taken, ``dealt`` what they said (digests) where they came
    without an interrupt's id, ``shown`` the batch that waits for one. ``edits``, ``refusals`` (why
    a person does not want a call) and ``problems`` (why an answer did not count) are by the id of
    the call. ``anew`` says that graphs within the call begin anew once it is made again.
    """

    name: str
    task: str | None = None
    owner: str | None = None
    answered: int = 0
    dealt: list[str] = field(default_factory=list)
    shown: list[Shown] | None = None
    edits: dict[str, Edit] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    anew: bool = False

    @classmethod
    def of_turn(cls, agent: Agent, place: Place, turn: str | None) -> Self:
        """Return the pending turn of a model's message, or a new one."""
        return cls._read(agent.runs, _name("turn", agent, place.thread, place.namespace, turn))

    @classmethod
    def of_task(cls, agent: Agent, place: Place) -> Self:
        """Return the pending turn of the one call for which a task was made, or a new one."""
        return cls._read(agent.runs, _name("task", agent, place.thread, place.task))

    @classmethod
    def _read(cls, runs: Runs, name: str) -> Self:
        data = runs.read(name)
        if data is None:
            return cls(name)
        read = json.loads(data)
        shown = read.pop("shown")
        edits = {call_id: Edit(*edit) for call_id, edit in read.pop("edits").items()}
        batch = None if shown is None else [Shown(*one) for one in shown]
        return cls(name, shown=batch, edits=edits, **read)

    def begin(self, task: str | None) -> None:
        """Sit in ``task``: in another one, no answer belongs to what was shown before."""
        if self.task != task:
            self.task, self.answered, self.shown, self.dealt = task, 0, None, []

    def save(self, runs: Runs) -> None:
        """Write it down, durably."""
        kept = {name: value for name, value in asdict(self).items() if name != "name"}
        runs.write(self.name, json.dumps(kept).encode())

    # --- what the answers have changed --------------------------------------------------------

    def edited(self, call: ToolCall) -> ToolCall:
        """Return a call with the arguments that a person has put in the place of the model's."""
        edit = self.edits.get(call["id"] or "")
        return call if edit is None else cast("ToolCall", {**call, "args": edit.args})

    def site_id(self, call_id: str) -> str:
        """Return the id of a call in its site: with edited arguments it is a call of its own."""
        edit = self.edits.get(call_id)
        return call_id if edit is None else f"{call_id}#{edit.number}"

    def refuse(self, call_id: str, reason: str) -> None:
        """Keep that a person does not want the call."""
        self.refusals[call_id] = reason

    def refusal(self, call_id: str) -> Decision | None:
        """Return the refusal of a call that a person does not want; None for any other."""
        reason = self.refusals.get(call_id)
        return None if reason is None else Decision.refused(reason, code="approval.rejected")

    def edit(self, call_id: str, args: Mapping[str, Any]) -> None:
        """Put ``args`` in the place of the call's; raises ``TypeError`` for what is no JSON."""
        before = self.edits.get(call_id)
        number = 1 if before is None else before.number + 1
        self.edits[call_id] = Edit(json.loads(json.dumps(dict(args))), number)

    def open_calls(self, turn: Turn) -> list[ToolCall]:
        """Return the calls of a turn that may still be made, as they would be."""
        return [self.edited(call) for call in turn.open if call["id"] not in self.refusals]


def claim(agent: Agent, place: Place, call_id: str) -> bool:
    """Take the task for a call, durably; return whether it is that call's, and no other's."""
    name, mine = _name("owner", agent, place.thread, place.task), call_id.encode()
    return agent.runs.add(name, mine) or agent.runs.read(name) == mine


def forget_turn(agent: Agent, place: Place, turn: str | None) -> None:
    """Remove the pending turn that is over."""
    agent.runs.remove(_name("turn", agent, place.thread, place.namespace, turn))


# --- what waits in a thread ---------------------------------------------------------------------

_LISTING: Final = threading.Lock()


def list_waiting(agent: Agent, place: Place, run: str | None, batch: Sequence[Shown]) -> None:
    """Note what a run waits for, that of its sub-agents too, so that it can be withdrawn.

    ``run`` is its handle: another graph may have a thread of the same name.
    """
    with _LISTING:
        sites = [
            site
            for site in _listed(agent, place, run)
            if agent.approvals.request_at(site) is not None
        ]
        sites += [one.call_site for one in batch if one.call_site not in sites]
        agent.runs.write(_waiting(place, run), json.dumps(sites).encode())


def withdraw_all(agent: Agent, place: Place, run: str) -> None:
    """Withdraw what a run waits for."""
    with _LISTING:
        sites = _listed(agent, place, run)
        for site in sites:
            request = agent.approvals.request_at(site)
            if request is not None:
                agent.approvals.withdraw(request)
        if sites:
            agent.runs.remove(_waiting(place, run))


def _listed(agent: Agent, place: Place, run: str | None) -> list[str]:
    data = agent.runs.read(_waiting(place, run))
    return [] if data is None else list(json.loads(data))


def _waiting(place: Place, run: str | None) -> str:
    return f"waiting {json.dumps([place.thread, run])}"


def _name(kind: str, agent: Agent, *where: str | None) -> str:
    return f"{kind} {json.dumps([agent.name, *where])}"
