"""Steps 1 to 3 of a guarded call: what is called, by what authority, and the facts about the call.

Here the calls of revoked agents and delegations are refused, and calls outside the scope.
``prepare`` finds out time, random bytes, arguments, call site, authority and facts. The first
failure decides the refusal. The others are still found out as far as possible, since a refused
call is signed and recorded with all that is known of it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple

import orjson

from agentguard.approvals.nested import NestedCalls
from agentguard.approvals.request import request_key
from agentguard.approvals.store import StoredRequest
from agentguard.call.arguments import Arguments
from agentguard.call.decision import Decision
from agentguard.call.invocation import (
    MAX_TASK_ID,
    REFUSED_CHAIN,
    SALT_SIZE,
    Invocation,
    commitment,
    timestamp,
)
from agentguard.call.masking import Masks
from agentguard.call.options import CallOptions
from agentguard.call.reason_codes import CODES
from agentguard.call.releases import Releases
from agentguard.call.tool import FactsFunction, FactsInput, ToolSpec, facts_in
from agentguard.delegation.claim import Claim
from agentguard.errors import AgentguardError, ArgumentsError
from agentguard.flow.authority import Actor, Authority, DelegationSource
from agentguard.flow.effects import Begin, Do, Effect, LookUp
from agentguard.flow.listener import CallListener
from agentguard.flow.ports import Ports
from agentguard.flow.reported import ReportedFailure
from agentguard.identity.revocation import require_unrevoked
from agentguard.signing.canonical import b64_encode

ID_SIZE: Final = 16
"""Bytes of an invocation's id."""

MAX_CLOCK_LAG: Final = timedelta(seconds=60)
"""How far the wall clock may stand behind the newest durable entry."""


_FAILED: Final = "the look-up of facts failed"
_EXPOSED: Final = (
    "an argument holds a secret that was released to the call around, and arguments go to the "
    "policy, to approvers and into the log"
)


class CallInput(NamedTuple):
    """What the steps of a call begin with.

    ``delegation_source`` is the delegation in force, None for none. ``options`` is what the adapter
    says of the call. ``nested_calls`` keeps account of the guarded calls that the tool makes.
    ``around`` are the secrets of the call around this one, None without a call around.
    """

    actor: Actor
    ports: Ports
    invocation: Invocation
    listener: CallListener
    delegation_source: DelegationSource | None
    options: CallOptions
    nested_calls: NestedCalls
    around: Releases | None = None


class PreparedCall(NamedTuple):
    """A call after steps 1 to 3: what will be signed, and why the call is refused (None: is not).

    ``predicate`` is the predicate of the invocation's statement, ``at`` the time in it.
    ``arguments`` is the refusal where the arguments can't be bound. ``places`` is the member
    ``paths`` of the policy's input, None without arguments that have a folder. ``interrupt`` is the
    exception that cut the look-up of facts short (a cancellation, say), raised again once the
    refusal is on record. ``request_key`` names the place of a request for the call's approval, and
    ``stored_request`` is the request there, None for none.
    """

    actor: Actor
    ports: Ports
    listener: CallListener
    invocation: Invocation
    authority: Authority
    predicate: Mapping[str, Any]
    at: str
    salt: bytes
    arguments: Arguments | Decision
    places: Mapping[str, str] | None
    facts: Mapping[str, Any]
    refusal: Decision | None
    interrupt: BaseException | None = None
    request_key: str | None = None
    stored_request: StoredRequest | None = None


class _Place(NamedTuple):
    """What of a call its arguments do not say; None for what is not known."""

    call_site: str | None
    resource: str | None
    task_id: str | None


