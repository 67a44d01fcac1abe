"""The ASGI application of the token service: receives requests, and carries the endpoints out.

An endpoint is a plain function of the parts and a request (``ROUTES``), and runs in a thread. The
application bounds what a request may take: headers, body, time, and requests at once. Every error
becomes an answer in JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, NamedTuple

from agentguard.errors import AgentguardError, ConfigError
from agentguard.service.answers import (
    Answer,
    RefusedError,
    invalid_request,
    refusal,
    unavailable,
)
from agentguard.service.evaluations import configuration, evaluate, evaluate_many
from agentguard.service.exchange import exchange
from agentguard.service.identities import register
from agentguard.service.introspection import introspect
from agentguard.service.logout import log_out
from agentguard.service.metadata import health, keys, metadata
from agentguard.service.openapi import describe
from agentguard.service.parts import LOGGER, ServiceParts
from agentguard.service.reading import MAX_BODY, Request, read_headers
from agentguard.service.revocation import revoke

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response
    from starlette.routing import Route
except ModuleNotFoundError as missing:
    what, brings = "the token service ([service])", "starlette and uvicorn"
    raise ConfigError.without_extra("service", what=what, brings=brings) from missing

AT_ONCE: Final = 16
"""The most requests that are carried out at a time; others wait."""

SECONDS: Final = 10.0
"""The seconds in which the body of a request has to come."""

_REQUEST_ID: Final = "x-request-id"

Endpoint = Callable[[ServiceParts, Request], Answer]


class Place(NamedTuple):
    """Where an endpoint is: its method and its path."""

    method: str
    path: str


ROUTES: Final[dict[Place, Endpoint]] = {
    Place("GET", "/.well-known/oauth-authorization-server"): metadata,
    Place("GET", "/jwks.json"): keys,
    Place("GET", "/healthz"): health,
    Place("GET", "/openapi.json"): describe,
    Place("POST", "/identities"): register,
    Place("POST", "/token"): exchange,
    Place("POST", "/introspect"): introspect,
    Place("POST", "/revoke"): revoke,
    Place("POST", "/backchannel-logout"): log_out,
    Place("GET", "/.well-known/authzen-configuration"): configuration,
    Place("POST", "/access/v1/evaluation"): evaluate,
    Place("POST", "/access/v1/evaluations"): evaluate_many,
}
"""The endpoints; each path has one method."""


def make_application(parts: ServiceParts) -> Starlette:
    """Return the application."""
    turns = asyncio.Semaphore(AT_ONCE)
    application = Starlette(
        routes=[
            Route(
                place.path,
                partial(_answer, parts, place, endpoint, turns),
                methods=[place.method],
            )
            for place, endpoint in ROUTES.items()
        ],
        exception_handlers={HTTPException: _not_found},
    )
    application.router.redirect_slashes = False
    return application


async def _answer(
    parts: ServiceParts,
    place: Place,
    endpoint: Endpoint,
    turns: asyncio.Semaphore,
    http: HttpRequest,
) -> Response:
    headers: Mapping[str, str] = {}
    try:
        headers = read_headers(http.scope["headers"])
        request = Request(place.method, place.path, headers, await _body(http))
        async with turns:
            answer = await run_in_threadpool(_carry_out, parts, endpoint, request)
    except RefusedError as refused:
        answer = refusal(refused)
    response = _response(answer)
    if _REQUEST_ID in headers:  # AuthZEN, "Request Identification"
        response.headers[_REQUEST_ID] = headers[_REQUEST_ID]
    return response


def _carry_out(parts: ServiceParts, endpoint: Endpoint, request: Request) -> Answer:
    """Carry an endpoint out; an error that is no refusal says nothing to the caller."""
    try:
        return endpoint(parts, request)
    except RefusedError as refused:
        return refusal(refused)
    except AgentguardError as error:
        LOGGER.warning("the token service can't answer: %s (%s)", error, error.code)
    except Exception:  # noqa: BLE001  nobody learns of a mistake of the service but its log
        LOGGER.exception("the token service failed at %s", request.path)
    return refusal(unavailable("the service can't answer now: its log says why"))


async def _body(http: HttpRequest) -> bytes:
    """Return the body; raises ``RefusedError`` for a body that is too long or comes too slowly."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(SECONDS):
            async for part in http.stream():
                size += len(part)
                if size > MAX_BODY:
                    raise invalid_request(f"the body takes more than {MAX_BODY} bytes", 413)
                parts.append(part)
    except TimeoutError as error:
        raise invalid_request("the body came too slowly", 408) from error
    except ClientDisconnect as error:  # nobody reads the answer
        raise invalid_request("the request was cut short") from error
    return b"".join(parts)


async def _not_found(_request: HttpRequest, error: Exception) -> Response:
    """Answer a request to a path or with a method that is not served."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    what = "the method" if status == 405 else "the path"  # noqa: PLR2004
    answer = _response(refusal(invalid_request(f"{what} is not served here", status)))
    if isinstance(error, HTTPException):
        answer.headers.update(error.headers or {})
    return answer


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, answer.headers)
