"""Nobody can meet a requirement exactly if all possible answers together do not meet it."""

from __future__ import annotations

from approved_calls import Place, answer, asking, key
from hypothesis import event, given
from hypothesis import strategies as st

from agentguard import Requirement
from agentguard.approvals.answer import seal_answer
from agentguard.approvals.application import application_roles
from agentguard.approvals.quorum import missing_approvals, unmeetable
from agentguard.approvals.roster import Approver, Roster

NAMES = ("ann", "bob", "carol")
PRINCIPALS = ("user:ann", "user:bob", "user:alice")
ROLES = ("manager", "clerk")
OUTSIDERS = tuple(f"user:outsider-{number}" for number in range(3))
KEYS = {name: key() for name in NAMES}
REQUEST = Place(asking()).ask()

some_roles = st.sets(st.sampled_from(ROLES)).map(lambda names: tuple(sorted(names)))


@st.composite
def rosters(draw: st.DrawFn) -> Roster:
    approvers = {
        name: Approver(
            name,
            draw(st.sampled_from(PRINCIPALS)),
            (KEYS[name].public_key,) if draw(st.booleans()) else (),
            draw(some_roles),
        )
        for name in draw(st.sets(st.sampled_from(NAMES)))
    }
    application = draw(st.booleans())
    return Roster(approvers, application, draw(some_roles) if application else ())


def named(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    """Some of the names, and one at least: a requirement may leave them out, but not be empty."""
    return st.sets(st.sampled_from(names), min_size=1).map(lambda some: tuple(sorted(some)))


requirements = st.builds(
    Requirement,
    approvers=st.none() | named((*NAMES, "nobody")),
    roles=st.none() | named(ROLES),
    quorum=st.integers(1, 3),
    allow_self=st.booleans(),
)


@given(rosters(), requirements, st.sets(st.sampled_from(PRINCIPALS), max_size=2), st.booleans())
def test_nobody_can_meet_a_requirement_that_all_answers_together_miss(
    roster, requirement, requesters, asks_application
):
    look_up = (lambda _principal: frozenset(ROLES)) if asks_application else None
    envelopes = [
        answer(REQUEST, KEYS[one.name], one.principal)
        for one in roster.approvers.values()
        if one.keys
    ]
    if roster.application:
        envelopes += [
            seal_answer(
                REQUEST,
                "approve",
                approver=principal,
                approval_id=f"{number:032x}",
                at=REQUEST.requested_at,
                roles=application_roles(roster, principal, look_up),
            )
            for number, principal in enumerate((*PRINCIPALS, *OUTSIDERS))
        ]
    answers = [roster.verify(one, REQUEST, at=REQUEST.requested_at) for one in envelopes]
    missing = missing_approvals([requirement], answers, requesters=requesters)
    said = [
        *unmeetable([requirement], roster, requesters=requesters, asks_application=asks_application)
    ]
    event("nobody can" if said else "somebody can")
    assert bool(said) == (missing is not None)
