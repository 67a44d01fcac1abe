"""The checks of ``agentguard doctor`` on approvals: the roster, the policy, and open requests.

The checks see a requirement only where the text of the policy states it (``StatesRequirements``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime

from agentguard.approvals.inbox import ApprovalInbox
from agentguard.approvals.quorum import unmeetable
from agentguard.call.decision import Requirement
from agentguard.cli.setup.finding import Finding
from agentguard.cli.terminal import screen, times
from agentguard.cli.terminal.location import Location
from agentguard.domain.config import Config
from agentguard.errors import AgentguardError
from agentguard.identity.trust import TrustDocument, seconds
from agentguard.policy.engine import Engine, StatesRequirements
from agentguard.spelling import did_you_mean
from agentguard.store.approvals import LoggedApprovals
from agentguard.store.sealed_pages import Keys


def approvals(settings: Config, engine: Engine | None) -> Iterator[Finding]:
    """Check the roster, and whether it can meet the policy's requirements.

    ``engine`` is None for a policy that can't be loaded.
    """
    yield from _roster(settings)
    yield from _unsatisfiable(settings, engine)
    yield from _owners(settings)


def _roster(settings: Config) -> Iterator[Finding]:
    people = settings.roster
    for name, approver in people.approvers.items():
        keys = screen.count(len(approver.keys), "key", "keys")
        roles = f", in the roles {' '.join(approver.roles)}" if approver.roles else ", in no role"
        shown = ", ".join(key.fingerprint for key in approver.keys)
        what = f"{approver.principal}, with {keys}{roles}: {shown}"
        yield Finding("ok", f"approver {name}", what)
    if people.application:
        roles = " ".join(sorted(people.application_roles))
        for_roles = f", and in the roles {roles}" if roles else ""
        what = (
            "application = true: where the policy names nobody, the application approves without a "
            f"signature{for_roles}; remove application if people can sign"
        )
        yield Finding("ok", "approvals", what)


def _unsatisfiable(settings: Config, engine: Engine | None) -> Iterator[Finding]:
    """Report the requirements of the policy's text that nobody on the roster can meet."""
    if engine is None:
        return
    requirements = engine.requirements if isinstance(engine, StatesRequirements) else ()
    if requirements and not settings.roster.can_answer:
        what = (
            "the policy asks for approvals, and there are no approvers: every call that needs "
            "an approval is denied (approval.unavailable); add [approvers.NAME]"
        )
        yield Finding("warn", "approvals", what)
        return
    asks_application = settings.approvals.roles is not None
    meetable = []
    for one in requirements:
        nobodies = [*unmeetable([one], settings.roster, asks_application=asks_application)]
        for nobody in nobodies:
            slips = "".join(f". {slip}" for slip in _unknown_names([one], settings))
            what = f"nobody can give an approval that the policy asks for: {nobody}{slips}"
            yield Finding("fail", "approvals", what)
        if not nobodies:
            meetable.append(one)
    for slip in _unknown_names(meetable, settings):
        yield Finding("warn", "approvals", slip)


def _unknown_names(requirements: Iterable[Requirement], settings: Config) -> Iterator[str]:
    """Say which names of the requirements nobody on the roster has."""
    people = settings.roster.approvers
    roles = {role for one in people.values() for role in one.roles}
    if settings.approvals.roles is not None:
        roles |= {*settings.roster.application_roles}
    for kind, known, names in (
        ("role", roles, [one.roles for one in requirements]),
        ("approver", {*people}, [one.approvers for one in requirements]),
    ):
        named = {name for some in names if some is not None for name in some}
        for name in sorted(named - known):
            yield (
                f"the policy asks for the {kind} {name}, whom [approvers] does not have: "
                f"{did_you_mean(name, known)}correct the policy, or add the {kind} to [approvers]"
            )


def _owners(settings: Config) -> Iterator[Finding]:
    persons = {approver.principal for approver in settings.roster.approvers.values()}
    for name, agent in settings.agents.items():
        owner = agent.owner
        if persons == {owner}:
            what = (
                f"its owner {owner} is the only approver, and nobody may approve its calls unless "
                "a requirement has allow_self: add another approver"
            )
            yield Finding("warn", f"agent {name}", what)


def requests(where: Location, settings: Config, trust: TrustDocument) -> Iterator[Finding]:
    """Check the open requests against the log."""
    try:
        with closing(where.log(trust)) as log:
            store = LoggedApprovals(log, Keys(None, lambda: trust))
            pending = [request for _key, request in store.pending()]
            inbox = ApprovalInbox(store, settings.roster, times.now)
            altered, unused = inbox.altered(), inbox.expired_approved()
            now = seconds(times.now())
            open_requests = [request for request in pending if now < request.expires_at]
            answered = [request for request in open_requests if inbox.missing(request) is None]
    except AgentguardError as error:
        yield Finding("fail", "requests", str(error))
        return
    for request_id in altered:
        what = (
            f"{request_id} was changed in the state, and differs from the log: nobody can answer "
            "it; the call is refused the next time, and makes a new request after that. Find out "
            "who can write the state"
        )
        yield Finding("fail", "requests", what)
    waiting = [request for request in open_requests if request not in answered]
    if answered:
        many = screen.count(len(answered), "request is", "requests are")
        what = f"{many} answered: the call runs, or is refused, when its agent makes the call again"
        yield Finding("ok", "requests", what)
    if waiting:
        many = screen.count(len(waiting), "request waits", "requests wait")
        since = datetime.fromtimestamp(waiting[0].requested_at, UTC)
        what = (
            f"{many} for approvers, since {since:%Y-%m-%d %H:%M} UTC: list them with agentguard "
            "approvals list"
        )
        yield Finding("ok", "requests", what)
    for request in unused:
        what = (
            f"{request.request_id} was approved, and the approval expired unused: "
            f"{request.agent_name} did not make the call of {request.tool} again; start its run "
            "again, and the call makes a new request"
        )
        yield Finding("warn", "requests", what)
    expired = [one for one in pending if one not in open_requests and one not in unused]
    if expired:
        many = screen.count(len(expired), "request has", "requests have")
        what = f"{many} expired: the call did not run; make the call again for a new request"
        yield Finding("warn", "requests", what)
