"""The first steps of the line: what is called, by what authority, and what is known about it.

Time, entropy, arguments, call site, authority and facts. The first of them that fails decides the
refusal; the others are still found out as far as they can be, since a refused call is signed and
recorded with all that is known of it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import orjson

from agentguard.approvals.request import request_key
from agentguard.approvals.store import StoredRequest
from agentguard.call.arguments import Arguments
from agentguard.call.decision import Decision
from agentguard.call.invocation import SALT_SIZE, Invocation, commitment, timestamp
from agentguard.call.tool import FactsFunction, FactsInput, ToolSpec
from agentguard.errors import AgentguardError, ArgumentsError
from agentguard.flow.effects import (
    Actor,
    Authority,
    DelegationSource,
    Effect,
    Line,
    LookUp,
    Obtain,
    Recall,
    Watch,
)
from agentguard.signing.canonical import b64_encode

ID_SIZE: Final = 16
"""Bytes of an invocation's id."""

MAX_TASK_ID: Final = 1024
"""Bytes of a task's id."""

MAX_CLOCK_LAG: Final = timedelta(seconds=60)
"""How far the wall clock may stand behind the newest durable entry."""


class PreparedCall(NamedTuple):
    """A call after steps 1 to 3: what will be signed, and whether it is refused already.

    In the place of arguments that can't be bound stands the refusal that they lead to.
    ``asked_under`` is where a request for the call's approval lies, or would; ``asked`` is that
    request, if there is one.
    ``interrupt`` is what cut the look-up of facts short (a cancellation, say): it goes on once the
    refusal that it means for this call is on record.
    """

    watch: Watch
    invocation: Invocation
    authority: Authority
    predicate: Mapping[str, Any]
    at: str
    salt: bytes
    arguments: Arguments | Decision
    facts: Mapping[str, Any]
    refusal: Decision | None
    interrupt: BaseException | None = None
    asked_under: str | None = None
    asked: StoredRequest | None = None


def prepare(
    actor: Actor, line: Line, invocation: Invocation, lent: DelegationSource | None, watch: Watch
) -> Generator[Effect, Any, PreparedCall]:
    """Steps 1 to 3. It never raises for a call that must be refused: the refusal goes along.

    ``lent`` is the delegation in force, if there is one.
    """
    now, refusal = effective_time(line)
    refusal = refusal or invocation.refusal or _departure(invocation.tool)
    salt, invocation_id, refusal = _entropy(line, refusal)
    bound, resource, refusal = _bind(invocation, refusal)  # 1
    site, task_id, refusal = _site(actor, invocation, refusal)
    if not actor.has_credential(now):  # 2
        failed = yield from _renew(actor, now)  # of a refused call too: its refusal is signed
        refusal = refusal or failed
    authority, unfounded = yield from _authority(actor, lent, now)
    refusal = refusal or unfounded or _may(actor, line, authority, invocation.tool.requires)
    task_id = task_id if authority.task_id is None else authority.task_id
    key, asked = None, None
    if refusal is None and line.roster.can_answer and isinstance(bound, Arguments):
        key = _asked_under(actor, authority, invocation, (site, resource, task_id), bound)
        asked, refusal = yield from _recall(line, key)
        if asked is not None and not asked.altered:
            # it is the call that was shown, under the salt and the site shown
            salt = asked.request.salt
            site = site if invocation.site.is_stable else asked.request.call_site
    # before code runs that is not the line's, and before the statement that names the trace
    begun = None if asked is None or asked.altered else asked.request.traceparent
    traceparent = watch.begin(authority, task_id, begun)
    facts: Mapping[str, Any] = {}
    interrupt: BaseException | None = None
    look_up = invocation.tool.facts
    if refusal is None and isinstance(bound, Arguments) and look_up is not None:  # 3
        about = FactsInput(
            orjson.loads(bound.encoded),  # a copy of their own
            agent=actor.name,
            agent_id=actor.uri,
            principal=authority.principal,
            task_id=task_id,
        )
        facts, refusal, interrupt = yield from _look_up(look_up, about)
    head = line.log.head
    at = timestamp(now if authority.since is None else max(now, authority.since))
    named = commitment(salt, bound.encoded) if salt and isinstance(bound, Arguments) else None
    predicate = {
        "invocation_id": invocation_id,
        "agent": actor.uri,
        "principal": authority.principal,
        "chain_sha256": authority.chain_sha256,
        "token_jti": authority.token_jti,
        "tool": {"name": invocation.tool.name, "digest": invocation.tool.digest},
        "resource": resource,
        "arguments": named,
        "unbound": bound.unbound if isinstance(bound, Arguments) else (),
        "task_id": task_id,
        "call_site": site,
        "traceparent": traceparent,
        "issued_at": at,
        "log": {"origin": head.origin, "size": head.size, "root": b64_encode(head.root)},
    }
    return PreparedCall(
        watch,
        invocation,
        authority,
        predicate,
        at,
        salt,
        bound,
        facts,
        refusal,
        interrupt,
        key,
        asked,
    )


