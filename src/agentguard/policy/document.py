"""The policy's input document, and the one fail-closed rule that reads the policy's output.

``document`` builds the input of a policy; ``decide`` turns an engine's answer into a ``Decision``.
Both are pure; calling the engine is an effect of the flow. Shapes and precedence are those of
docs/reference/policy-document.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from agentguard.call import redaction
from agentguard.call.arguments import Arguments
from agentguard.call.decision import Decision, Requirement
from agentguard.call.plain import discarded
from agentguard.call.redaction import Redaction
from agentguard.call.tool import ToolSpec
from agentguard.call.vocabulary import RESERVED, no_member
from agentguard.errors import DecodeError, EncodeError, FactsError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, Fragment, is_integer

DEFAULT_QUERY: Final = "data.agent.authz"
"""The package whose document is the policy's answer, unless the configuration names another."""

QUERY: Final = re.compile(r"data(\.[A-Za-z_][A-Za-z0-9_]*)+")
"""The form of a package's path, for ``fullmatch``."""

MAX_INPUT: Final = 4 << 20
"""The most bytes of a policy's input, which the log and the evidence of a call have to hold."""

MAX_AT_ONCE: Final = 256
"""The most evaluations by a server at a time; each has a connection, an async one a thread."""

NO_RULE: Final = "no rule of the policy allows this call"
"""The reason of a denial for which the policy gives none."""

UNDEFINED: Final = object()
"""The answer of an engine when the query has no value; never an allow."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_ALL_ARGUMENTS: Final[tuple[Redaction, ...]] = (("args",),)
MEMBERS: Final = {
    "approval": frozenset({"reason", "approvers", "roles", "quorum", "ttl", "allow_self"}),
    "obligations": frozenset({"redact"}),
}
"""The members of the objects in a policy's output (policy-document.md, Output)."""
_PEOPLE: Final = frozenset({"approvers", "roles"})


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An engine's answer with details of the evaluation.

    ``document`` is the policy's document or ``UNDEFINED``; ``evaluation`` is recorded with the
    decision (records.md).
    """

    document: object
    evaluation: Mapping[str, JSON]


def evaluation_of(answer: object) -> Mapping[str, JSON] | None:
    """Return the details of the evaluation in an engine's answer; None if there are none."""
    return answer.evaluation if isinstance(answer, Evaluated) else None


def document(  # noqa: PLR0913  the members of the input
    agent: Fragment,
    tool: ToolSpec,
    arguments: Arguments,
    *,
    resource: str | None,
    task_id: str | None,
    facts: Mapping[str, Any],
    places: Mapping[str, str] | None = None,
    delegation: Fragment | None = None,
    approval: Fragment | None = None,
) -> bytes:
    """Build the policy's input, as canonical JSON.

    ``agent`` is the agent's canonical ``{id, name, type, instance, roles}``; ``delegation`` the
    canonical delegation, None on the agent's own authority; ``approval`` names the approvers, None
    before an approval was requested. ``places`` are those of the arguments that have a folder, None
    for a call without such arguments. Raises ``FactsError``: ``facts.conflict`` where a name at the
    top level is reserved or used twice, ``facts.undeclared`` for a fact that the tool does not
    declare (``gives``), ``facts.invalid`` where a fact is no JSON value,
    ``facts.too_large`` where the input would take more than ``MAX_INPUT``.
    """
    members: dict[str, object] = {
        "agent": agent,
        "delegation": delegation,
        "action": tool.name,
        "resource": resource,
        "task_id": task_id,
        "args": Fragment(arguments.encoded),
        "tool": {"name": tool.name, "schema_sha256": tool.schema_sha256, **_whose_facts(tool)},
    }
    if approval is not None:
        members["approval"] = approval
    if places is not None:
        members["paths"] = Fragment(canonical.dumps(dict(places)))
    if tool.caller is not None:
        members["caller"] = Fragment(canonical.dumps(dict(tool.caller)))
    for name, value in tool.attributes_of(arguments.values).items():
        members[name] = value if type(value) is str else Fragment(canonical.dumps(value))
    members |= _facts(tool, facts)
    encoded = canonical.dumps_record(members)
    if len(encoded) > MAX_INPUT:
        message = (
            f"tool {tool.name}: the policy's input takes {len(encoded)} bytes with its facts, and "
            f"{MAX_INPUT} at most: look up what the policy reads, and no more"
        )
        raise FactsError(message, code="facts.too_large")
    return encoded


def _facts(tool: ToolSpec, facts: Mapping[str, Any]) -> dict[str, Fragment]:
    members: dict[str, Fragment] = {}
    for name, value in facts.items():
        if not _NAME.match(str(name)):
            raise FactsError(f"the fact {name!r} is not a plain name", code="facts.invalid")
        if name in RESERVED or name in tool.attributes:
            message = f"tool {tool.name}: the fact {name!r} collides with the policy's input"
            raise FactsError(message, code="facts.conflict")
        if name not in (tool.gives or ()):
            message = (
                f"tool {tool.name}: the look-up of facts returned {name!r}, which is not among the "
                f"names that it gives ({', '.join(tool.gives or ()) or 'none'})"
            )
            raise FactsError(message, code="facts.undeclared")
        try:
            members[name] = Fragment(canonical.dumps(value))
        except EncodeError as error:
            message = f"tool {tool.name}: the fact {name!r} is no JSON value: {error}"
            raise FactsError(message, code="facts.invalid") from error
    return members


