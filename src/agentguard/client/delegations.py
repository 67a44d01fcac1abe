"""Delegations of a guard whose steps run in a server: begun and taken up there.

The chain of a delegation is public, and the client has it. The key that hands the chain on is in
the server. The client names a delegation by the digest of its last hop.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from agentguard.client.link import Link
from agentguard.delegation import context, grant, terms, verification
from agentguard.delegation.claim import Claim, claim_of, refusing
from agentguard.delegation.handle import Delegation, Holder
from agentguard.delegation.terms import Lender
from agentguard.errors import (
    AgentguardError,
    DecodeError,
    DelegationError,
    EncodeError,
    ServerError,
)
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical
from agentguard.signing.keys import Secret
from agentguard.wire import values
from agentguard.wire.frame import Frame

_TOKENS: Final = ("subject_token", "via_token")
"""The tokens with which a delegation begins, as the protocol names them."""

MAX_KEPT: Final = 4096
"""The most delegations of running calls that are kept, to be found by their names."""


class ClientDelegations:
    """Begins delegations in the server, and takes stored ones up."""

    def __init__(self, link: Link, trust: TrustDocument) -> None:
        self._link = link
        self._trust = trust
        self._kept: dict[str, tuple[int, Delegation]] = {}
        self._tokens: dict[bytes, tuple[Secret | None, Secret | None]] = {}

    def begin(
        self,
        lender: Lender,
        *,
        scope: Iterable[str] | None,
        via: str | None,
        task_id: str | None,
        expires_in: timedelta | int,
        max_depth: int,
        max_calls: int | None,
        audience: Iterable[str] | None,
    ) -> Delegation:
        """Have a principal lend ``scope``; raises as ``Guard.delegate`` does.

        ``principal.refused``: the server does not let this client vouch for ``subject``.
        """
        lender.check()
        asked = {
            "op": "delegate",
            "subject": lender.name,
            "subject_token": lender.token,
            "via_token": lender.via_token,
            "scope": None if scope is None else grant.parse_scopes(scope),
            "via": via,
            "task_id": task_id,
            "expires_in": terms.lifetime(expires_in),
            "max_depth": max_depth,
            "max_calls": max_calls,
            "audience": terms.names(audience),
        }
        try:
            begun = self.read(self._link.request(asked))
        except EncodeError as error:  # a value that no hop can have
            message = f"a delegation can't have these terms: {error}"
            raise DelegationError(message, code="hop.malformed") from error
        if lender.token is not None:
            _make_room(self._tokens)
            tokens = (lender.token, lender.via_token)
            kept = [None if token is None else Secret(token.encode()) for token in tokens]
            self._tokens[begun.chain.dumps()] = (kept[0], kept[1])
        return begun

    def resume(self, stored: bytes) -> Delegation:
        """Take up what ``Delegation.dumps`` wrote; raises as ``Guard.resume`` does."""
        return self._resume(stored, may_be_revoked=False)

    def take_up(self, stored: bytes) -> Delegation:
        """Take up what ``Delegation.dumps`` wrote, revoked or not."""
        return self._resume(stored, may_be_revoked=True)

    def _resume(self, stored: object, *, may_be_revoked: bool) -> Delegation:
        if not isinstance(stored, bytes | bytearray | str):
            message = f"expected what Delegation.dumps wrote, got a {type(stored).__name__}"
            raise DecodeError(message, code="chain.malformed")
        data = stored.encode() if isinstance(stored, str) else bytes(stored)
        asked = {"op": "resume", "may_be_revoked": may_be_revoked, **self._shown(data)}
        with refusing(data):
            return self.read(self._link.request(asked, data))

    def _shown(self, stored: object) -> dict[str, str | None]:
        """Return the tokens of a stored delegation that began here.

        A server that was started anew does not know what this process has proved before.
        """
        kept = self._tokens.get(stored, ()) if isinstance(stored, bytes) else ()
        return {
            name: None if token is None else token.reveal().decode()
            for name, token in zip(_TOKENS, kept, strict=False)
        }

    def read(self, answer: Frame) -> Delegation:
        """Return the delegation that an answer of the server brings, with its chain.

        Raises ``DecodeError`` or ``VerificationError`` for a chain that does not verify.
        """
        described, (encoded,) = answer.header, answer.blobs
        # the clock of this machine may be a little behind the server's
        at = max(int(time.time()), int(described["issued_at"]))
        chain = verification.from_json(canonical.loads_object(encoded), self._trust, at=at)
        delegation = Delegation(chain, _held_by_server, values.texts(described["scope"]))
        digest = delegation.key[0]
        _make_room(self._kept)
        self._kept[digest] = (self._link.generation, delegation)
        return delegation

    def claim(self, refused: object) -> Claim | None:
        """Return whose delegation is refused (``AgentguardError.delegation``)."""
        given = refused.chain if isinstance(refused, Delegation) else refused
        return claim_of(given, self._trust, at=int(time.time()))

    def known(self, digest: str) -> Delegation | None:
        """Return a delegation that this process has; None for another."""
        kept = self._kept.get(digest)
        return None if kept is None else kept[1]

    def fetch(self, digest: str) -> Delegation:
        """Return a delegation that the server names, and that this process does not have yet."""
        return self.read(self._link.request({"op": "chain", "id": digest}))

    def name(self, current: Delegation | DelegationError | None, *, is_lost: bool) -> Any:
        """Return how a call names its delegation to the server.

        A delegation that the present session does not know, or has forgotten (``is_lost``), is
        taken up there first. The chain of an agent can't be taken up: the call is then refused.
        """
        if isinstance(current, DelegationError):
            return self._refused(current, current.delegation)
        if current is None:
            return None
        digest = current.key[0]
        kept = self._kept.get(digest)
        is_known = kept is not None and kept[0] == self._link.generation and not is_lost
        if is_lost and not current.chain.leaf.is_asserted:
            message = "the guard server holds this delegation no more: it was started anew"
            return self._refused(DelegationError(message, code="delegation.holder"), current)
        if not is_known and current.chain.leaf.is_asserted:
            try:
                self.take_up(current.chain.dumps())
            except ServerError:
                raise
            except AgentguardError as error:  # the server records the refused call
                return self._refused(error, current)
        return {"id": digest, "scope": list(current.scope)}

    def _refused(self, error: AgentguardError, delegation: object) -> dict[str, Any]:
        """Return how a call names a delegation that is refused: the error, and whose it is."""
        if isinstance(delegation, Delegation):
            delegation = delegation.chain.dumps()
        shown = self._shown(delegation)
        if isinstance(delegation, bytes):
            delegation = delegation.decode("utf-8", "replace")
        return {"code": error.code, "message": str(error), "delegation": delegation, **shown}


def _make_room(kept: dict[Any, Any]) -> None:
    if len(kept) >= MAX_KEPT:
        del kept[next(iter(kept))]


def _held_by_server(_now: datetime) -> Holder:
    message = "the key that hands this delegation on is in the guard server"
    raise DelegationError(message, code="delegation.holder")


def current_delegation(
    delegation: Delegation | DelegationError | None,
) -> Delegation | DelegationError | None:
    """Return ``delegation``, or the one in force here; an error where that one has ended."""
    if delegation is not None:
        return delegation
    try:
        current = context.in_force()
    except DelegationError as error:
        return error
    return current if isinstance(current, Delegation) else None
