"""The requests of a client about guarded calls: authorize, facts, secret, proof, outcome and more.

Each function takes the session, the header of a frame and its blobs, and returns the frame that
answers. What a client sends is checked here, and every digest is computed from the bytes that the
client has sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from agentguard.approvals.nested import NestedCalls
from agentguard.call.arguments import Arguments
from agentguard.call.invocation import CallSite, Invocation
from agentguard.call.options import CallOptions
from agentguard.call.releases import Releases
from agentguard.errors import (
    AgentguardError,
    ArgumentsError,
    DecodeError,
    DelegationError,
    ProofError,
    SecretError,
)
from agentguard.flow import endings
from agentguard.flow.authorize import authorize as flow_authorize
from agentguard.flow.drive import Flow
from agentguard.flow.effects import NotRun
from agentguard.flow.endings import Ending
from agentguard.flow.guarded_call import evaluate, guarded_call
from agentguard.flow.prepare import CallInput
from agentguard.flow.reported import ReportedError, ReportedResult
from agentguard.server.rights import require_agent
from agentguard.server.served_call import (
    TYPE_NAME,
    CallRequest,
    ClientCodec,
    ServedCall,
    failure_named,
    stand_in,
)
from agentguard.server.session import OutdatedError, Session
from agentguard.server.tools import RegisteredTool
from agentguard.signing import canonical
from agentguard.wire import values
from agentguard.wire.frame import Frame
from agentguard.wire.reports import Recorder

Header = Mapping[str, Any]
Blobs = Sequence[bytes]
Steps = Callable[[CallInput], Flow[Any]]
"""Returns the steps of a call, or those that lead to the decision on the call alone."""

_ID: Final = re.compile(r"[0-9a-f]{32}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f-]{55}")
_ENDINGS: Final[Mapping[str, Ending]] = {
    name: getattr(endings, name)
    for name in (
        "SUSPENDED",
        "HANDED_ON",
        "CUT_SHORT",
        "FAILED",
        "UNFINISHED",
        "DONE",
        "AWAITING",
    )
}
"""The endings that a client may report; the others are the server's own."""

_UNENCODABLE: Final = CallSite("\ud800")
"""The site of a call whose own site, or whose task, has no UTF-8 form: such a call is refused."""

_NOWHERE: Final = "/\0"
"""A folder that no file system has."""

_CODEC: Final = ClientCodec()

_MOST_FACTS: Final = 2 << 20
"""The most bytes of the facts that a client has looked up for a call."""

_LONGEST_NAME: Final = 256
"""The most characters of the name of a secret that a client asks for."""

_LONGEST: Final = canonical.MAX_BYTES // 2
"""The most bytes of what a client says of a call: so much has room in an entry of the log."""


def authorize(session: Session, header: Header, blobs: Blobs) -> Frame:
    """Begin a guarded call, up to the tool; a request that comes again gets the same answer."""
    return _begin(session, header, blobs, guarded_call)


def evaluation(session: Session, header: Header, blobs: Blobs) -> Frame:
    """Return the policy's decision about a call, signed and recorded; the call is not made."""
    instance = session.agent(header.get("agent"))
    steps = partial(flow_authorize, issuer=instance.issuer, asked_by=session.client.name or None)
    return _begin(session, header, blobs, steps)


def evaluate_call(session: Session, header: Header, blobs: Blobs) -> Frame:
    """Return the decision that a call would get."""
    return _begin(session, header, blobs, evaluate)


def _begin(session: Session, header: Header, blobs: Blobs, steps: Steps) -> Frame:
    request_id = _request_id(header)
    known = session.add_call(request_id, call := _call(session, header, blobs, steps))
    call = known or call
    with call.lock:  # two requests with one id may come at once, on two connections
        session.require_no_end()  # whoever has ended the session meanwhile has left this call out
        reply = call.start()
    session.settle(request_id, call)
    return reply


