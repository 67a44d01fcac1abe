"""What must not come of a written state: each probe does, in a guard, what was refused before.

``probe`` opens a guard and tries all of them; ``verdict`` writes mutations first, and says whether
somebody has gained by them: a tool that ran which did not before, an answer that nobody had given.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing, contextmanager
from typing import Any, Literal, NamedTuple

import state_history as past
from state_mutations import Mutation, UnwritableError
from state_scene import Call, Scene

from agentguard import Guard, adapters
from agentguard.audit.findings import Problem
from agentguard.domain import verify
from agentguard.domain.keystore import load_trust
from agentguard.errors import AgentguardError
from agentguard.guard.agent import Agent
from agentguard.store.reader import StoredLog

Agents = Mapping[str, Agent]

LONGEST = 300
"""Seconds after which an opening, with all its probes, hangs."""


class Outcome(NamedTuple):
    """What came of one probe: how often its tool ran, what it returned, the codes of refusals."""

    ran: int
    said: tuple[str, ...]
    codes: tuple[str, ...]

    def exceeds(self, before: Outcome) -> bool:
        """Whether more ran than before, or something was told that was not before."""
        return self.ran > before.ran or not set(self.said) <= set(before.said)


class Probe(NamedTuple):
    """A call, how often it is made, and with which codes that is refused where nobody wrote."""

    call: Call
    times: int
    codes: tuple[str, ...]


PROBES: Mapping[str, Probe] = {
    "an expired approval is used": Probe(past.LATE, 1, ("approval.expired",)),
    "a revoked agent acts": Probe(past.ROBOT, 1, ("delegation.revoked",)),
    "a revoked hop is used": Probe(past.DAVE, 1, ("delegation.revoked",)),
    "a logged-out user's agent acts": Probe(past.LEAVER, 1, ("delegation.logged_out",)),
    "a revoked principal's agent acts": Probe(past.MALLORY, 1, ("delegation.revoked",)),
    "a delegation whose calls are used up is used": Probe(past.ONE, 1, ("calls.exceeded",)),
    "a delegation with two calls left is used": Probe(past.SOME, 3, ("calls.exceeded",)),
    "an expired delegation is used": Probe(past.SOON, 1, ("hop.expired",)),
    "another agent uses an approval": Probe(past.OTHER_AGENT, 1, ("approval.pending",)),
    "another principal uses one": Probe(past.OTHER_PRINCIPAL, 1, ("approval.pending",)),
    "one is used for other arguments": Probe(past.OTHER_ARGUMENTS, 1, ("approval.pending",)),
    "a used approval is used again": Probe(past.MERGED, 2, ("approval.pending",) * 2),
    "an approval is used twice": Probe(past.SPARE, 2, ("approval.pending",)),
    "an approved call is made again": Probe(past.KEPT, 2, ()),
    "nobody has answered": Probe(past.WAITING, 2, ("approval.pending",) * 2),
    "one of two has answered": Probe(past.REFUND, 2, ("approval.pending",) * 2),
    "a rejected call is made": Probe(past.BAD, 2, ("approval.rejected", "approval.pending")),
    "one whose rejection was told is made": Probe(past.GONE, 2, ("approval.pending",) * 2),
    "a call that is done is made again": Probe(past.PAID, 1, ()),
    "a call that was left is made again": Probe(past.LEFT, 1, ("journal.cut_short",)),
    "one in whose tool a process died is made again": Probe(past.DIED, 1, ("journal.in_doubt",)),
    "one that is said to have run is made": Probe(past.RESOLVED, 1, ("journal.unreplayable",)),
    "one that is said not to have run is made": Probe(past.UNDONE, 2, ()),
    "one whose data are erased is made again": Probe(past.ERASED, 1, ("journal.unreplayable",)),
    "what no policy allows is done": Probe(past.FORBIDDEN, 1, ("policy.denied",)),
    "more is done than was lent": Probe(past.UNLENT, 1, ("scope.exceeded",)),
    "a call under no delegation is made": Probe(past.ALONE, 1, ("delegation.missing",)),
    "an ordinary call is made": Probe(past.READ, 1, ()),
    "one under a delegation is made": Probe(past.PLAIN, 1, ()),
}


def probe(scene: Scene) -> dict[str, Outcome]:
    """Open a guard and try everything; raises ``AgentguardError`` where it does not open."""
    with scene.open() as guard:
        return probe_in(guard, agents_of(guard, scene), scene)


def agents_of(guard: Guard, scene: Scene) -> Agents:
    """Return an agent of each kind, under its name."""
    return {name: guard.new_agent(name) for name in scene.settings.agents}


def probe_in(guard: Guard, agents: Agents, scene: Scene) -> dict[str, Outcome]:
    """Try everything in a guard that is open, with agents that it has made."""
    found = {
        "approvers are shown what nobody asked": _shown(guard, scene),
        "a run goes on with what it never kept": _run(agents["clerk"], scene),
    }
    for name, (call, times, _codes) in PROBES.items():
        found[name] = attempt(scene, guard, call, agents[call.agent], times)
    return found


def attempt(scene: Scene, guard: Guard, call: Call, agent: Agent, times: int = 1) -> Outcome:
    """Make a call some times."""
    said: list[str] = []
    codes: list[str] = []
    scene.ran.clear()
    for _ in range(times):
        try:
            said.append(scene.make(guard, call, agent=agent))
        except AgentguardError as refused:
            codes.append(refused.code)
    return Outcome(len(scene.ran), tuple(said), tuple(codes))


def _shown(guard: Guard, scene: Scene) -> Outcome:
    try:
        pending = [request.dumps() for request in guard.approvals.pending()]
    except AgentguardError as refused:
        return Outcome(0, (), (refused.code,))
    return Outcome(0, tuple(one.decode() for one in pending if one not in scene.shown), ())


def _run(agent: Agent, scene: Scene) -> Outcome:
    """Read what is kept: nothing, or what was kept once, may be put back (records.md)."""
    try:
        kept = adapters.run_store(agent).read("thread")
    except AgentguardError as refused:
        return Outcome(0, (), (refused.code,))
    return Outcome(0, () if kept is None or kept in scene.written else (str(kept),), ())


def written(scene: Scene, moment: str, mutations: Sequence[Mutation]) -> None:
    """Write mutations into the state as of ``moment``, with the modes that files there have."""
    scene.restore(moment)
    mask = os.umask(0o077)
    try:
        for mutation in mutations:
            mutation.write(scene.state)
    finally:
        os.umask(mask)


def opens(scene: Scene, moment: str, mutations: Sequence[Mutation]) -> bool:
    """Whether a guard opens on the state as of ``moment``, with the mutations written into it."""
    written(scene, moment, mutations)
    try:
        with bounded():
            scene.open().close()
    except AgentguardError:
        return False
    return True


class HangError(BaseException):
    """What was tried does not end."""


@contextmanager
def bounded(most: float = LONGEST) -> Iterator[None]:
    """Raise ``HangError`` in what takes too long, wherever it waits."""

    def hung(*_any: object) -> None:
        raise HangError(f"it has not ended within {most} s")

    former: Any = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


class Verdict(NamedTuple):
    """What came of mutations, and why; ``opened`` tells whether a guard opened on them."""

    word: Literal["refused", "harmless", "unwritable", "accepted"]
    why: tuple[str, ...] = ()
    opened: bool = False


def verdict(
    scene: Scene,
    moment: str,
    mutations: Sequence[Mutation],
    before: Mapping[str, Outcome],
    *,
    most: float = LONGEST,
) -> Verdict:
    """Write the mutations into the state as of ``moment``, and try everything in it.

    ``before`` is what came of the probes where nothing was written.
    """
    try:
        written(scene, moment, mutations)
    except (UnwritableError, OSError) as error:
        return Verdict("unwritable", (str(error),))
    try:
        with bounded(most):
            return _judged(scene, before)
    except HangError as error:
        return Verdict("accepted", (str(error),))


def findings(scene: Scene) -> frozenset[Problem]:
    """Return what ``agentguard audit verify`` finds in the state as it stands."""
    with closing(StoredLog.of(scene.state)) as reader:
        trust = load_trust(scene.state)
        return frozenset(verify.examine(reader, trust, anchor=scene.settings.anchor).problems)


def audited(scene: Scene, moment: str, mutation: Mutation, before: AbstractSet[Problem]) -> Verdict:
    """Write a mutation into the state as of ``moment``; it is accepted where nothing new is found.

    ``before`` is what is found where nothing was written.
    """
    try:
        written(scene, moment, [mutation])
    except UnwritableError as error:
        return Verdict("unwritable", (str(error),))
    try:
        return Verdict("refused" if findings(scene) - before else "accepted")
    except Exception as error:  # noqa: BLE001  an auditor has to be told what is wrong
        return Verdict("accepted", (f"it raised {type(error).__name__}: {error}",))


def _judged(scene: Scene, before: Mapping[str, Outcome]) -> Verdict:
    refusals: list[str] = []
    for _ in range(2):  # a refusal does not make the next opening any easier
        try:
            after = probe(scene)
        except AgentguardError as refused:
            refusals.append(refused.code)
        except Exception as error:  # noqa: BLE001  whatever it is, nobody was told a code
            return Verdict("accepted", (f"it raised {type(error).__name__}: {error}",))
        else:
            return _compared(before, after, refusals)
    return Verdict("refused", tuple(refusals))


def _compared(
    before: Mapping[str, Outcome], after: Mapping[str, Outcome], refusals: Sequence[str]
) -> Verdict:
    gained = [name for name in after if after[name].exceeds(before[name])]
    if gained:
        why = tuple(f"{name}: {before[name]}, now {after[name]}" for name in gained)
        return Verdict("accepted", why, opened=True)
    lost = [name for name in after if after[name].ran < before[name].ran]
    return Verdict("refused" if refusals or lost else "harmless", (*refusals, *lost), opened=True)
