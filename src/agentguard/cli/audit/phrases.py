"""How a delegation, and what people answered, is told by ``audit show`` and ``evidence verify``.

And what the command line adds to an error that a guard has in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from rich.text import Text

from agentguard.approvals.roster import Answer
from agentguard.audit.calls import Authorization, Evaluation
from agentguard.call.decision import Requirement
from agentguard.cli.terminal import screen
from agentguard.delegation.chain import Chain
from agentguard.delegation.grant import Grant
from agentguard.identity.credential import agent_alias
from agentguard.signing.canonical import JSON

UNSIGNED: Final = "by nobody: the agent's signer failed, and the log alone says that it asked"


_NO_PACKAGE: Final = re.compile(
    r"^the query \S+ names no package of the policy, which has ([^\s,]+).*$", re.MULTILINE
)

WOULD: Final = {"allow": "allow", "deny": "deny", "approval": "ask"}
"""What a policy that is only observed would do, by its decision."""


def observed(call: Authorization) -> str:
    """Say that a call ran whatever the policy said."""
    return (
        "the policy was only observed (mode observe): the call was let run whatever it said, and "
        f"no policy has authorised it; it would {WOULD[call.decision]}"
    )


def decided(call: Authorization) -> Iterator[tuple[str, str | Text]]:
    """Yield the answer to a call and its reasons, and whether they counted."""
    code = f" [{call.code}]" if call.code else ""
    if call.enforced:
        yield "decision", screen.styled(call.decision, f"{call.decision}{code}")
    else:
        would = f"would {WOULD[call.decision]}{code}"
        yield "decision", screen.styled("warn", f"NOT ENFORCED: {would}")
        yield "mode", screen.styled("warn", observed(call))
    for reason in call.reasons:
        yield "reason", reason


def delegation(chain: Chain) -> Iterator[tuple[str, str]]:
    """Yield what each hop says, and what the agent could do at the end of them."""
    first = chain.root
    yield "vouched for", f"by the {first.assurance}, which has authenticated {first.principal}"
    parent: Grant | None = None
    for hop in chain.hops:
        yield f"hop {hop.grant.depth}", said(hop.grant, parent)
        parent = hop.grant
    leaf = chain.leaf
    yield "may", f"{' '.join(leaf.scope) or 'nothing: its scope is empty'}; until {time(leaf)}"
    for jti, most in chain.limits:
        yield "calls", f"{most} at the most ({jti})"


def said(grant: Grant, parent: Grant | None) -> str:
    """Write down one hop; ``parent`` is the one before it, None for the first."""
    if parent is None:
        signed = ", signed by the issuer"
    else:
        signed = ", signed by the issuer in its place" if parent.is_asserted else ""
    scope = " ".join(grant.scope) or "nothing"
    return f"{lets(grant, parent)} do {scope} for {grant.principal}{signed}"


def lets(grant: Grant, parent: Grant | None) -> str:
    """Write down who hands on to whom in a hop."""
    by = agent_alias(grant.delegator)
    if parent is not None and parent.delegatee == grant.delegator:
        by = delegatee(parent)
    return f"{by} lets {delegatee(grant)}"


def delegatee(grant: Grant) -> str:
    """Name whom a hop goes to; without a service that is the domain's own URI again."""
    if grant.depth == 1 and grant.delegatee == grant.delegator:
        return "the application"
    return agent_alias(grant.delegatee)


def not_run(replay_of: str | None) -> str:
    """Say of an authorised call why its tool did not run."""
    if replay_of is None:
        return "interrupted before it ran"
    return f"it did not run again: the result of the call {replay_of} was handed out"


def asked_for(needed: Requirement) -> str:
    """Write down one requirement."""
    parts = [f"{needed.quorum} {'person' if needed.quorum == 1 else 'people'}"]
    if needed.approvers:
        parts.append(f"of {', '.join(needed.approvers)}")
    if needed.roles:
        parts.append(f"in a role of {', '.join(needed.roles)}")
    if needed.allow_self:
        parts.append("whoever asks among them")
    return f"{' '.join(parts)} ({needed.reason})"


def evaluated(evaluation: Evaluation) -> str:
    """Write down what a policy's server has said of an evaluation."""
    parts = [f"by its word {evaluation.version or 'of no version'}"]
    for bundle, revision in sorted(evaluation.revisions.items()):
        parts.append(f"bundle {bundle} at {revision or 'no revision'}")
    parts.append(f"decision id {evaluation.decision_id or 'none'}")
    return ", ".join(parts)


def answers(given: Sequence[Answer]) -> Iterator[tuple[str, str]]:
    """Yield who has answered a request for an approval, and how that is known."""
    for answer in given:
        said = answer.approval
        approver = answer.approver
        if approver is None:
            how = "by the application's word, unsigned"
        else:
            roles = f" ({', '.join(approver.roles)})" if approver.roles else ""
            key_id, _signature = answer.envelope.signatures[0]
            how = f"{approver.name} of the roster{roles}, signed with {key_id}"
        at = moment(said.not_before)
        note = f": {said.note}" if said.note else ""
        done = "approved by" if said.verdict == "approve" else "rejected by"
        yield done, f"{said.approver}, {how}, at {at}{note}"


def answer_json(answer: Answer) -> dict[str, JSON]:
    """Return what ``--json`` gives of an answer."""
    said, approver = answer.approval, answer.approver
    return {
        "approval_id": said.approval_id,
        "request_id": said.request_id,
        "verdict": said.verdict,
        "approver": said.approver,
        "name": approver.name if approver is not None else None,
        "roles": list(approver.roles) if approver is not None else [],
        "method": said.method,
        "key": answer.envelope.signatures[0][0] if approver is not None else None,
        "not_before": said.not_before,
        "note": said.note,
    }


def with_query(message: str) -> str:
    """Say how to ask another package, in an error of a query that names none of the policy's."""
    return _NO_PACKAGE.sub(r"\g<0>: ask with --query \1, or name it as query in [policy]", message)


def time(grant: Grant) -> str:
    """Write down when a hop ends."""
    return moment(grant.expires_at)


def moment(seconds: int) -> str:
    """Write down a time; one that no calendar has, as its number."""
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{seconds} s since 1970"
