"""``ProvedCallers``: verifies who calls at a gateway, where the settings ask for proofs of calls.

The gateway is then the server that the proof names (its audience): it verifies the proof, uses the
proof up, takes token and proof away, and decides under a delegation of the caller's principal, as a
guarded server does (``agentguard_mcp.server``). Needs the extra ``sdk``. The gateway itself knows
no proofs, and imports this module at the first need.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, NamedTuple

from agentguard import AgentguardError, Decision, Delegation, Guard, TrustDocument
from agentguard.adapters import ToolSpec
from agentguard.proof import CallReceiver, ProofStore, RequestCaller
from agentguard_mcp.delegations import CallerDelegations
from agentguard_mcp.gateway.messages import Message
from agentguard_mcp.gateway.settings import Proofs
from agentguard_mcp.request_guard import caller_member


class ProvedCaller(NamedTuple):
    """The caller of one request, and the delegation under which the gateway decides.

    ``revocations`` are those of the caller's domain, None where no revocation is seen.
    """

    caller: RequestCaller
    delegation: Delegation
    revocations: Any

    @property
    def most(self) -> frozenset[str]:
        """The scope that the proof's delegation has."""
        return frozenset(self.delegation.scope)

    def told(self, spec: ToolSpec) -> ToolSpec:
        """Return a specification whose policy input has the caller (``input.caller``)."""
        return replace(spec, caller=caller_member(self.caller))

    async def revoked(self) -> Decision | None:
        """Return why the caller may not act any more, None for a caller who still may."""
        if self.revocations is None:
            return None
        names = self.caller.chain.names | {self.caller.token_jti}
        try:
            found = await asyncio.to_thread(self.revocations.refusal, names)
        except AgentguardError as error:
            return Decision.of_error(error)
        except Exception as error:  # noqa: BLE001  a look that fails refuses the request
            return Decision.failure("proof.unavailable", "the caller can't be verified", error)
        return None if found is None else Decision.refusal(found[1], code=found[0])


class ProvedCallers:
    """Verifies the callers of one gateway.

    Raises ``ConfigError`` for an audience that no delegation can have, ``DecodeError`` for a trust
    document that is none, and ``ProofError`` for a store that can't be opened.
    """

    def __init__(self, guard: Guard, proofs: Proofs) -> None:
        trust: Any = guard.trust
        if proofs.trust is not None:
            trust = list(map(TrustDocument.loads, proofs.trust))
        self._revocations = proofs.revocations
        self._receiver = CallReceiver(
            proofs.audience, trust, ProofStore(proofs.store), revocations=self._revocations
        )
        self._delegations = CallerDelegations(guard)

    def contradiction(self, _request: Message, _spec: ToolSpec) -> None:
        """Return None: a proof covers all arguments."""

    async def of(self, request: Message) -> ProvedCaller | Decision:
        """Return who sends a request, or the refusal for a request without a valid proof."""
        try:
            return await asyncio.to_thread(
                self._verified, request["method"], request.get("params", {})
            )
        except AgentguardError as error:
            return Decision.of_error(error)
        except Exception as error:  # noqa: BLE001  a verification that fails refuses the request
            return Decision.failure("proof.unavailable", "the caller can't be verified", error)

    def _verified(self, method: str, params: object) -> ProvedCaller:
        caller = self._receiver.verify(method, params)
        return ProvedCaller(caller, self._delegations.of(caller), self._revocations)
