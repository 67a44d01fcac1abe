"""A dependency of FastAPI: an endpoint that needs a scope (the extra ``fastapi``).

The dependency stands behind ``CallerMiddleware``, which has verified the caller.
"""

from __future__ import annotations

from collections.abc import Callable

from agentguard.errors import ConfigError, ProofError
from agentguard.proof.receiver import Receiver
from agentguard.proof.verification import RequestCaller, require_named

try:
    from fastapi import HTTPException, Request
except ModuleNotFoundError as error:
    what = "an endpoint that needs a scope"
    raise ConfigError.without_extra("fastapi", what=what, brings="FastAPI") from error


def requires(*scopes: str) -> Callable[[Request], RequestCaller]:
    """Return a dependency that returns the caller of a request, whose scope has all ``scopes``.

    Another caller gets the status 403, which the receiver's log says, and a request without a
    verified caller 401. Raises ``ConfigError`` without a scope.
    """
    require_named(scopes)

    def verified_caller(request: Request) -> RequestCaller:
        caller = getattr(request.state, "caller", None)
        if not isinstance(caller, RequestCaller):
            raise HTTPException(401, "Unauthorized", {"WWW-Authenticate": "DPoP"})
        try:
            caller.require(*scopes)
        except ProofError as error:
            receiver = getattr(request.state, "receiver", None)
            if isinstance(receiver, Receiver):
                receiver.refuse(caller, error)
            challenge = f'DPoP error="insufficient_scope", scope="{" ".join(scopes)}"'
            raise HTTPException(403, "Forbidden", {"WWW-Authenticate": challenge}) from error
        return caller

    return verified_caller
