"""``CallReceiver``: what an MCP server knows beforehand, and the verification of its requests.

``receiver.py`` has the twin for HTTP requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from agentguard.identity.trust import TrustDocument
from agentguard.proof.call_verification import verify_call
from agentguard.proof.receiver import (
    read_clock,
    require_audience,
    require_clear_trust,
    require_plain_parts,
)
from agentguard.proof.recorder import Recorder, RequestLog
from agentguard.proof.verification import RequestCaller, RevokedNames, UsedProofs
from agentguard.proof.verified_tokens import VerifiedTokens


class CallReceiver:
    """An MCP server as its callers name it, whom the server trusts, and the used proofs.

    ``audience`` is the server's name in delegations, letter for letter: for a server over HTTP its
    URL (RFC 8707), for a server on a pipe a name such as ``mcp:files``. The name comes from the
    configuration of both sides, and never over the wire. ``trust``, ``revocations``, ``issuers``,
    ``log`` and ``clock`` are those of ``Receiver``. ``store`` is a ``ProofStore``, which all
    workers of the server share. Raises ``ConfigError`` for an audience that no delegation
    can name, and for trust documents, revocations and coroutine functions as ``Receiver`` does.
    """

    def __init__(
        self,
        audience: str,
        trust: TrustDocument | Sequence[TrustDocument],
        store: UsedProofs,
        *,
        revocations: RevokedNames | Mapping[str, RevokedNames | None] | None = None,
        issuers: Mapping[str, str] | None = None,
        log: RequestLog | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        require_audience(audience)
        require_clear_trust(trust, revocations)
        require_plain_parts(store, revocations, log, clock)
        self.audience = audience
        self._trust = trust
        self._store = store
        self._revocations = revocations
        self._issuers = dict({} if issuers is None else issuers)
        self._tokens = VerifiedTokens()
        self._clock = clock
        self._recorder = Recorder(log, audience, audience)

    def verify(self, method: object, params: object) -> RequestCaller:
        """Verify a JSON-RPC request as it came over the wire, and use its proof up.

        ``params`` are all parameters, with ``_meta``. The request is on record in the log, if any,
        before this method returns. Raises ``ProofError``: for a log that can't be written,
        ``proof.unrecorded``.
        """
        return self._recorder.verified(
            lambda on_caller: verify_call(
                method,
                params,
                trust=self._trust,
                audience=self.audience,
                at=read_clock(self._clock),
                used=self._store,
                revocations=self._revocations,
                issuers=self._issuers,
                on_caller=on_caller,
                tokens=self._tokens,
            )
        )
