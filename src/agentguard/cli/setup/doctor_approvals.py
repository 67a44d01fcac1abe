"""The checks of ``agentguard doctor`` on approvals: the roster, the policy, and open requests.

The checks search the text of a Rego policy, and see a requirement only if the policy writes the
quorum, the roles and the approvers as literals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple, Self

from agentguard.approvals.inbox import ApprovalInbox
from agentguard.approvals.roster import Roster
from agentguard.cli.setup.finding import Finding
from agentguard.cli.terminal import screen, times
from agentguard.domain import config
from agentguard.domain.config import Config
from agentguard.errors import AgentguardError
from agentguard.identity.trust import TrustDocument, seconds
from agentguard.policy.rego import RegoSource
from agentguard.storage.approval_files import FileApprovals
from agentguard.storage.ledger import Ledger

_RULE: Final = re.compile(r"^approval(?:\s|\[|:=|=|\{)", re.MULTILINE)
_QUORUM: Final = re.compile(r'"quorum"\s*:\s*(\d+)')
_NAMES: Final = r'"{}"\s*:\s*\[([^\]]*)\]'
_TEXT: Final = re.compile(r'"([^"]*)"')


class _Requirements(NamedTuple):
    """The literals of a policy's rule ``approval``: the largest quorum, roles and approvers."""

    quorum: int
    roles: frozenset[str]
    approvers: frozenset[str]

    @classmethod
    def of(cls, settings: Config) -> Self | None:
        """Search the modules of the policy's package; None without a rule ``approval``."""
        policy_config = settings.policy
        if policy_config is None or policy_config.engine != "rego":
            return None
        try:
            source = RegoSource.read(config.resolve(settings.base, policy_config.path))
        except AgentguardError:
            return None  # the check of the policy reports the error
        package = re.escape(policy_config.query.removeprefix("data."))
        declaration = re.compile(rf"^package\s+{package}\s*$", re.MULTILINE)
        code = (re.sub(r"(?m)^\s*#.*$", "", text) for _path, text in source.modules)
        text = "\n".join(module for module in code if declaration.search(module))
        if not _RULE.search(text):
            return None
        quorums = map(int, _QUORUM.findall(text))
        return cls(max(quorums, default=1), _literals("roles", text), _literals("approvers", text))


def approvals(settings: Config) -> Iterator[Finding]:
    """Check the roster, and whether it can meet the policy's requirements."""
    requirements = _Requirements.of(settings)
    yield from _roster(settings)
    if requirements is not None:
        yield from _unsatisfiable(settings, requirements)
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
        yield Finding("warn", "approvals", what)


def _unsatisfiable(settings: Config, requirements: _Requirements) -> Iterator[Finding]:
    """Report the requirements that nobody on the roster can meet."""
    people = settings.roster
    if not people.can_answer:
        what = (
            "the policy has a rule `approval`, and there are no approvers: every call that needs "
            "an approval is denied (approval.unavailable); add [approvers.NAME]"
        )
        yield Finding("warn", "approvals", what)
        return
    asks_application = settings.approver_roles is not None
    persons = {approver.principal for approver in people.approvers.values()}
    if not asks_application and requirements.quorum > max(len(persons), 1):
        who = screen.count(len(persons), "person", "people")
        what = (
            f"the policy requires a quorum of {requirements.quorum}, and the roster has {who}: "
            "add [approvers.NAME]"
        )
        yield Finding("warn", "approvals", what)
    for role in sorted(requirements.roles):
        problem = _unmet_role(people, role, asks_application=asks_application)
        if problem is not None:
            yield Finding("warn", "approvals", problem)
    for name in sorted(requirements.approvers - people.approvers.keys()):
        what = (
            f"the policy requires the approver {name}, who is not on the roster: add "
            f"[approvers.{name}], or correct the name"
        )
        yield Finding("warn", "approvals", what)


def _unmet_role(people: Roster, role: str, *, asks_application: bool) -> str | None:
    """Return why no answer can meet a requirement of ``role``; None where one can."""
    holders = [one for one in people.approvers.values() if role in one.roles]
    by_word = role in people.application_roles
    if any(one.keys for one in holders) or (by_word and (holders or asks_application)):
        return None
    if people.application and not by_word and (holders or asks_application):
        return (
            f"the policy requires the role {role}, which no click can meet: the application's word "
            f'does not count for the role; add application_roles = ["{role}"] to [approvals], or '
            "give somebody in this role a key"
        )
    return (
        f"the policy requires the role {role}, which nobody on the roster has: add it to the "
        "roles of an approver"
    )


def _owners(settings: Config) -> Iterator[Finding]:
    persons = {approver.principal for approver in settings.roster.approvers.values()}
    for name, agent in settings.agents.items():
        owner = agent.profile.owner
        if persons == {owner}:
            what = (
                f"its owner {owner} is the only approver, and nobody may approve its calls unless "
                "a requirement has allow_self: add another approver"
            )
            yield Finding("warn", f"agent {name}", what)


def requests(settings: Config, trust: TrustDocument) -> Iterator[Finding]:
    """Check the open requests against the log."""
    try:
        store = FileApprovals(
            settings.state, Ledger(settings.state, settings.anchor, lambda: trust)
        )
        pending = [request for _key, request in store.pending()]
        inbox = ApprovalInbox(store, settings.roster, times.now)
        altered, unused = inbox.altered(), inbox.expired_approved()
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
    now = seconds(times.now())
    open_requests = [request for request in pending if now < request.expires_at]
    answered = [request for request in open_requests if inbox.missing(request) is None]
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


def _literals(member: str, text: str) -> frozenset[str]:
    lists = re.findall(_NAMES.format(member), text)
    return frozenset(name for names in lists for name in _TEXT.findall(names))