def prepare(
    call: CallInput, *, seeks_approval: bool = True
) -> Generator[Effect, Any, PreparedCall]:
    """Steps 1 to 3. Raises nothing for a call that must be refused: the value has the refusal.

    Where nobody ``seeks_approval``, no request for one is looked for.
    """
    actor, ports, invocation, listener = call.actor, call.ports, call.invocation, call.listener
    now, refusal = effective_time(ports)
    refusal = refusal or invocation.refusal or _tool_refusal(invocation.tool)
    refusal = refusal or ports.names.refusal()
    salt, invocation_id, refusal = _entropy(ports, refusal)
    arguments, resource, refusal = _bind(invocation, call.around, refusal)  # 1
    call_site, task_id, refusal = _site(actor, invocation, refusal)
    if not actor.has_credential(now):  # 2
        failed = yield from _renew(actor, now)  # for a refused call, too: its refusal is signed
        refusal = refusal or failed
    authority, failed = actor.own, None
    if authority is None or call.delegation_source is not None:
        authority, failed = yield from _authority(actor, call.delegation_source, now)
    refusal = refusal or failed or _require(actor, ports, authority, invocation.tool.requires)
    task_id = task_id if authority.task_id is None else authority.task_id
    place, key, stored = _Place(call_site, resource, task_id), None, None
    has_people = seeks_approval and ports.roster.can_answer
    if refusal is None and has_people and isinstance(arguments, Arguments):
        key = _request_key(actor, authority, invocation, place, arguments)
        stored, refusal = yield from _stored_request(ports, key)
    request = stored.request if stored is not None and not stored.altered else None
    if request is not None:  # the call is the one that was shown, under the same salt and site
        salt = request.salt
        place = place if invocation.site.is_stable else place._replace(call_site=request.call_site)
    # before anybody else's code runs, and before the statement, which names the trace
    paused = request.traceparent if request is not None else None
    traceparent = yield Begin(listener, authority, task_id, paused)
    places: Mapping[str, str] | None = None
    facts: Mapping[str, Any] = {}
    failed = interrupt = None
    if refusal is None and isinstance(arguments, Arguments):  # 3
        facts_input = partial(_facts_input, actor, authority, task_id, arguments)
        if not ports.places.arguments.isdisjoint(arguments.values):
            places, failed, interrupt = yield from _looked_up(ports.places, facts_input())
        if failed is None and invocation.tool.facts is not None:
            found = yield from _looked_up(invocation.tool.facts, facts_input())
            facts, failed, interrupt = found
    at = timestamp(now if authority.since is None else max(now, authority.since))
    predicate = _predicate(actor, ports, invocation, authority, place, arguments, salt)
    predicate["invocation_id"] = invocation_id
    predicate["traceparent"] = traceparent
    predicate["issued_at"] = at
    return PreparedCall(
        actor,
        ports,
        listener,
        invocation,
        authority,
        predicate,
        at,
        salt,
        arguments,
        places,
        facts,
        refusal or failed,
        interrupt,
        key,
        stored,
    )


def _predicate(
    actor: Actor,
    ports: Ports,
    invocation: Invocation,
    authority: Authority,
    place: _Place,
    arguments: Arguments | Decision,
    salt: bytes,
) -> dict[str, Any]:
    """Return the predicate of the invocation's statement, but for its id, trace and time."""
    head, tool, refused = ports.log.head, invocation.tool, authority.refused
    bound = arguments if isinstance(arguments, Arguments) else None
    chain = None if refused is None or refused.chain is None else refused.chain.as_json()
    return {
        **({} if refused is None else {REFUSED_CHAIN: chain}),
        "agent": actor.uri,
        "principal": authority.principal,
        "chain_sha256": authority.chain_sha256,
        "token_jti": authority.token_jti,
        "tool": {"name": tool.name, "digest": tool.digest, "origin": tool.origin},
        "resource": place.resource,
        "arguments": commitment(salt, bound.encoded) if salt and bound is not None else None,
        "unbound": bound.unbound if bound is not None else (),
        "task_id": place.task_id,
        "call_site": place.call_site,
        "inside": invocation.inside,
        "log": {"origin": head.origin, "size": head.size, "root": b64_encode(head.root)},
    }


