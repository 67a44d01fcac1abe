"""``ClientReleases``: the secrets and the proofs of a running call, which the guard server has.

The value travels to the process that runs the tool, where the tool needs it. The server has put the
release on record before. The client keeps the value until the end of the call, to mask it in spans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from agentguard.call.releases import Releases, RequestProof
from agentguard.client.link import Link
from agentguard.errors import AgentguardError, ProofError, SecretError
from agentguard.signing.keys import Secret
from agentguard.wire import values
from agentguard.wire.frame import Frame

T = TypeVar("T")


class ClientReleases:
    """What the server gives to one running call (``call.releases.Releases``)."""

    __slots__ = ("_around", "_has_ended", "_held", "_link", "_request_id")

    def __init__(self, link: Link, request_id: str, around: Releases | None) -> None:
        self._link = link
        self._request_id = request_id
        self._around = around
        self._held: list[Secret] = []
        self._has_ended = False

    def release(self, name: str) -> str:
        """Return the value of a secret; raises ``SecretError``."""
        if self._has_ended:
            message = f"the secret {name} is for a running call, and this call has ended"
            raise SecretError(message, code="secret.refused")
        asked = {"op": "secret", "request_id": self._request_id, "name": str(name)}
        try:
            value = Secret(self._link.request(asked).blobs[0])
        except SecretError:
            raise
        except (AgentguardError, LookupError) as error:
            message = f"the secret {name} can't be had from the guard server: {error}"
            raise SecretError(message, code="secret.failed") from error
        self.hold(value)
        return value.reveal().decode()

    def limit_warnings(self, may_warn: Callable[[], bool]) -> None:
        """Do nothing: the server logs refusals."""

    def prove(self, method: str, url: str, body_sha256: str) -> RequestProof:
        """Return the proof of a request, which the server signs; raises ``ProofError``."""
        return self._proved(
            {
                "op": "proof",
                "method": str(method),
                "url": str(url),
                "body_sha256": body_sha256,
            }
        )

    def prove_call(self, audience: str, method: str, params_sha256: str) -> RequestProof:
        """Return the proof of an MCP request, which the server signs; raises ``ProofError``."""
        return self._proved(
            {
                "op": "call_proof",
                "audience": str(audience),
                "method": str(method),
                "params_sha256": params_sha256,
            }
        )

    def note_receipt(self, proof_sha256: str, receipt: str, key_id: str) -> None:
        """Have the server put a receipt on record; raises ``ProofError``."""
        told = {"proof_sha256": proof_sha256, "receipt": receipt, "key_id": key_id}
        self._ask({"op": "receipt", **told}, lambda _answer: None)

    def _proved(self, asked: dict[str, str]) -> RequestProof:
        return self._ask(asked, lambda answer: values.read_proof(answer.header, answer.blobs))

    def _ask(self, asked: dict[str, str], read: Callable[[Frame], T]) -> T:
        if self._has_ended:
            message = "a proof is for a request of a running call, and this call has ended"
            raise ProofError(message)
        try:
            return read(self._link.request({**asked, "request_id": self._request_id}))
        except ProofError:
            raise
        except AgentguardError as error:
            message = f"no proof can be had from the guard server: {error}"
            raise ProofError(message, code="proof.failed") from error

    @property
    def held(self) -> Sequence[Secret]:
        """The values that were released to the call, to calls inside, and to the calls around."""
        return (*self._held, *(() if self._around is None else self._around.held))

    def hold(self, value: Secret) -> None:
        """Note a value that was released to the call, or to a call inside."""
        self._held.append(value)
        if self._around is not None:
            self._around.hold(value)

    def end(self) -> bool:
        """End the call; the server waits for what it still puts on record."""
        self._has_ended = True
        return False

    def settle(self) -> None:
        """Wait for nothing: the server settles the releases before the outcome."""

    def forget(self) -> None:
        """Drop the values."""
        self._held.clear()
