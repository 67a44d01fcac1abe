"""``Recorder``: puts the requests of a receiver on record in the receiver's own log.

``receiver.py`` and ``call_receiver.py`` verify the requests. ``guard/receiver_log.py`` writes the
entries.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, TypeVar

from agentguard.audit.kinds.receiver import ReceivedRequest, RefusedRequest
from agentguard.call.plain import discarded
from agentguard.errors import ProofError
from agentguard.proof.evidence import KnownCaller
from agentguard.proof.verification import RequestCaller, UnknownChainError

Request = TypeVar("Request")

_LOGGER: Final = logging.getLogger("agentguard")


class RequestLog(Protocol):
    """The receiver's own tamper-evident log (``agentguard.ReceiverLog``)."""

    def received(self, request: ReceivedRequest) -> None:
        """Put an accepted request durably on record, and return None.

        Raises ``ProofError`` (``proof.unrecorded``); the request is then refused.
        """

    def refused(self, request: RefusedRequest | None) -> None:
        """Count a refused request, and put the request on record if there is room for it.

        None stands for a request of nobody who is known: the request is only counted. Raises
        ``ProofError`` (``proof.unrecorded``).
        """


class Recorder(NamedTuple):
    """Records the requests of a receiver: ``log`` is None for a receiver without a log.

    ``audience`` is the name of the receiver in delegations, and ``server`` the URL within which it
    takes requests.
    """

    log: RequestLog | None
    audience: str
    server: str

    def verified(
        self, verify: Callable[[Callable[[KnownCaller], None]], RequestCaller]
    ) -> RequestCaller:
        """Return the caller that ``verify`` returns, once the request is on record.

        ``verify`` takes a function that is to get the caller once the caller is known. Raises what
        ``verify`` raises, and ``ProofError`` (``proof.unrecorded``).
        """
        known: list[KnownCaller] = []
        try:
            caller = verify(known.append)
        except ProofError as error:
            self._note_refusal(error, known[0] if known else None)
            raise
        if self.log is not None:
            _write(self.log.received, self._received(caller))
        return caller

    def refuse(self, caller: RequestCaller | None, error: ProofError) -> None:
        """Put on record that the application refuses a request of a caller, None for a stranger."""
        if caller is None:
            self._note_refusal(error, None)
            return
        about = KnownCaller(caller.agent, caller.principal, caller.token_jti, caller.evidence)
        self._note_refusal(error, about)

    def _note_refusal(self, error: ProofError, known: KnownCaller | None) -> None:
        """Put a refusal on record; a log that can't be written changes nothing for the caller."""
        if self.log is None or isinstance(error, UnknownChainError):
            return  # the client sends the chain, and then the request
        try:
            _write(self.log.refused, None if known is None else self._refused(known, error.code))
        except ProofError as unwritten:
            _LOGGER.warning("a refused request is not on record: %s", unwritten)

    def _received(self, caller: RequestCaller) -> ReceivedRequest:
        evidence = caller.evidence
        return ReceivedRequest(
            evidence.request,
            self.audience,
            self.server,
            str(evidence.proof_jti),
            evidence.proof_sha256,
            caller.chain.leaf.key_id,
            caller.assurance,
            caller.invocation_sha256,
            caller.token_jti,
            evidence.token_sha256,
            caller.agent,
            caller.principal,
        )

    def _refused(self, known: KnownCaller, code: str) -> RefusedRequest:
        evidence = known.evidence
        return RefusedRequest(
            code,
            evidence.request,
            self.audience,
            self.server,
            evidence.proof_sha256,
            known.token_jti,
            evidence.token_sha256,
            known.agent,
            known.principal,
        )


def _write(record: Callable[[Request], object], request: Request) -> None:
    """Put a request on record; raises ``ProofError`` (``proof.unrecorded``).

    A log of the application's own may raise anything, and only None says that the request is on
    record.
    """
    try:
        answer = record(request)
    except ProofError:
        raise
    except Exception as error:
        message = f"the receiver's log failed ({type(error).__name__})"
        raise ProofError(message, code="proof.unrecorded") from error
    if answer is not None:
        message = f"the receiver's log does not say that it has the request: {discarded(answer)}"
        raise ProofError(message, code="proof.unrecorded")
