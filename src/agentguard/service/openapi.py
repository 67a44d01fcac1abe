"""``GET /openapi.json``: the endpoints in the form of OpenAPI 3.1, written by hand.

A test holds the description against the routes of ``application.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from agentguard.service.answers import Answer, public
from agentguard.service.evaluations import MOST
from agentguard.service.exchange import SUBJECT_TYPES
from agentguard.service.messages import CHAIN, GRANT, JWT_BEARER
from agentguard.service.parts import ServiceParts
from agentguard.service.reading import FORM, Request

_TEXT: Final = {"type": "string"}
_NUMBER: Final = {"type": "integer"}
_OBJECT: Final = {"type": "object"}
_JSON: Final = "application/json"


def _object(required: tuple[str, ...], **members: object) -> dict[str, object]:
    return {"type": "object", "required": list(required), "properties": members}


def _content(media_type: str, schema: object) -> dict[str, object]:
    return {media_type: {"schema": schema}}


def _answers(status: str, meaning: str, schema: object, *refusals: str) -> dict[str, object]:
    refused = {code: {"$ref": "#/components/responses/Refusal"} for code in (*refusals, "503")}
    return {status: {"description": meaning, "content": _content(_JSON, schema)}, **refused}


def _public(summary: str) -> dict[str, object]:
    answers = _answers("200", summary, _OBJECT, "400", "431")
    return {"get": {"summary": summary, "responses": answers}}


_BODIES: Final = ("400", "408", "413", "415", "431")
_POSTED: Final = (*_BODIES, "401")

_CHAIN_SCHEMA: Final = {
    "type": "object",
    "description": "The signed hops and credentials: docs/reference/delegation-formats.md.",
}

_IDENTITIES: Final = {
    "summary": "Get a credential for a key of your own",
    "security": [{"workload": [], "proof": []}],
    "requestBody": {
        "required": True,
        "content": _content(_JSON, _object(("agent", "jwk"), agent=_TEXT, jwk=_OBJECT)),
    },
    "responses": _answers(
        "201",
        "The credential",
        _object(
            ("credential", "uri", "expires_in", "expires_at"),
            credential=_TEXT,
            uri=_TEXT,
            expires_in=_NUMBER,
            expires_at=_NUMBER,
        ),
        *_POSTED,
        "403",
    ),
}

_ASKED_FOR: Final = {
    "scope": _TEXT,
    "audience": {"type": "array", "items": _TEXT},
    "resource": {"type": "array", "items": _TEXT},
    "client_id": _TEXT,
}

_TOKEN: Final = {
    "summary": "Get an access token for a user's token (RFC 8693) or an ID-JAG (RFC 7523)",
    "security": [{"credential": [], "proof": []}],
    "requestBody": {
        "required": True,
        "content": _content(
            FORM,
            {
                "oneOf": [
                    _object(
                        ("grant_type", "subject_token", "subject_token_type"),
                        grant_type={"const": GRANT},
                        subject_token=_TEXT,
                        subject_token_type={"enum": list(SUBJECT_TYPES)},
                        requested_token_type=_TEXT,
                        **_ASKED_FOR,
                    ),
                    _object(
                        ("grant_type", "assertion"),
                        grant_type={"const": JWT_BEARER},
                        assertion=_TEXT,
                        **_ASKED_FOR,
                    ),
                ]
            },
        ),
    },
    "responses": _answers(
        "200",
        "The access token and its chain",
        {
            "type": "object",
            "required": ["access_token", "token_type", "expires_in", "scope", CHAIN],
            "properties": {
                "access_token": _TEXT,
                "issued_token_type": _TEXT,
                "resource": {"type": "array", "items": _TEXT},
                "token_type": {"const": "DPoP"},
                "expires_in": _NUMBER,
                "scope": _TEXT,
                CHAIN: _CHAIN_SCHEMA,
            },
        },
        *_POSTED,
    ),
}

_TOKEN_FORM: Final = {
    "required": True,
    "content": _content(
        FORM, _object(("token",), token=_TEXT, token_type_hint=_TEXT, **{CHAIN: _TEXT})
    ),
}

_INTROSPECT: Final = {
    "summary": "Ask whether an access token counts now (RFC 7662)",
    "security": [{"workload": []}],
    "requestBody": _TOKEN_FORM,
    "responses": _answers(
        "200", "What the token says", _object(("active",), active={"type": "boolean"}), *_POSTED
    ),
}

_REVOKE: Final = {
    "summary": "Give up an access token of one's own (RFC 7009)",
    "security": [{"credential": [], "proof": []}],
    "requestBody": _TOKEN_FORM,
    "responses": _answers("200", "The token does not count", _OBJECT, *_POSTED),
}

_LOGOUT: Final = {
    "summary": "Say that a user has logged out (OpenID Connect Back-Channel Logout 1.0)",
    "requestBody": {
        "required": True,
        "content": _content(FORM, _object(("logout_token",), logout_token=_TEXT)),
    },
    "responses": _answers("200", "The log-out is recorded", _OBJECT, *_BODIES),
}

_ASKED: Final = {
    "subject": _object(("type", "id"), type=_TEXT, id=_TEXT, properties=_OBJECT),
    "action": _object(("name",), name=_TEXT),
    "resource": _object(("type", "id"), type=_TEXT, id=_TEXT),
    "context": _object((), arguments=_OBJECT),
}

_DECIDED: Final = _object(("decision",), decision={"type": "boolean"}, context=_OBJECT)


def _evaluated(summary: str, body: object, meaning: str, answer: object) -> dict[str, object]:
    return {
        "summary": summary,
        "security": [{"token": [], "proof": []}, {"credential": [], "proof": []}, {"workload": []}],
        "parameters": [{"name": "X-Request-ID", "in": "header", "schema": _TEXT}],
        "requestBody": {"required": True, "content": _content(_JSON, body)},
        "responses": _answers("200", meaning, answer, *_POSTED, "403"),
    }


_EVALUATION: Final = _evaluated(
    "Ask what the policy decides about a call that nobody makes (AuthZEN)",
    _object(("subject", "action", "resource"), **_ASKED),
    "The decision, signed and on record",
    _DECIDED,
)

_EVALUATIONS: Final = _evaluated(
    "Ask about several calls (AuthZEN)",
    _object(
        (),
        **_ASKED,
        evaluations={"type": "array", "items": _object((), **_ASKED), "maxItems": MOST},
        options=_OBJECT,
    ),
    "The decisions, in the order of the request",
    _object((), evaluations={"type": "array", "items": _DECIDED}),
)

DESCRIPTION: Final[Mapping[str, Any]] = {
    "openapi": "3.1.0",
    "info": {"title": "agentguard token service", "version": "1"},
    "paths": {
        "/.well-known/oauth-authorization-server": _public("The metadata (RFC 8414)"),
        "/jwks.json": _public("The keys of the issuer (RFC 7517)"),
        "/healthz": _public("Whether the service answers, and can write the log"),
        "/openapi.json": _public("This description"),
        "/identities": {"post": _IDENTITIES},
        "/token": {"post": _TOKEN},
        "/introspect": {"post": _INTROSPECT},
        "/revoke": {"post": _REVOKE},
        "/backchannel-logout": {"post": _LOGOUT},
        "/.well-known/authzen-configuration": _public("The metadata (AuthZEN)"),
        "/access/v1/evaluation": {"post": _EVALUATION},
        "/access/v1/evaluations": {"post": _EVALUATIONS},
    },
    "components": {
        "securitySchemes": {
            "workload": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            "token": {"type": "http", "scheme": "dpop"},
            "credential": {"type": "apiKey", "in": "header", "name": "Workload-Identity-Token"},
            "proof": {"type": "apiKey", "in": "header", "name": "DPoP"},
        },
        "responses": {
            "Refusal": {
                "description": "A refusal in the form of RFC 6749, 5.2",
                "content": _content(
                    _JSON, _object(("error",), error=_TEXT, error_description=_TEXT)
                ),
            }
        },
    },
}
"""The description without the address of the service."""


def describe(parts: ServiceParts, _request: Request) -> Answer:
    """Return the description, with the URL of this service."""
    return public({**DESCRIPTION, "servers": [{"url": parts.config.issuer}]})