def _departure(tool: ToolSpec) -> Decision | None:
    """Refuse a tool that is not the one that the configuration pins."""
    if tool.departure is None:
        return None
    reason = (
        f"the tool {tool.name} {tool.departure}: find out what has changed; if it is meant to, pin "
        "the new value in agentguard.toml"
    )
    return Decision.refused(reason, code="tool.changed")


def _bind(
    invocation: Invocation, refusal: Decision | None
) -> tuple[Arguments | Decision, str | None, Decision | None]:
    arguments = invocation.arguments
    if isinstance(arguments, ArgumentsError):
        unbound = Decision.refused(str(arguments), code=arguments.code)
        return unbound, None, refusal or unbound
    try:
        return arguments, invocation.tool.resource_of(arguments.values), refusal
    except ArgumentsError as error:
        return arguments, None, refusal or Decision.refused(str(error), code=error.code)


def effective_time(line: Line) -> tuple[datetime, Decision | None]:
    """The later of the wall clock and the log's newest entry: time never goes back."""
    last = line.log.last_at
    try:
        now = line.clock()
        if now >= last:
            return now, None
        lag = last - now
    except Exception as error:  # noqa: BLE001  the clock is a port: any failure of it denies
        return last, Decision.failed("clock.failed", "the clock can't be read", error)
    if lag > MAX_CLOCK_LAG:
        reason = f"the clock stands {lag.total_seconds():.0f} s behind the newest entry of the log"
        return last, Decision.refused(reason, code="clock.skew")
    return last, None


def _entropy(line: Line, refusal: Decision | None) -> tuple[bytes, str | None, Decision | None]:
    try:
        drawn = bytes(line.entropy(SALT_SIZE + ID_SIZE))
    except Exception as error:  # noqa: BLE001  entropy is a port: any failure of it denies
        failed = Decision.failed("entropy.failed", "no random bytes can be had", error)
        return b"", None, refusal or failed
    if len(drawn) != SALT_SIZE + ID_SIZE:
        failed = Decision.refused("too few random bytes can be had", code="entropy.failed")
        return b"", None, refusal or failed
    return drawn[:SALT_SIZE], drawn[SALT_SIZE:].hex(), refusal


def _renew(actor: Actor, now: datetime) -> Generator[Effect, Any, Decision | None]:
    try:
        yield Obtain(actor.renew, now)
    except AgentguardError as error:
        return Decision.refused(str(error), code=error.code)
    except Exception as error:  # noqa: BLE001  an issuer may be a service: any failure of it denies
        return Decision.failed("credential.failed", "no credential can be had", error)
    return None


def _authority(
    actor: Actor, lent: DelegationSource | None, now: datetime
) -> Generator[Effect, Any, tuple[Authority, Decision | None]]:
    """Return by what authority the call is made; with a refusal, the one it is recorded under."""
    if lent is None:
        if actor.own is not None:
            return actor.own, None
        reason = (
            f"agent {actor.name} acts only under a delegation, and none is in force: make the call "
            "inside guard.delegate(...), or with agent.under(delegation); for an agent that acts "
            'by itself, say authority = "own" in its configuration'
        )
        return actor.alone, Decision.refused(reason, code="delegation.missing")
    try:
        authority = lent.authority(now)
        if authority is None:
            authority = yield Obtain(lent.derive, now)
    except AgentguardError as error:
        return actor.alone, Decision.refused(str(error), code=error.code)
    except Exception as error:  # noqa: BLE001  an issuer may be a service: any failure of it denies
        failed = Decision.failed("delegation.failed", "the delegation can't be used", error)
        return actor.alone, failed
    return authority, None