def _tool_refusal(tool: ToolSpec) -> Decision | None:
    """Refuse a tool that the configuration does not list, or pins as another one."""
    if tool.unlisted is not None:
        return Decision.refusal(tool.unlisted, code="tool.unconfigured")
    if tool.pin_mismatch is None:
        return None
    reason = (
        f"the tool {tool.name} {tool.pin_mismatch}: find out what has changed; if it is meant to, "
        "pin the new value in agentguard.toml"
    )
    return Decision.refusal(reason, code="tool.changed")


def _bind(
    invocation: Invocation, around: Releases | None, refusal: Decision | None
) -> tuple[Arguments | Decision, str | None, Decision | None]:
    arguments = invocation.arguments
    if isinstance(arguments, ArgumentsError):
        unbound = Decision.of_error(arguments)
        return unbound, None, refusal or unbound
    held = around.held if around is not None else ()
    if held and Masks(held).find_in(arguments.encoded):
        # unbound, so that neither the log nor the policy gets the arguments
        exposed = Decision.refusal(_EXPOSED, code="secret.exposed")
        return exposed, None, refusal or exposed
    try:
        return arguments, invocation.tool.resource_of(arguments.values), refusal
    except ArgumentsError as error:
        return arguments, None, refusal or Decision.of_error(error)


def effective_time(ports: Ports) -> tuple[datetime, Decision | None]:
    """Return the later of the wall clock and the log's newest entry: time never goes back."""
    last = ports.log.last_at
    try:
        now = ports.clock()
        if now >= last:
            return now, None
        lag = last - now
    except Exception as error:  # noqa: BLE001  the clock is a port: any failure of it denies
        return last, Decision.failure("clock.failed", "the clock can't be read", error)
    if lag > MAX_CLOCK_LAG:
        reason = f"the clock stands {lag.total_seconds():.0f} s behind the newest entry of the log"
        return last, Decision.refusal(reason, code="clock.skew")
    return last, None


def _entropy(ports: Ports, refusal: Decision | None) -> tuple[bytes, str | None, Decision | None]:
    try:
        drawn = bytes(ports.entropy(SALT_SIZE + ID_SIZE))
    except Exception as error:  # noqa: BLE001  entropy is a port: any failure of it denies
        failed = Decision.failure("entropy.failed", "no random bytes can be had", error)
        return b"", None, refusal or failed
    if len(drawn) != SALT_SIZE + ID_SIZE:
        failed = Decision.refusal("too few random bytes can be had", code="entropy.failed")
        return b"", None, refusal or failed
    return drawn[:SALT_SIZE], drawn[SALT_SIZE:].hex(), refusal


def _renew(actor: Actor, now: datetime) -> Generator[Effect, Any, Decision | None]:
    try:
        yield Do(actor.renew, now)
    except Exception as error:  # noqa: BLE001  an issuer may be a service: any failure of it denies
        return Decision.of_exception(error, "credential.failed", "no credential can be had")
    return None


def _authority(
    actor: Actor, delegation_source: DelegationSource | None, now: datetime
) -> Generator[Effect, Any, tuple[Authority, Decision | None]]:
    """Return the authority of a call under a delegation, and the refusal where there is none."""
    if delegation_source is None:
        reason = (
            f"agent {actor.name} acts only under a delegation, and none is in force: "
            f"{CODES['delegation.missing'].remedy}"
        )
        return actor.alone, Decision.refusal(reason, code="delegation.missing")
    try:
        authority = delegation_source.authority(now)
        if authority is None:
            authority = yield Do(delegation_source.derive, now)
    except Exception as error:  # noqa: BLE001  an issuer may be a service: any failure of it denies
        what = "the delegation can't be used"
        refusal = Decision.of_exception(error, "delegation.failed", what)
        return actor.refused(_claim(delegation_source, now)), refusal
    return authority, None


def _claim(delegation_source: DelegationSource, now: datetime) -> Claim | None:
    try:
        return delegation_source.claim(now)
    except Exception:  # noqa: BLE001  a trust document that can't be read: the call is refused
        return None