def _call(session: Session, header: Header, blobs: Blobs, steps: Steps) -> ServedCall:
    said = _encoded(header)
    instance = session.agent(header.get("agent"))
    ports, tool = instance.ports, session.tool(header.get("tool"))
    if tool.ports is not ports:  # the session follows another configuration just now
        raise OutdatedError
    invocation = _invocation(session, tool, instance.actor.name, header, blobs)
    inside = values.text_or_none(header.get("inside"))
    outer = None if inside is None else session.made(inside)
    if outer is not None:
        invocation = replace(invocation, inside=inside)
    redactions = ports.redactions_of(invocation.tool.name)
    is_traced = header.get("is_traced") is True
    recorder, around = Recorder(redactions, is_traced=is_traced), NestedCalls()
    named = header.get("delegation")
    delegation = session.delegation(named)
    may_show = partial(session.may_show, named=named)
    is_refused = isinstance(delegation, DelegationError)  # by the client's word
    options = CallOptions(
        codec=_CODEC if header.get("has_codec") is True else None,
        reentrant=header.get("reentrant") is True,
        asks_people=header.get("asks_people") is not False,
    )
    call = CallInput(
        instance.actor,
        ports,
        invocation,
        recorder,
        instance.delegation_source(delegation, may_show if is_refused else None),
        options,
        NestedCalls(around),
        None if outer is None else outer.releases,
    )
    request = CallRequest(
        agent=instance.actor.name,
        is_traced=is_traced,
        folder=None if session.isolation == "remote" else _folder(header),
        sha256=canonical.sha256_hex(said + b"".join(blobs)),
        size=len(said) + sum(map(len, blobs)),
    )
    return ServedCall(steps(call), recorder, around, session.lend, request)


def _invocation(
    session: Session, tool: RegisteredTool, agent: str, header: Header, blobs: Blobs
) -> Invocation:
    spec, refusal = tool.spec, header.get("refusal")
    is_pinned = session.limits.pin_tools
    refused = session.pins.refusal(agent, spec.name, tool.pin) if is_pinned else None
    if refusal is not None and refused is None:
        refused = values.read_decision(refusal)
        if refused.outcome != "deny":
            raise DecodeError("a refusal denies", code="frame.malformed")
    if header.get("caller") is not None:  # whom a guarded server at the client has verified
        spec = replace(spec, caller=values.read_caller(header["caller"]), facts_by_client=True)
    return Invocation(
        spec,
        _arguments(header, blobs),
        _UNENCODABLE if header.get("site") is None else values.read_site(header["site"]),
        values.text_or_none(header.get("task_id")),
        refusal=refused,
    )


def _arguments(header: Header, blobs: Blobs) -> Arguments | ArgumentsError:
    """Return the arguments; their bytes must be canonical, for the policy reads what is signed."""
    error = header.get("error")
    if error is not None:
        read = values.read_error(error)
        return ArgumentsError(str(read), code=read.code)
    (encoded,) = _expected(blobs, 1)
    unbound = values.texts(header.get("unbound", []))
    try:
        members = canonical.loads_canonical(encoded)
    except AgentguardError as refused:
        message = "the arguments are no canonical JSON"
        raise DecodeError(message, code="frame.malformed") from refused
    if not isinstance(members, dict):
        raise DecodeError("the arguments are no object", code="frame.malformed")
    try:
        return Arguments(MappingProxyType(members), encoded, unbound)
    except ArgumentsError as refused:  # the refusal is on record
        return refused


def _folder(header: Header) -> str | None:
    """Return the client's working directory; without one, relative paths lead nowhere."""
    folder = header.get("folder")
    return folder if isinstance(folder, str) and folder.startswith("/") else _NOWHERE


