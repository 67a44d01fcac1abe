"""What an answer tells a client: whole texts for what is the client's matter, else the code alone.

A client passes errors and reasons on to its users, and the text of an error may name the server's
files and its agents. So a text leaves the server only under a code that is known as harmless; any
other code comes with a fixed text. Who looks after the server finds the whole text in its log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from agentguard.call.reason_codes import CODES
from agentguard.wire.frame import Frame

_LOGGER = logging.getLogger("agentguard")

_TOLD: Final = frozenset(
    """
    agent.mismatch agent.refused agent.unguarded approval.failed approval.limit
    approval.malformed approval.not_yet_valid approval.refused approval.unavailable approval.unknown
    approval.unsigned arguments.rounds arguments.unrepeatable base64.malformed call.ambiguous
    call.settled call.unknown chain.credential chain.malformed delegation.delegatee delegation.ended
    delegation.holder delegation.mismatch delegation.missing delegation.refused delegation.revoked
    domain.frozen dsse.malformed dsse.type encode.unencodable entry.too_large facts.conflict
    facts.failed facts.invalid facts.too_large facts.undeclared frame.malformed frame.sender
    frame.too_large hop.audience hop.calls hop.depth hop.expired hop.expiry hop.issuer hop.key
    hop.malformed hop.name hop.not_yet_valid hop.parent hop.repeated hop.scope hop.subject hop.task
    invalid_scope journal.cut_short journal.in_doubt json.depth json.duplicate_key json.malformed
    json.not_canonical json.not_object json.number json.size json.surrogate json.unencodable
    json.utf8 jws.algorithm jws.header jws.malformed jws.size jws.type jwt.actor jwt.algorithm
    jwt.audience jwt.bound jwt.expired jwt.header jwt.issuer jwt.key jwt.lifetime jwt.malformed
    jwt.not_yet_valid jwt.signature jwt.subject jwt.type node.cached principal.assurance
    principal.malformed principal.refused principal.unknown proof.audience proof.refused
    redaction.malformed request.altered request.ambiguous request.ended request.unknown
    scope.malformed secret.exposed secret.refused secret.unknown server.busy server.draining
    server.failed server.launch server.protocol server.remote server.restarted server.stranger
    server.token server.unknown signature.invalid signature.missing site.unencodable
    statement.malformed statement.mismatch tool.async tool.changed tool.error tool.failed
    tool.generator tool.guarded tool.in_doubt tool.invalid tool.lost tool.timeout tool.uncheckable
    tool.unconfigured tool.unguardable tool.unguarded tool.unlisted tool.unpinned tool.unreachable
    """.split()  # noqa: SIM905  a list of a hundred lines reads worse
)
"""Codes whose texts are about what the client has sent, or may see.

A client is also told the text of each refusal whose reason a model reads (``reason_codes.py``).
"""

_TEXTS: Final = {"agent.unknown": "the guard server has no such agent: correct the name"}
_ANSWERS: Final = ("error", "decision", "reports", "status", "ended")


def disclosed(reply: Frame, may_log: Callable[[], bool]) -> Frame:
    """Return an answer with a fixed text for each code that is the server's own matter.

    ``may_log`` is asked where there is a text for the log. The signed statement of an evaluation
    has the reasons, too, and stays here with them.
    """
    header = {
        key: _disclosed(value, may_log) if key in _ANSWERS else value
        for key, value in reply.header.items()
    }
    if header.get("step") == "evaluation" and header["decision"] != reply.header["decision"]:
        return Frame({**header, "entry": None}, [b"", b""])
    return Frame(header, reply.blobs)


def _disclosed(value: Any, may_log: Callable[[], bool]) -> Any:
    if isinstance(value, list | tuple):
        return [_disclosed(one, may_log) for one in value]
    if not isinstance(value, Mapping):
        return value
    if "status" in value:  # what became of a request, in an error and in a list
        status = _disclosed(value["status"], may_log)
        if "message" in value and status != value["status"]:  # the message says it, too
            value = {**value, "message": status["reason"]}
        value = {**value, "status": status}
    text = _text_for(value.get("code"))
    for key in ("message", "reasons", "reason"):
        if text is not None and value.get(key):
            if may_log():
                _LOGGER.warning("a client was told of %s: %s", value["code"], value[key])
            return {**value, key: [text] if key == "reasons" else text}
    return value


def _text_for(code: object) -> str | None:
    """Return what a client is told instead; None where the text is the client's matter."""
    if not isinstance(code, str) or not code:  # a decision without a code refuses nothing
        return None
    if code in _TOLD or (code in CODES and CODES[code].party == "agent"):
        return None
    noun = code.partition(".")[0]
    fixed = f"the guard server does not tell its clients why ({noun}): its log has the whole text"
    return _TEXTS.get(code, fixed)
