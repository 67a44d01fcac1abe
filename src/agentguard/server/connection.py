"""One connection of a client: the greeting, and then request after request, in one thread.

A request that is well formed gets an answer, which may be an error. Bytes that are no frame, or a
message of another user, end the connection: nothing more can be understood on it.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Final

from agentguard.errors import AgentguardError, DecodeError, EncodeError, ServerError
from agentguard.guard.embedded import Embedded
from agentguard.server.disclosure import disclosed
from agentguard.server.launch import Channels
from agentguard.server.peer import Peer
from agentguard.server.requests import OPERATIONS, Operation
from agentguard.server.rights import stranger, who
from agentguard.server.session import OutdatedError, Session
from agentguard.server.sessions import Sessions
from agentguard.server.share import LARGE
from agentguard.wire import frame, values
from agentguard.wire.frame import PROTOCOL, Frame
from agentguard.wire.peer import ROOT
from agentguard.wire.stream import EndedError, Stream

_LOGGER = logging.getLogger("agentguard")

GREETING: Final = 5.0
"""Seconds within which a client has to begin its greeting."""

_LONGEST_GREETING: Final = 64 << 10
"""The most bytes of a greeting: so much may come before the client is known."""

_PAUSE: Final = 0.001
"""Seconds until a request is carried out again whose session follows another configuration."""

_LONGEST_PAUSE: Final = 10.0
"""Seconds that a session has to follow another configuration."""

_ID: Final = re.compile(r"[0-9a-f]{32}")


def refuse(accepted: socket.socket, error: ServerError) -> None:
    """Say why a user gets no connection; before TLS, nothing can be said to another machine."""
    with suppress(OSError):
        if accepted.family == socket.AF_UNIX:
            accepted.settimeout(0)
            reply = disclosed(Frame({"error": values.error(error)}), lambda: False)
            accepted.sendall(frame.encode(reply))
    accepted.close()


def serve(
    stream: Stream, sessions: Sessions, channels: Channels, parts: Embedded, peer: Peer
) -> None:
    """Serve one connection until the client ends it, or its token or certificate ends.

    A request that has come as a whole before that end is still carried out. The last word of a
    server that ends is how many reports it has taken since its last answer on the connection.
    """
    session: Session | None = None
    taken = 0
    try:
        stream.write(Frame({"protocol": PROTOCOL}))
        session = _greet(stream, sessions, channels, parts, peer)
        while session is not None and not session.has_ended:
            size, header = stream.begin(within=peer.time_left())
            with _large(session, is_large=size > LARGE):
                request = stream.rest(size, header)
                peer.time_left()
                known = OPERATIONS.get(str(request.header.get("op")))
                is_large = size <= LARGE and known is not None and known.is_costly
                with _large(session, is_large=is_large):
                    _exchange(stream, parts, session, request, sessions)
                taken = taken + 1 if request.header.get("quiet") is True else 0
    except (EndedError, OSError):
        pass
    except DecodeError as error:
        if peer.share.may_warn():
            _LOGGER.warning("a connection of a client is closed: %s [%s]", error, error.code)
    finally:
        if session is not None and sessions.is_draining:
            with suppress(OSError):
                stream.write(Frame({"taken": taken}))
        stream.close()
        if session is not None:
            sessions.leave(session)


def _large(session: Session, *, is_large: bool) -> AbstractContextManager[object]:
    """Return what is held while a large frame is in memory, or a costly request is at work."""
    return session.share.large if is_large else nullcontext()


def _exchange(
    stream: Stream, parts: Embedded, session: Session, request: Frame, sessions: Sessions
) -> None:
    """Carry a request out, and write the answer, unless the request wants none."""
    if session.has_ended:
        return
    reply = _answer(parts, session, request, sessions)
    sessions.figures.count(reply)
    if request.header.get("quiet") is not True:
        with session.answering(request.header.get("request_id"), reply):
            _write(stream, session, reply)
    elif "error" in reply.header and session.share.may_warn():
        _warn_of_refusal(session, request.header, values.read_error(reply.header["error"]))


def _warn_of_refusal(session: Session, about: Mapping[str, Any], error: AgentguardError) -> None:
    """Log that a report of a client does not count, with the id that the log has of its call."""
    call = str(about.get("call"))
    which = f"call {call}" if _ID.fullmatch(call) else "a call"  # the text is the client's
    message = "the report of %s about %s was refused: %s [%s]"
    _LOGGER.warning(message, who(session.client), which, error, error.code)


def _greet(
    stream: Stream, sessions: Sessions, channels: Channels, parts: Embedded, peer: Peer
) -> Session | None:
    """Answer the client's first frame; return None where no session begins.

    The first frame of a launcher asks for a program's channel, and is the only one.
    """
    header = stream.read(within=GREETING, at_most=_LONGEST_GREETING).header
    try:
        if header.get("op") == "launch":
            sessions.require_time()
            channels.launch(header, peer, stream, parts.require_agent)
            return None
        _require_hello(header)
        handle = values.text_or_none(header.get("session"))
        session = sessions.join(handle, peer, header.get("token"))
    except AgentguardError as error:
        reply = Frame({"error": values.error(error)})
        is_launcher = peer.client is None and peer.uid in (ROOT, os.getuid())
        stream.write(reply if is_launcher else disclosed(reply, peer.share.may_warn))
        return None
    try:
        stream.write(_greeting(session, parts, peer))
    except BaseException:
        sessions.leave(session)  # or a client that has gone would have a connection for ever
        raise
    return session


def _greeting(session: Session, parts: Embedded, peer: Peer) -> Frame:
    """Return what a client learns when its session begins, or goes on."""
    place = parts.policy_place
    answer: dict[str, Any] = {
        "session": session.handle,
        "client": session.client.name,
        "isolation": session.isolation,
        "policy": [place.place, place.url],
        "roster": parts.roster.as_json(),
        "trust": parts.trust.dumps().decode(),
        "ends_in": peer.time_left(),
    }
    return Frame(answer)


def _require_hello(header: Mapping[str, Any]) -> None:
    if header.get("op") != "hello" or header.get("protocol") != PROTOCOL:
        message = (
            f"the server speaks version {PROTOCOL} of the protocol, and the client does not: use "
            "one version of agentguard on both sides"
        )
        raise ServerError(message, code="server.protocol")


def _answer(parts: Embedded, session: Session, request: Frame, sessions: Sessions) -> Frame:
    """Return the answer to a request; every failure is an answer, too."""
    name = request.header.get("op")
    try:
        if name == "end":
            sessions.forget(session)
            parts.runtime.flush()
            return Frame({})
        if session.is_removed:
            _require_end_of_call(session, name)
        if name == "status":
            session.require_own_user("may see the status")
            return Frame(sessions.status(session))
        if name == "reload":
            session.require_own_user("may have the configuration loaded anew")
            return Frame({"changed": sessions.reload()})
        if "released" in request.header:
            session.release(request.header["released"])
        operation = _operation(name, is_draining=sessions.is_draining)
        return _carried_out(operation, parts, session, request)
    except AgentguardError as error:
        return Frame({"error": values.error(error)})
    except Exception as error:
        _LOGGER.exception("a request of a client failed in the server")
        message = f"the guard server failed ({type(error).__name__}): its log has the error"
        return Frame({"error": values.error(ServerError(message))})


def _require_end_of_call(session: Session, name: object) -> None:
    """Raise ``ServerError`` (``server.stranger``) where a removed client asks for anything else."""
    known = OPERATIONS.get(name) if isinstance(name, str) else None
    if known is None or not known.ends_call:
        raise stranger(session.client.uid)


def _carried_out(operation: Operation, parts: Embedded, session: Session, request: Frame) -> Frame:
    """Carry an operation out, once more where the session follows another configuration."""
    until = time.monotonic() + _LONGEST_PAUSE
    while True:
        try:
            return operation.step(parts, session, request.header, request.blobs)
        except OutdatedError as error:
            if time.monotonic() > until:
                message = "the guard server loads its configuration anew: wait"
                raise ServerError(message, code="server.busy") from error
            time.sleep(_PAUSE)


def _operation(name: object, *, is_draining: bool) -> Operation:
    operation = OPERATIONS.get(name) if isinstance(name, str) else None
    if operation is None:
        raise DecodeError("the server has no such operation", code="frame.malformed")
    if is_draining and not operation.when_ending:
        message = "the guard server is about to end: make the call again in a moment"
        raise ServerError(message, code="server.draining")
    return operation


def _write(stream: Stream, session: Session, reply: Frame) -> None:
    try:
        stream.write(_told(session, reply))
    except EncodeError as error:
        stream.write(_told(session, Frame({"error": values.error(error)})))


def _told(session: Session, reply: Frame) -> Frame:
    if session.looks_after_server:
        return reply
    return disclosed(reply, session.share.may_warn)