def _require(
    actor: Actor, ports: Ports, authority: Authority, requires: tuple[str, ...]
) -> Decision | None:
    """Refuse a call whose authority is revoked, or whose scope is too small."""
    try:
        require_unrevoked(ports.log, authority.names)
    except Exception as error:  # noqa: BLE001  revocations that can't be read deny
        return Decision.of_exception(error, "storage.failed", "the revocations can't be read")
    missing = authority.lacks(requires)
    if missing:
        whose = f"agent {actor.name}"
        if authority.chain_sha256 is not None:
            whose += f", acting for {authority.principal},"
        return Decision.refusal(
            f"{whose} lacks the scope {' '.join(missing)}", code="scope.exceeded"
        )
    return None


def _site(
    actor: Actor, invocation: Invocation, refusal: Decision | None
) -> tuple[str | None, str | None, Decision | None]:
    """Return the call site's digest and the task's id; text that can't be signed is refused."""
    task_id = invocation.task_id
    try:
        if task_id is not None and len(task_id.encode()) > MAX_TASK_ID:
            reason = f"the task's id takes more than {MAX_TASK_ID} bytes"
            return None, None, refusal or Decision.refusal(reason, code="site.unencodable")
        return invocation.site.digest(actor.name), task_id, refusal
    except (AgentguardError, UnicodeError):
        reason = "a name of the call's thread, turn or task holds text that can't be written down"
        return None, None, refusal or Decision.refusal(reason, code="site.unencodable")


def _request_key(
    actor: Actor,
    authority: Authority,
    invocation: Invocation,
    place: _Place,
    arguments: Arguments,
) -> str:
    """Name the place (64 hex digits) of a request for the call's approval.

    The place is the call's site. Where no framework names the site in the same way when the call
    is made again, the place is derived from the call itself. Two equal calls then wait for one
    answer, which lets one of them run.
    """
    if invocation.site.is_stable and place.call_site is not None:
        return place.call_site
    return request_key(
        agent=actor.name,
        principal=authority.principal,
        actors=authority.actors,
        tool_digest=invocation.tool.digest,
        arguments=arguments.encoded,
        resource=place.resource,
        task_id=place.task_id,
    )


def _stored_request(
    ports: Ports, key: str
) -> Generator[Effect, Any, tuple[StoredRequest | None, Decision | None]]:
    """Return the request for the call's approval; requests that can't be read refuse the call."""
    try:
        return ((yield Do(ports.approvals.read, key)) if ports.approvals.has(key) else None), None
    except Exception as error:  # noqa: BLE001  the store is a port: any failure of it denies
        return None, Decision.of_exception(error, "storage.failed", "approvals can't be read")


def _facts_input(
    actor: Actor, authority: Authority, task_id: str | None, arguments: Arguments
) -> FactsInput:
    return FactsInput(
        orjson.loads(arguments.encoded),  # a copy of the application's own
        agent=actor.name,
        agent_id=actor.uri,
        principal=authority.principal,
        task_id=task_id,
    )


def _looked_up(
    look_up: FactsFunction, facts_input: FactsInput
) -> Generator[Effect, Any, tuple[Mapping[str, Any], Decision | None, BaseException | None]]:
    """Return what a look-up finds out about the call, or the refusal and what interrupted it."""
    try:
        facts = facts_in((yield LookUp(look_up, facts_input)))
        if isinstance(facts, Mapping):
            return dict(facts), None, None
    except ReportedFailure as error:
        reason = f"{_FAILED} ({type(error).__name__})"
        return {}, Decision.refusal(reason, code="facts.failed"), None
    except Exception as error:  # noqa: BLE001  the application's look-up may raise anything: it denies
        return {}, Decision.failure("facts.failed", _FAILED, error), None
    except BaseException as error:  # noqa: BLE001  raised again once the refusal is on record
        return {}, interrupted(error), error
    reason = f"the look-up of facts returned a {type(facts).__name__}, not a mapping"
    return {}, Decision.refusal(reason, code="facts.invalid"), None


def interrupted(error: BaseException) -> Decision:
    """Refuse a call that was interrupted (cancelled, Ctrl-C, sys.exit) before the decision."""
    reason = f"the call was interrupted before it was decided ({type(error).__name__})"
    return Decision.refusal(reason, code="call.interrupted")
