"""``POST /backchannel-logout``: a provider says that a user has logged out.

The request shows no credential: the provider has signed the log-out token. The log has the token,
durably, and every process of the state knows of the log-out before the answer. OpenID Connect
Back-Channel Logout 1.0, 2.5 to 2.8.
"""

from __future__ import annotations

from agentguard.audit.kinds.identities import LogOutEntry
from agentguard.call.invocation import timestamp
from agentguard.errors import AgentguardError
from agentguard.identity.login import LogOut
from agentguard.identity.trust import seconds
from agentguard.service.answers import Answer, invalid_request, success, unavailable
from agentguard.service.parts import LOGGER, ServiceParts
from agentguard.service.reading import Request, read_form, required


def log_out(parts: ServiceParts, request: Request) -> Answer:
    """End the log-ins that a log-out token names, and return an empty object.

    A token that was received before changes nothing, and gets the same answer. Raises
    ``RefusedError``: ``invalid_request``, and ``temporarily_unavailable`` where the provider's keys
    or the log can't be had.
    """
    token = required(read_form(request), "logout_token")
    logout = _verified(parts, token)
    try:
        with parts.turn:  # of two that bring the same token, one writes an entry
            log = parts.ports.log
            if not log.look(lambda state: state.has_ended(logout)):
                log.append(LogOutEntry(at=timestamp(parts.now()), token=token).record())
    except AgentguardError as error:
        LOGGER.warning("a log-out can't be recorded: %s (%s)", error, error.code)
        raise unavailable("the log-out can't be recorded now") from error
    return success({})


def _verified(parts: ServiceParts, token: str) -> LogOut:
    now = seconds(parts.now())
    try:
        return parts.logouts.verify(token, now=now)
    except AgentguardError as error:
        LOGGER.info("the token service refuses a log-out token: %s (%s)", error, error.code)
        if error.code.startswith("issuer."):
            message = f"the log-out token can't be verified now [{error.code}]"
            raise unavailable(message) from error
        message = f"the log-out token does not count here [{error.code}]"
        raise invalid_request(message) from error