def _may(
    actor: Actor, line: Line, authority: Authority, requires: tuple[str, ...]
) -> Decision | None:
    """See to revocations and the scope."""
    try:
        refused = line.revocations.refusal(authority.names)
    except AgentguardError as error:
        return Decision.refused(str(error), code=error.code)
    except Exception as error:  # noqa: BLE001  what can't be known is not allowed
        return Decision.failed("storage.failed", "the revocations can't be read", error)
    if refused is not None:
        code, reason = refused
        return Decision.refused(reason, code=code)
    missing = authority.lacks(requires)
    if missing:
        whose = f"agent {actor.name}"
        if authority.chain_sha256 is not None:
            whose += f", acting for {authority.principal},"
        return Decision.refused(
            f"{whose} lacks the scope {' '.join(missing)}", code="scope.exceeded"
        )
    return None


def _site(
    actor: Actor, invocation: Invocation, refusal: Decision | None
) -> tuple[str | None, str | None, Decision | None]:
    """The call site's digest and the task's id; text that can't be signed refuses the call."""
    task_id = invocation.task_id
    try:
        if task_id is not None and len(task_id.encode()) > MAX_TASK_ID:
            reason = f"the task's id takes more than {MAX_TASK_ID} bytes"
            return None, None, refusal or Decision.refused(reason, code="site.unencodable")
        return invocation.site.digest(actor.name), task_id, refusal
    except (AgentguardError, UnicodeError):
        reason = "a name of the call's thread, turn or task holds text that can't be written down"
        return None, None, refusal or Decision.refused(reason, code="site.unencodable")


def _asked_under(
    actor: Actor,
    authority: Authority,
    invocation: Invocation,
    named: tuple[str | None, str | None, str | None],
    arguments: Arguments,
) -> str:
    """Name the place (64 hex digits) where a request for the call's approval lies.

    It is the call's site. Where no framework names that in the same way when the call is made
    again, it is the call itself: two equal ones then wait for one answer, which lets one of them
    run.
    """
    site, resource, task_id = named
    if invocation.site.is_stable and site is not None:
        return site
    return request_key(
        agent=actor.name,
        principal=authority.principal,
        actors=authority.actors,
        tool_digest=invocation.tool.digest,
        arguments=arguments.encoded,
        resource=resource,
        task_id=task_id,
    )


def _recall(
    line: Line, key: str
) -> Generator[Effect, Any, tuple[StoredRequest | None, Decision | None]]:
    """Return the request that lies there; what can't be read refuses the call."""
    try:
        return ((yield Recall(key)) if line.approvals.has(key) else None), None
    except AgentguardError as error:
        return None, Decision.refused(str(error), code=error.code)
    except Exception as error:  # noqa: BLE001  where requests lie is a port: any failure denies
        failed = Decision.failed("storage.failed", "approvals can't be read", error)
        return None, failed


def _look_up(
    facts: FactsFunction, about: FactsInput
) -> Generator[Effect, Any, tuple[Mapping[str, Any], Decision | None, BaseException | None]]:
    try:
        found = yield LookUp(facts, about)
        if isinstance(found, Mapping):
            return dict(found), None, None
    except Exception as error:  # noqa: BLE001  the application's look-up may raise anything: it denies
        failed = Decision.failed("facts.failed", "the look-up of facts failed", error)
        return {}, failed, None
    except BaseException as error:  # noqa: BLE001  raised again once the refusal is on record
        return {}, interrupted(error), error
    reason = f"the look-up of facts returned a {type(found).__name__}, not a mapping"
    return {}, Decision.refused(reason, code="facts.invalid"), None


def interrupted(error: BaseException) -> Decision:
    """Refuse a call that was cut short (cancelled, Ctrl-C, sys.exit) before it was decided."""
    reason = f"the call was interrupted before it was decided ({type(error).__name__})"
    return Decision.refused(reason, code="call.interrupted")
