"""The requests of a client beside its calls: agents, tools, delegations, approvals, runs.

``OPERATIONS`` has the function of each operation, and who may ask for it; ``connection.py`` calls
the functions. Which agents and principals a client may name, ``[clients]`` says: each function asks
before it acts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from agentguard.approvals.inbox import ApprovalInbox
from agentguard.approvals.request import ApprovalRequest
from agentguard.approvals.status import RequestStatus
from agentguard.call.client import Client
from agentguard.call.tool import ToolSpec
from agentguard.delegation.handle import Delegation
from agentguard.delegation.terms import Lender
from agentguard.domain.config.clients import LAUNCHED
from agentguard.errors import ApprovalError, DecodeError, DelegationError, ServerError
from agentguard.guard.embedded import Embedded
from agentguard.server import calls
from agentguard.server.calls import Blobs, Header
from agentguard.server.rights import (
    AT_SERVER,
    require_agent,
    require_principal,
    shows_tokens_of,
    who,
)
from agentguard.server.served_call import client_facts
from agentguard.server.session import OutdatedError, Session
from agentguard.server.tools import register
from agentguard.signing import canonical
from agentguard.signing.canonical import is_integer
from agentguard.signing.dsse import Envelope
from agentguard.store.approvals import LoggedApprovals
from agentguard.wire import values
from agentguard.wire.frame import MAX_BLOBS, Frame

_LOGGER = logging.getLogger("agentguard")

Step = Callable[[Embedded, Session, Header, Blobs], Frame]


class Operation(NamedTuple):
    """An operation of the protocol: what carries a request out, and when it is carried out.

    ``ends_call`` says that the operation only ends or goes on with a call that has begun: a client
    that a reload has removed may ask for it. ``when_ending`` says that a server which is about to
    end still carries it out, for calls under way. ``is_costly`` says that the answer may be large,
    or that the whole log is read.
    """

    step: Step
    ends_call: bool = False
    when_ending: bool = False
    is_costly: bool = False


_TERMS: Final = (
    "scope",
    "via",
    "task_id",
    "expires_in",
    "max_depth",
    "max_calls",
    "audience",
)
_DONE: Final = Frame({})
_MOST_ENDED: Final = 1000
_MOST_NAMES: Final = 256
_LONGEST_NAME: Final = 1024


# --- agents, tools, delegations ---------------------------------------------------------------


def agent(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Return an agent's configuration, and make no instance."""
    name = values.text(header.get("name"))
    require_agent(session.client, name)
    parts.require_agent(name)
    return Frame({"agent": values.agent(parts.agent(name))})


