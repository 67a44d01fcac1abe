"""What of a request's params reaches a server, and what of that a decision covers.

A server may choose by any member of a request what it does. So each member that reaches a server is
bound to the call (policy, signature, approval, log), or is one that MCP itself reads, or the member
is dropped or the request refused. This module does no I/O, and knows no SDK.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any, Final

from agentguard import Decision

OWN: Final = "dev.agentguard/"
"""The prefix of agentguard's own keys (MCP, "General fields: _meta")."""

STANDARD: Final = "io.modelcontextprotocol/"
"""The prefix of the keys in ``_meta`` that MCP itself defines (revision 2026-07-28)."""

MODERN: Final = "2026-07-28"
"""The newest revision, in which each request stands by itself, and a call may have rounds."""

BESIDE: Final = "mcp"
"""The name under which a call binds what it brings beside its arguments: ``input.args["$mcp"]``."""

STATE: Final = "requestState"
RESPONSES: Final = "inputResponses"
ROUND: Final = frozenset({STATE, RESPONSES})
"""The members by which a call goes on in a further round ("Multi Round-Trip Requests")."""

_PAGE: Final = frozenset({"cursor"})
_NOTHING: Final[frozenset[str]] = frozenset()

PASSED: Final[Mapping[str, frozenset[str]]] = {
    "completion/complete": frozenset({"argument", "context", "ref"}),
    "initialize": frozenset({"capabilities", "clientInfo", "protocolVersion"}),
    "logging/setLevel": frozenset({"level"}),
    "ping": _NOTHING,
    "prompts/list": _PAGE,
    "resources/list": _PAGE,
    "resources/subscribe": frozenset({"uri"}),
    "resources/templates/list": _PAGE,
    "resources/unsubscribe": frozenset({"uri"}),
    "server/discover": _NOTHING,
    "subscriptions/listen": frozenset({"notifications"}),
    "tools/list": _PAGE,
}
"""The requests of a client that a gateway passes on without a decision."""

GUARDED: Final[Mapping[str, frozenset[str]]] = {
    "prompts/get": ROUND | {"arguments", "name"},
    "resources/read": ROUND | {"uri"},
    "tools/call": ROUND | {"arguments", "name"},
}
"""The requests that run code of the server: each is a guarded call."""

CLIENT_NOTICES: Final[Mapping[str, frozenset[str]]] = {
    "notifications/cancelled": frozenset({"reason", "requestId"}),
    "notifications/initialized": _NOTHING,
    "notifications/progress": frozenset({"message", "progress", "progressToken", "total"}),
    "notifications/roots/list_changed": _NOTHING,
}
"""The notices of a client that a gateway passes on."""

MEMBERS: Final[Mapping[str, frozenset[str]]] = {**PASSED, **GUARDED, **CLIENT_NOTICES}
"""The members beside ``_meta`` that the revisions 2024-11-05 to 2026-07-28 give a client's message.

What is not here does not pass: nobody knows whether a server runs code for it. Tasks are left out,
since a task goes on after its decision.
"""

_META: Final[Mapping[str, type | tuple[type, ...]]] = {
    "progressToken": (str, int),
    "traceparent": str,
    "tracestate": str,
    "baggage": str,
    f"{STANDARD}protocolVersion": str,
    f"{STANDARD}clientInfo": dict,
    f"{STANDARD}clientCapabilities": dict,
    f"{STANDARD}logLevel": str,
}
"""The keys of ``_meta`` that MCP itself reads, with their types: no call binds them."""


def unknown_member(method: str, params: Mapping[str, Any]) -> str | None:
    """Return a member that no revision gives a request of ``method``, None where there is none.

    A method that MCP does not name has any members.
    """
    known = MEMBERS.get(method)
    return None if known is None else min(params.keys() - known - {"_meta"}, default=None)


def protocol_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of ``_meta`` that MCP itself reads."""
    return {key: value for key, value in meta.items() if _is_of_protocol(key, value)}


def _is_of_protocol(key: str, value: object) -> bool:
    return isinstance(value, _META.get(key, ())) and not isinstance(value, bool)


def without_own(value: Any) -> Any:
    """Return a JSON value without the keys of agentguard's own, at every depth.

    A value that has none is returned itself. An object in an array stays there, emptied.
    """
    if isinstance(value, dict):
        kept = {key: without_own(one) for key, one in value.items() if not key.startswith(OWN)}
        is_same = len(kept) == len(value) and all(kept[key] is value[key] for key in kept)
    elif isinstance(value, list):
        items = [without_own(one) for one in value]
        is_same = all(new is old for new, old in zip(items, value, strict=True))
        return value if is_same else items
    else:
        return value
    return value if is_same else kept


def beside(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a guarded request brings beside its arguments, for ``Arguments.of(beside=...)``.

    ``params`` have no key of agentguard's own. A state is opaque, so its SHA-256 stands beside it:
    whoever approves the call may not be able to read the state.
    """
    members: dict[str, Any] = {}
    if RESPONSES in params:
        members[RESPONSES] = params[RESPONSES]
    if STATE in params:
        state = params[STATE]
        members[STATE] = state
        if isinstance(state, str):
            digest = sha256(state.encode("utf-8", "surrogatepass")).hexdigest()
            members[STATE] = {"text": state, "sha256": digest}
    meta = params.get("_meta")
    if isinstance(meta, dict):
        meta = {key: one for key, one in meta.items() if not _is_of_protocol(key, one)}
    if meta:
        members["_meta"] = meta
    return {BESIDE: members} if members else {}


def round_refusal(
    name: str, params: Mapping[str, Any], revision: object, allowed: Iterable[str], where: str
) -> Decision | None:
    """Return why a request may not go on in a further round, None where it may or does not.

    ``name`` is that of the tool, or the method behind ``mcp:``. ``revision`` is the client's.
    ``allowed`` are the patterns of the names that may, which stand at ``where``.
    """
    brought = " and ".join(sorted(ROUND & params.keys()))
    if not brought:
        return None
    if revision != MODERN:
        reason = f"the call brings {brought}, which only revision {MODERN} of MCP has"
        return Decision.refusal(reason, code="arguments.invalid")
    if any(fnmatchcase(name, pattern) for pattern in allowed):
        return None
    reason = (
        f"the call brings {brought}, by which the server may do what the arguments do not say. "
        f'Once the policy decides on input.args["${BESIDE}"], name {name} in {where}'
    )
    return Decision.refusal(reason, code="arguments.rounds")