def span(session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Go on with the span that the client has begun."""
    return _go_on(session, header, lambda call: call.take_span(_traceparent(header)))


def facts(session: Session, header: Header, blobs: Blobs) -> Frame:
    """Go on with what the client's look-up of facts has returned or raised."""

    def go_on(call: ServedCall) -> Frame:
        call.require_look_up()  # first: nobody reads the facts of a call that waits for none
        failure = header.get("failure")
        if failure is None:
            return call.take_facts(_facts(session, call, header, blobs))
        interrupts = header.get("interrupts") is True
        return call.fail_facts(failure_named(values.text(failure), interrupts=interrupts))

    return _go_on(session, header, go_on)


def _go_on(session: Session, header: Header, step: Callable[[ServedCall], Frame]) -> Frame:
    """Take a step of a call of the session; return where the call stands then."""
    _encoded(header)
    request_id = _request_id(header)
    call = session.call(request_id)
    with call.lock:
        reply = step(call)
    session.settle(request_id, call)
    return reply


def _facts(session: Session, call: ServedCall, header: Header, blobs: Blobs) -> Any:
    """Return the facts; a value of a type with the right name stands for what has no JSON form."""
    kind, types = header.get("type"), header.get("types")
    if kind is not None:
        return stand_in(values.text(kind))
    (encoded,) = _expected(blobs, 1)
    if len(encoded) > _MOST_FACTS:
        message = (
            f"the facts take {len(encoded)} bytes, and the guard server takes {_MOST_FACTS} at "
            "most: return what the policy reads, and no more"
        )
        raise DecodeError(message, code="frame.too_large")
    session.hold_facts(call, len(encoded))
    found = canonical.loads(encoded, limit=_MOST_FACTS)
    if not isinstance(found, dict) or not isinstance(types, dict):
        raise DecodeError("not facts", code="frame.malformed")
    return {**found, **{name: stand_in(values.text(kind)) for name, kind in types.items()}}


def outcome(session: Session, header: Header, blobs: Blobs) -> Frame:
    """End a call: the tool has returned or raised, or has not run."""

    def end(call: ServedCall) -> Frame:
        if not call.runs and call.reply is not None:  # the report has come before
            return call.reply
        return _end(call, header, blobs)

    return _go_on(session, header, end)


def _end(call: ServedCall, header: Header, blobs: Blobs) -> Frame:
    if header.get("not_run") is not None:
        return call.fail(NotRun(values.read_decision(header["not_run"])))
    ending = _ENDINGS.get(values.text(header.get("ending")))
    type_name = values.text(header.get("type"))
    if ending is None or not TYPE_NAME.fullmatch(type_name):
        raise DecodeError("not an end of a call", code="frame.malformed")
    if ending.status != "ok":
        return call.fail(ReportedError(ending, type_name))
    encoded, journal = _expected(blobs, 2)
    if encoded:
        canonical.loads_canonical(encoded)  # raises DecodeError
    has_journal = header.get("has_journal") is True
    return call.finish(
        ReportedResult(ending, type_name, encoded or None, journal if has_journal else None)
    )


def secret(session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Release a secret to a call whose tool runs; raises ``SecretError``."""
    name = values.text(header.get("name"))
    if len(name) > _LONGEST_NAME:  # the server's log has the name of a secret that is refused
        message = f"no secret has a name of more than {_LONGEST_NAME} characters"
        raise SecretError(message, code="secret.unknown")
    releases = _releases(session, header)
    if releases is None:
        message = f"the secret {name} is for a running call, and this call does not run"
        raise SecretError(message, code="secret.refused")
    return Frame({}, [releases.release(name).encode()])


def proof(session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Prove a request that a running tool makes; raises ``ProofError``.

    The key of the instance signs, and stays in the server.
    """
    about = (values.text(header.get(name)) for name in ("method", "url", "body_sha256"))
    made = _provable(session, header).prove(*about)
    return Frame(values.proof(made), [made.chain])


def call_proof(session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Prove an MCP request that a running tool sends; the twin of ``proof``."""
    about = (values.text(header.get(name)) for name in ("audience", "method", "params_sha256"))
    made = _provable(session, header).prove_call(*about)
    return Frame(values.proof(made), [made.chain])


def receipt(session: Session, header: Header, _blobs: Blobs) -> Frame:
    """Put the receipt that a running tool has got on record; raises ``ProofError``."""
    about = tuple(values.text(header.get(name)) for name in ("proof_sha256", "receipt", "key_id"))
    if "" in about:
        raise DecodeError(
            "a receipt, its key and the hash of its proof are not empty", code="frame.malformed"
        )
    _provable(session, header).note_receipt(*about)
    return Frame({})


def _provable(session: Session, header: Header) -> Releases:
    """Return the releases of a call whose tool runs; raises ``ProofError``."""
    releases = _releases(session, header)
    if releases is None:
        message = "a proof is for a request of a running call, and this call does not run"
        raise ProofError(message)
    return releases


def _releases(session: Session, header: Header) -> Releases | None:
    """Return the releases of a call whose tool runs, None for another call.

    Their warnings count against the client's share. Raises ``ConfigError`` (``agent.refused``)
    where a reload has taken the agent from the client meanwhile.
    """
    call = session.call(_request_id(header))
    require_agent(session.client, call.request.agent)
    if not call.runs or call.releases is None:
        return None
    call.releases.limit_warnings(session.share.may_warn)
    return call.releases


def withdraw(session: Session, header: Header, _blobs: Blobs) -> Frame:
    """End a call whose client was interrupted while it waited for the authorization."""
    return _go_on(session, header, ServedCall.withdraw)


def _encoded(header: Header) -> bytes:
    """Return the JSON of what a client says of a call; raises ``DecodeError`` for too much."""
    said = values.encoded(header)
    if len(said) > _LONGEST:
        message = f"what a client says of a call takes more than {_LONGEST} bytes"
        raise DecodeError(message, code="frame.too_large")
    return said


def _request_id(header: Header) -> str:
    request_id = values.text(header.get("request_id"))
    if not _ID.fullmatch(request_id):
        raise DecodeError("a request's id is 32 hex digits", code="frame.malformed")
    return request_id


def _traceparent(header: Header) -> str | None:
    """Return the client's span; a text that is none is left out."""
    text = header.get("traceparent")
    return text if isinstance(text, str) and _TRACEPARENT.fullmatch(text) else None


def _expected(blobs: Blobs, number: int) -> Blobs:
    if len(blobs) != number:
        raise DecodeError(f"expected {number} blobs", code="frame.malformed")
    return blobs