def instance(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Make an instance of an agent, whose key stays here; raises ``OutdatedError``, too."""
    ports = session.ports  # first: a right that a reload takes meanwhile does not count
    if ports is not parts.runtime.current_ports():
        raise OutdatedError
    name = values.text(header.get("name"))
    require_agent(session.client, name)
    parts.require_agent(name)
    client = Client(session.client.name, session.isolation)
    made = parts.instance(parts.agent(name), client, session)
    return Frame({"name": session.add_agent(made, ports), "uri": made.actor.uri})


def tool(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Apply the configuration to a tool, and keep the tool; raises ``OutdatedError``, too."""
    declared = values.read_tool(header.get("tool"), client_facts)
    _require_modest(declared)
    registered = register(declared, parts)
    configured = values.tool(registered.spec)
    name = session.add_tool(registered, size=len(values.encoded(configured)))
    return Frame({"tool": configured, "name": name})


def _require_modest(spec: ToolSpec) -> None:
    """Raise ``DecodeError`` for names in a number or of a length that no tool of a program has."""
    given = (*spec.attributes, *spec.attributes.values(), *(spec.gives or ()))
    names = (spec.name, *spec.requires, *given)
    if len(names) > _MOST_NAMES or max(map(len, names)) > _LONGEST_NAME:
        message = (
            f"a tool's name, scopes, attributes and facts are {_MOST_NAMES} names at most, of at "
            f"most {_LONGEST_NAME} characters"
        )
        raise DecodeError(message, code="frame.too_large")


def check_names(parts: Embedded, _session: Session, _header: Header, _blobs: Blobs) -> Frame:
    """Log each name in the configuration that looks misspelt."""
    parts.tools.check_names()
    return _DONE


def delegate(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Begin a delegation of a principal who comes with a token, or whom the client vouches for."""
    said = header.get
    lender: Any = Lender(said("subject"), said("subject_token"), said("via_token"))
    if lender.token is None:
        require_principal(session.client, values.text(lender.name))
    terms: Any = {name: header.get(name) for name in _TERMS}
    if terms["scope"] is not None:  # an empty table would pass for a scope of nothing
        values.texts(terms["scope"])
    try:
        begun = parts.delegations.begin(lender, **terms)  # which checks each of them
    except ServerError as error:  # its message may name files of the server
        if session.share.may_warn():
            _LOGGER.warning("a token can't be verified: %s (%s)", error, error.code)
        message = "the guard server can't get the keys of the token's issuer: its log says why"
        raise ServerError(message, code=error.code) from error
    return _lent(session, begun)


def resume(parts: Embedded, session: Session, header: Header, blobs: Blobs) -> Frame:
    """Take a stored delegation up, of a principal whom the client vouches for.

    The client need not vouch where it shows the tokens with which the delegation began.
    """
    if len(blobs) != 1:
        raise DecodeError("expected a chain", code="frame.malformed")
    may_be_revoked = header.get("may_be_revoked") is True
    take = parts.delegations.take_up if may_be_revoked else parts.delegations.resume
    taken = take(blobs[0])
    if not shows_tokens_of(taken.chain.root, header):
        require_principal(session.client, taken.principal)
    return _lent(session, taken)


def _lent(session: Session, delegation: Delegation) -> Frame:
    described, _blobs = session.lend(delegation)
    return Frame(described, [canonical.dumps(delegation.chain.as_json())])


def chain(_parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Return a delegation of this session once more."""
    return _lent(session, session.lent(header.get("id")))


def access_token(_parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Return the access token of a delegation, and the chain beside the token."""
    made = session.agent(header.get("agent"))
    issued = made.access_token(session.delegation(header.get("delegation")))
    if issued is None:
        raise DelegationError("no delegation is given", code="delegation.missing")
    return Frame({"token": issued.token}, [issued.chain])


def accept_tool(_parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Forget the pin of an agent's tool, for the server's own user alone."""
    session.require_own_user("may accept a changed tool")
    agent, name = values.text(header.get("agent")), values.text(header.get("tool"))
    return Frame({"accepted": session.pins.accept(agent, name)})


def flush(parts: Embedded, _session: Session, _header: Header, _blobs: Blobs) -> Frame:
    """Make the outcomes so far durable."""
    parts.runtime.flush()
    return _DONE


# --- approvals --------------------------------------------------------------------------------


def pending(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Return the requests of the client's agents, or all where the client sees all.

    An answer has the oldest ones after the place ``after``, as many as a frame has blobs.
    """
    place: Any = header.get("after")
    after = values.reads(
        "place", lambda: None if place is None else (int(place[0]), values.text(place[1]))
    )
    parts.runtime.end_expired()
    found = [
        (key, request)
        for key, request in parts.requests().pending()
        if _shows(session, request.agent_name)
        and (after is None or (request.requested_at, request.request_id) > after)
    ]
    if after is not None or len(found) > MAX_BLOBS:  # in the order in which the next place counts
        found.sort(key=lambda item: (item[1].requested_at, item[1].request_id))
    page = found[:MAX_BLOBS]
    keys, are_all = [key for key, _request in page], len(page) == len(found)
    return Frame({"keys": keys, "are_all": are_all}, [one.dumps() for _key, one in page])


def read_request(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Return the request under a key, with its answers."""
    stored = parts.requests().read(_key(header))
    if stored is None or not _shows(session, stored.request.agent_name):
        return Frame({"request": None})
    answers = [envelope.as_json() for envelope in stored.answers]
    request = stored.request.dumps().decode()
    return Frame({"request": request, "answers": answers, "altered": stored.altered})


def altered(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Return the ids of the requests that somebody has changed."""
    now = header.get("now")
    if type(now) is not int:
        raise DecodeError("expected a time", code="frame.malformed")
    if not (session.client.answers or session.client.sees_requests):
        return Frame({"altered": []})  # whose such a request is, nobody knows
    return Frame({"altered": parts.requests().altered(now)})


def refusal(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Return why the call of a request can't run now."""
    request, requests = _request(session, header), parts.requests()
    if not _waits(request, requests):  # what is revoked, and of whom, is nobody's to try out
        raise _unknown(request)
    return Frame({"refusal": requests.refusal(request)})


def answer(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Store a signed answer of a person; the signature says whose answer it is."""
    envelope = Envelope.parse(header.get("answer"))
    _inbox(parts, session).accept(_request(session, header), envelope)
    return _DONE


def vouch(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Answer by the word of a client that may answer, or check whether the answer would count."""
    if not session.client.answers:
        message = (
            f"the word of {who(session.client)} does not count for approvals: sign the answer, or "
            f"set answers = true in the client's table of [clients] {AT_SERVER}"
        )
        raise ApprovalError(message, code="approval.refused")
    request, verdict = _request(session, header), header.get("verdict")
    if verdict not in ("approve", "reject"):
        raise DecodeError("not a verdict", code="frame.malformed")
    principal = values.text(header.get("principal"))
    if header.get("only_checks") is True:
        _inbox(parts, session).check(request, verdict, principal=principal)
        return Frame({"answer": None})
    note = values.text(header.get("note"))
    given = _inbox(parts, session).vouch(request, verdict, principal=principal, note=note)
    return Frame({"answer": given.envelope.as_json()})


def withdraw_request(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Withdraw a request whose call nobody will make any more."""
    request, requests = _request(session, header), parts.requests()
    if not (session.client.answers or session.client.may_be(request.agent_name)):
        raise _unknown(request)  # whoever only sees requests withdraws none
    if not _waits(request, requests) and _past(parts, session, request.request_id) is None:
        raise _unknown(request)  # of another agent, say
    return Frame({"withdrawn": requests.withdraw(request)})


def history(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Return what became of a request that the client sees."""
    status = _past(parts, session, _named(header, "request_id"))
    return Frame({"status": None if status is None else values.status(status)})


def ended(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Return the newest requests that are over, of the agents whose requests the client sees."""
    most = header.get("most")
    if not is_integer(most) or not 0 < most <= _MOST_ENDED:
        raise DecodeError(f"expected a number from 1 to {_MOST_ENDED}", code="frame.malformed")
    found = _inbox(parts, session).ended(most=most)
    return Frame({"ended": [values.past_request(one) for one in found]})


def _past(parts: Embedded, session: Session, request_id: str) -> RequestStatus | None:
    """Return what became of a request, None for one that the client does not see."""
    return parts.runtime.history(partial(_shows, session)).status(request_id)


def _inbox(parts: Embedded, session: Session) -> ApprovalInbox:
    """Return the inbox, whose errors tell the client nothing of another client's requests."""
    return parts.runtime.inbox(partial(_shows, session))


def _waits(request: ApprovalRequest, requests: LoggedApprovals) -> bool:
    """Whether the store has this very request: a client can write one with another's id."""
    stored = [one for _key, one in requests.pending() if one.request_id == request.request_id]
    return stored == [request]


def _request(session: Session, header: Header) -> ApprovalRequest:
    request = ApprovalRequest.loads(values.text(header.get("request")).encode())
    if not _shows(session, request.agent_name):
        raise _unknown(request)
    return request


def _unknown(request: ApprovalRequest) -> ApprovalError:
    message = f"no request {request.request_id} waits: see agentguard approvals list"
    return ApprovalError(message, code="request.unknown")


def _key(header: Header) -> str:
    """Return the key of a request in the store, which is a digest and no path of a file."""
    key = values.text(header.get("key"))
    if not canonical.is_sha256(key):
        raise DecodeError("the key of a request is 64 hex digits", code="frame.malformed")
    return key


def _named(header: Header, member: str) -> str:
    """Return a name in a request, which is not empty."""
    name = values.text(header.get(member))
    if not name:
        raise DecodeError(f"{member} is empty, and names nothing", code="frame.malformed")
    return name


def _shows(session: Session, agent: str) -> bool:
    """Whether the client sees the requests of an agent."""
    return session.client.may_see_requests_of(agent)


# --- runs -------------------------------------------------------------------------------------


def read_run(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Return an adapter's record of a run."""
    data = parts.runs.read(_run_name(session, header))
    return Frame({"is_there": data is not None}, [] if data is None else [data])


def write_run(parts: Embedded, session: Session, header: Header, blobs: Blobs) -> Frame:
    """Write an adapter's record of a run; ``add`` says that no earlier record is replaced.

    An ``add`` whose answer was lost finds its own record when it comes again: not ``added``.
    """
    if len(blobs) != 1:
        raise DecodeError("expected a record", code="frame.malformed")
    name = _run_name(session, header)
    if header.get("add") is True:
        return Frame({"added": parts.runs.add(name, blobs[0])})
    parts.runs.write(name, blobs[0])
    return Frame({"added": True})


def remove_run(parts: Embedded, session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Remove an adapter's record of a run."""
    parts.runs.remove(_run_name(session, header))
    return _DONE


def _run_name(session: Session, header: Header) -> str:
    """Return the name in the store: the records of one client have no name in another client.

    Programs that were started as one agent have the same records if they have the same user.
    """
    name, client = _named(header, "name"), session.client
    if client.name.startswith(LAUNCHED):
        return f"{client.name}\0{client.uid}\0{name}"
    return f"{client.name}\0{name}" if client.name else name


def _of_call(
    step: Callable[[Session, Header, Blobs], Frame],
    *,
    ends_call: bool = False,
    when_ending: bool = True,
) -> Operation:
    """Return the operation for a request of a call, which needs no part of the guard."""
    return Operation(lambda _parts, *request: step(*request), ends_call, when_ending)


OPERATIONS: Final[Mapping[str, Operation]] = {
    "authorize": _of_call(calls.authorize, when_ending=False),
    "evaluation": _of_call(calls.evaluation, when_ending=False),
    "evaluate": _of_call(calls.evaluate_call, when_ending=False),
    "span": _of_call(calls.span, ends_call=True),
    "facts": _of_call(calls.facts, ends_call=True),
    "outcome": _of_call(calls.outcome, ends_call=True),
    "withdraw": _of_call(calls.withdraw, ends_call=True),
    "secret": _of_call(calls.secret),
    "proof": _of_call(calls.proof),
    "call_proof": _of_call(calls.call_proof),
    "receipt": _of_call(calls.receipt),
    "agent": Operation(agent),
    "instance": Operation(instance),
    "tool": Operation(tool),
    "check_names": Operation(check_names),
    "accept_tool": Operation(accept_tool),
    "delegate": Operation(delegate),
    "resume": Operation(resume),
    "chain": Operation(chain, when_ending=True),
    "access_token": Operation(access_token),
    "approvals.pending": Operation(pending, is_costly=True),
    "approvals.read": Operation(read_request, is_costly=True),
    "approvals.altered": Operation(altered),
    "approvals.refusal": Operation(refusal, is_costly=True),
    "approvals.answer": Operation(answer),
    "approvals.vouch": Operation(vouch),
    "approvals.withdraw": Operation(withdraw_request, is_costly=True),
    "approvals.history": Operation(history, is_costly=True),
    "approvals.ended": Operation(ended, is_costly=True),
    "runs.read": Operation(read_run, is_costly=True),
    "runs.write": Operation(write_run, when_ending=True),
    "runs.remove": Operation(remove_run, when_ending=True),
    "flush": Operation(flush, when_ending=True),
}
"""The operations of the protocol, by the name in a frame's ``op``."""