def _whose_facts(tool: ToolSpec) -> dict[str, str]:
    """Return the member that says whose word the facts are, where it is a client's."""
    return {"facts": "client"} if tool.facts_by_client else {}


def decide(answer: object) -> Decision:
    """Turn the policy's package document into a decision; no other code does, and it fails closed.

    Precedence: a deny reason or anything malformed, then an unknown obligation, then an approval,
    then ``allow``. Only ``allow is True`` allows.
    """
    if isinstance(answer, Evaluated):
        answer = answer.document
    if answer is UNDEFINED:
        return Decision.refusal("the policy's query is undefined", code="policy.undefined")
    if not isinstance(answer, Mapping):
        return _malformed(f"the policy's document is a {discarded(answer)}, not an object")
    redactions, unmet = _obligations(answer.get("obligations", []))
    decision = (_refusal(answer) or unmet) if unmet is not None else _decision(answer)
    return replace(decision, redactions=redactions) if redactions else decision


def _decision(answer: Mapping[str, JSON]) -> Decision:
    refusal = _refusal(answer)
    if refusal is not None:
        return refusal
    requirements = read_requirements(answer.get("approval", False))
    if isinstance(requirements, Decision):
        return requirements
    allow = answer.get("allow", False)
    if allow is not True and allow is not False:
        return _malformed(f"allow is a {type(allow).__name__}, not a boolean")
    if requirements:
        return Decision.require_approval(*requirements)
    if allow:
        return Decision.allow()
    return Decision.deny(NO_RULE)


def _refusal(answer: Mapping[str, JSON]) -> Decision | None:
    """Return a denial if any deny reason is defined, whatever its value; else None."""
    several = answer.get("deny_reasons", [])
    if "deny_reason" not in answer and isinstance(several, list) and not several:
        return None
    reasons: list[str] = []
    if "deny_reason" in answer:
        reason = answer["deny_reason"]
        reasons.append(reason if isinstance(reason, str) else "the policy denies this call")
    if not isinstance(several, list):
        several = ["the policy denies this call"]
    reasons += [r if isinstance(r, str) else "the policy denies this call" for r in several]
    return Decision.deny(*sorted(dict.fromkeys(reasons)))


def _obligations(value: JSON) -> tuple[tuple[Redaction, ...], Decision | None]:
    """Read the obligations, a set of ``{"redact": pointer}``: redactions, and a refusal or None.

    An obligation that can't be met refuses the call and redacts all of its arguments, since the
    arguments that the policy would have redacted are unknown.
    """
    if not isinstance(value, list):
        return _ALL_ARGUMENTS, _malformed("obligations is no set")
    redactions: list[Redaction] = []
    unmet: Decision | None = None
    for obligation in value:
        match obligation:
            case {"redact": str(pointer), **others} if not others:
                try:
                    redactions.append(redaction.parse(pointer))
                except DecodeError as error:
                    unmet = _malformed(str(error))
            case _:
                names = obligation if isinstance(obligation, Mapping) else ()
                slips = slips_in("obligations", names)
                reason = "the policy asks for an obligation that this guard can't meet"
                reason = f"{reason}: {slips[0]}" if slips else reason
                unmet = unmet or Decision.refusal(reason, code="obligation.unknown")
    return (*redactions, *(_ALL_ARGUMENTS if unmet is not None else ())), unmet


def read_requirements(value: JSON) -> tuple[Requirement, ...] | Decision:
    """Read the value of ``approval``; a value of another form is the denial of each call."""
    if value is False:
        return ()
    if value is True:
        return (Requirement(),)
    needed = [value] if isinstance(value, Mapping) else value
    if not isinstance(needed, list):
        return _malformed("approval is neither true, nor an object, nor a set of objects")
    for item in needed:
        slips = slips_in("approval", item) if isinstance(item, Mapping) else ()
        if slips:
            return _malformed(slips[0])
    requirements = [_requirement(item) for item in needed]
    if any(requirement is None for requirement in requirements):
        members = ", ".join(sorted(MEMBERS["approval"]))
        return _malformed(
            f"approval takes {members}, each with a value of its own type, and "
            "approvers and roles name somebody"
        )
    return tuple(requirement for requirement in requirements if requirement is not None)


def _requirement(value: JSON) -> Requirement | None:
    if not isinstance(value, Mapping):
        return None
    match {"reason": "approval required", "quorum": 1, "ttl": 3600, "allow_self": False, **value}:
        case {
            "reason": str(reason),
            "quorum": quorum,
            "ttl": ttl,
            "allow_self": bool(allow_self),
        } if is_integer(quorum) and is_integer(ttl):
            named = {name: _names(value[name]) for name in _PEOPLE & value.keys()}
            if None in named.values() or quorum < 1 or ttl < 1:
                return None
            return Requirement(reason, quorum=quorum, ttl=ttl, allow_self=allow_self, **named)
    return None


def slips_in(output: str, names: Iterable[object]) -> list[str]:
    """Return a sentence for each name that an object of the output does not have."""
    known = MEMBERS[output]
    return [no_member(output, str(name), known) for name in names if name not in known]


def _names(value: JSON) -> tuple[str, ...] | None:
    """Return names, None for no list of them: an empty list is a look-up that found nobody."""
    if not isinstance(value, list) or not value:
        return None
    names = tuple(name for name in value if isinstance(name, str))
    return names if len(names) == len(value) else None


def _malformed(problem: str) -> Decision:
    return Decision.refusal(problem, code="policy.malformed")
