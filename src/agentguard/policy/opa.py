"""The OPA engine: an OPA server evaluates the policy, through its Data API (v1).

This module builds the request and reads the answer; ``opa_http.py`` has the connections, time
limits and credentials, needs ``agentguard[opa]`` and is imported when an engine is made. A late
answer, and an answer that has not OPA's form, is a ``PolicyError`` with a code of its own. No
request is repeated, and no other engine is used in the server's place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from agentguard.call.reason_codes import responsibility_for
from agentguard.errors import ConfigError, DecodeError, PolicyError
from agentguard.policy.document import DEFAULT_QUERY, QUERY, UNDEFINED, Evaluated
from agentguard.policy.opa_server import Server
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON

MAX_ANSWER: Final = canonical.MAX_BYTES
"""The longest accepted answer, in bytes."""

MAX_REVISIONS: Final = 64
MAX_TEXT: Final = 256
"""How many bundles an answer may name, and how long an id, a name or a revision may be."""

_PLAIN: Final = re.compile(rf"[ -~]{{0,{MAX_TEXT}}}")
_EVALUATION_ERROR: Final = re.compile(r"(?:eval|rego)_[a-z_]{1,60}")
_FILE: Final = re.compile(r"[\w./ -]{1,200}")


class OpaEngine:
    """A policy on an OPA server (``engine.Engine``, ``Explains``); safe to use from many threads.

    The first request is sent when a call is decided: calls are denied while the server is down, and
    are decided again once the server is back. Raises ``ConfigError`` for a query that is no
    package's path, for files that can't be used, and without ``agentguard[opa]``.
    """

    name: Final = "opa"
    version: Final = "v1"
    """The version of OPA's API; ``Evaluated.evaluation`` has the version of the server itself."""

    policy_sha256: Final = None
    """None: a server does not report its policy, which may change between two calls."""

    waits: Final = True

    def __init__(self, server: Server, query: str = DEFAULT_QUERY) -> None:
        if not QUERY.fullmatch(query):
            raise ConfigError(f"query: {query!r} is no package's path, such as {DEFAULT_QUERY}")
        self._server = server
        self._query = query
        path = "/".join(["/v1", *query.split(".")])
        self._client = _http().Client(server, path, limit=MAX_ANSWER)

    @property
    def policy_files(self) -> Mapping[str, str]:
        """Empty: the files are the server's."""
        return MappingProxyType({})

    @property
    def warnings(self) -> tuple[str, ...]:
        """The weaknesses of the connection to the server, a sentence each."""
        if self._server.address.scheme == "https" or self._server.is_local:
            return ()
        warning = (
            "the policy's answers come over http: anybody on the network path can change them; "
            "let OPA listen with TLS, and begin policy.url with https"
        )
        return (warning,)

    def evaluate(self, document: bytes) -> object:
        """Have the server evaluate the query on ``document``; return an ``Evaluated``.

        Raises ``PolicyError``: ``policy.error`` where the evaluation failed, and for failures of
        the exchange ``engine.unreachable``, ``engine.disconnected``, ``engine.timeout``,
        ``engine.tls``, ``engine.credential``, ``engine.unauthorized``, ``engine.failed``,
        ``engine.malformed`` or ``engine.too_large``. A message quotes nothing that the server says
        but OPA's error code and the place in the policy.
        """
        status, body = self._client.post(b'{"input":' + document + b"}")
        if status != 200:  # noqa: PLR2004  the only status with an answer
            raise _failure(status, body)
        try:
            members = canonical.loads_object(body)
        except DecodeError as error:
            raise _malformed(f"is no JSON object ({error.code})") from error
        return Evaluated(members.get("result", UNDEFINED), _evaluation(members))

    def explain(self, _document: bytes, code: str) -> str:
        """Return the cause of a refusal with this code, and advice for the operator.

        The text is never recorded.
        """
        url, query = self._server.url, self._query
        prefix = f"{url} was asked for {query}"
        match code:
            case "policy.undefined":
                advice = f"{url} has no {query}: load the policy there, or correct [policy] query"
            case "policy.malformed":
                advice = (
                    f"{prefix}: the query must name a package, not a rule: {DEFAULT_QUERY}; if it "
                    "does, correct the policy as the reason says"
                )
            case "policy.error":
                advice = f"{prefix}: correct the policy there; the server's log may say more"
            case "obligation.unknown":
                advice = f'{prefix}: its obligations may only be {{"redact": a JSON Pointer}}'
            case "engine.unreachable":
                advice = f"start OPA at {url}, or correct [policy] url"
            case "engine.unauthorized":
                advice = f"{prefix}: its log, or the log of a proxy in front of it, may say why"
            case "engine.timeout":
                advice = f"{prefix}: look at its load, or raise [policy] timeout"
            case "engine.tls" | "engine.too_large":
                advice = f"{prefix}: {responsibility_for(code).remedy}"
            case _:
                advice = f"{prefix}: see its log"
        return advice

    def close(self) -> None:
        """Close the connections; a later evaluation opens new ones."""
        self._client.close()


def _http() -> Any:
    try:
        from agentguard.policy import opa_http  # noqa: PLC0415  httpcore is an optional extra
    except ModuleNotFoundError as error:
        raise ConfigError.without_extra(
            "opa", what="a policy on an OPA server", brings="httpcore"
        ) from error
    return opa_http


def _evaluation(members: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return the server's details of an evaluation (log.md)."""
    provenance = members.get("provenance", {})
    if not isinstance(provenance, dict):
        raise _malformed("has a provenance that is no object")
    bundles = provenance.get("bundles") or {}
    if not isinstance(bundles, dict) or len(bundles) > MAX_REVISIONS:
        raise _malformed(f"has malformed bundles, or more than {MAX_REVISIONS}")
    revisions: dict[str, JSON] = {}
    for name, bundle in bundles.items():
        revision = bundle.get("revision") if isinstance(bundle, dict) else None
        revisions[_text(name) or ""] = _text(revision)
    return {
        "decision_id": _text(members.get("decision_id")),
        "version": _text(provenance.get("version")),
        "revisions": revisions,
    }


def _text(value: JSON) -> str | None:
    """Return a recordable name; None where it is missing or empty. Raises ``PolicyError``."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _PLAIN.fullmatch(value):
        raise _malformed(
            f"holds an id or a revision that is no line of at most {MAX_TEXT} characters"
        )
    return value


def _failure(status: int, body: bytes) -> PolicyError:
    if status in (401, 403):
        message = (
            f"the OPA server does not let this guard ask it ({status}): set token_file, "
            "token_variable or certificate in [policy]"
        )
        return PolicyError(message, code="engine.unauthorized")
    place = _failed_at(body) if status == 500 else None  # noqa: PLR2004
    if place is not None:
        return PolicyError(place)
    return PolicyError(f"the OPA server answered with status {status}", code="engine.failed")


def _failed_at(body: bytes) -> str | None:
    """Return where and how an evaluation failed; None for another failure.

    OPA's messages are left out, because they quote arguments.
    """
    try:
        answer = canonical.loads_object(body)
    except DecodeError:
        return None
    match answer:
        case {"errors": [{"code": str(kind), **error}, *_]} if _EVALUATION_ERROR.fullmatch(kind):
            failed = f"the policy's evaluation failed: {kind}"
        case _:
            return None
    match error:
        case {"location": {"file": str(file), "row": int(row), "col": int(column)}}:
            if _FILE.fullmatch(file):
                return f"{file}:{row}:{column}: {failed}"
    return failed


def _malformed(problem: str) -> PolicyError:
    return PolicyError(f"the OPA server's answer {problem}", code="engine.malformed")
