"""Verifies, offline, a chain from another process: each signature, each link, each credential.

The delegatee of one hop signs the next hop, under the rules of ``attenuation.py``. A verifier
believes an agent's name from the agent's credential alone, so a chain brings the credentials of its
agents. ``chain_issuance.py`` makes chains; ``access_token.py`` verifies the token that carries a
chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from agentguard.delegation import attenuation, grant
from agentguard.delegation.chain import CHAIN_TYPE, Chain
from agentguard.delegation.grant import MAX_DEPTH, Grant, Hop
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import JSON
from agentguard.signing.keys import PublicKey

MAX_CREDENTIALS: Final = 2 * MAX_DEPTH
"""The most credentials of a chain.

An agent may need two: the credential of the time at which the agent receives a hop, and a newer
credential of the time at which the agent signs the next hop.
"""


def loads(data: bytes, trust: TrustDocument, *, at: int) -> Chain:
    """Decode and verify what ``Chain.dumps`` encodes; raises as ``verify`` does."""
    match canonical.loads_object(data):
        case {"type": "urn:agentguard:chain:v1", **members}:
            return from_json(members, trust, at=at)
    raise _malformed(f"expected a JSON object of the type {CHAIN_TYPE}")


def from_json(
    members: Mapping[str, JSON], trust: TrustDocument, *, at: int, may_have_ended: bool = False
) -> Chain:
    """Verify a chain in the form of ``Chain.as_json``; raises as ``verify`` does."""
    match members:
        case {"hops": [*hops], "credentials": [*credentials], **others} if not others:
            tokens = _texts(hops), _texts(credentials)
            return verify(*tokens, trust, at=at, may_have_ended=may_have_ended)
    raise _malformed("expected hops and credentials, and no more")


def verify(
    hops: Sequence[str],
    credentials: Sequence[str],
    trust: TrustDocument,
    *,
    at: int,
    may_have_ended: bool = False,
) -> Chain:
    """Verify every hop, and every link between two, as of ``at`` (seconds since the epoch).

    A chain that ``may_have_ended`` says who delegated, and gives no authority: the times of its
    hops are not compared with ``at``.

    Raises ``DecodeError`` (``chain.malformed``, ``hop.malformed``, ...) and ``VerificationError``:
    ``hop.issuer``, ``hop.key``, ``hop.parent``, ``hop.subject``, ``hop.task``, ``hop.scope``,
    ``hop.expiry``, ``hop.depth``, ``hop.audience``, ``hop.calls``, ``hop.repeated``, ``hop.name``,
    ``hop.expired``, ``hop.not_yet_valid``, ``chain.credential``, ``credential.*``, ``key.*``,
    ``signature.invalid``. A hop's claims are checked only after the hop's signature.
    """
    if not (_is_list(hops) and _is_list(credentials)):
        raise _malformed("hops and credentials must be lists")
    if not 1 <= len(hops) <= MAX_DEPTH or len(credentials) > MAX_CREDENTIALS:
        raise _malformed(
            f"expected 1 to {MAX_DEPTH} hops, and at most {MAX_CREDENTIALS} credentials"
        )
    carried = _CarriedCredentials(_texts(credentials), trust)
    verified: list[Hop] = []
    for place, token in enumerate(hops, start=1):
        parent = verified[-1] if verified else None
        try:
            hop = _verify_hop(token, parent, trust, carried, at)
            if not may_have_ended:
                attenuation.check_time(hop.grant, at)
        except DecodeError as error:
            raise DecodeError(f"hop {place}: {error}", code=error.code) from error
        except VerificationError as error:
            raise VerificationError(f"hop {place}: {error}", code=error.code) from error
        verified.append(hop)
    if len({hop.grant.jti for hop in verified}) < len(verified):
        raise VerificationError("two hops have one jti", code="hop.repeated")
    return Chain(tuple(verified), carried.all_needed())


def issuer_key(trust: TrustDocument, kid: str, *, issued_at: int, at: int) -> PublicKey:
    """Return the issuer key ``kid``, valid at ``issued_at`` and not compromised at ``at``.

    A stolen key's signature counts for nothing, whatever date the signed token bears: the thief
    writes an old date. Raises ``VerificationError`` (``key.*``).
    """
    trusted = trust.trusted_key("issuer", kid)
    trusted.check(issued_at)
    since = trusted.compromised_since
    if since is not None and at >= since:
        message = f"the issuer key {kid} is compromised: what it has signed counts no more"
        raise VerificationError(message, code="key.compromised")
    return trusted.key


def _verify_hop(
    token: str, parent: Hop | None, trust: TrustDocument, carried: _CarriedCredentials, at: int
) -> Hop:
    """Verify one hop, under the key of the delegatee of the hop before."""
    kid = grant.key_id(token)
    issued_at = jws.claimed(token).issued_at
    if issued_at is None:
        raise DecodeError("not a hop grant: it names no iat in whole seconds", code="hop.malformed")
    if parent is None or parent.grant.is_asserted:
        key = issuer_key(trust, kid, issued_at=issued_at, at=at)
    else:
        key = carried.find(parent.grant, at=issued_at).key
    hop = grant.verify(token, key)
    if parent is None:
        attenuation.check_root(hop.grant, trust)
    else:
        attenuation.check_link(parent, hop.grant)
        attenuation.check_narrowing(parent.grant, hop.grant)
        carried.find(hop.grant, at=hop.grant.issued_at)
    return hop


class _CarriedCredentials:
    """The credentials that a chain brings; each must be needed, and is verified at its first use.

    A credential may be verified more than once, at the several times that a chain needs it.
    """

    def __init__(self, tokens: Sequence[str], trust: TrustDocument) -> None:
        self._tokens = tokens
        self._trust = trust
        self._needed: dict[str, Credential] = {}

    def find(self, hop: Grant, *, at: int) -> Credential:
        """Return the credential that a hop's delegatee had at the time ``at``."""
        reason: AgentguardError | None = None
        for token in self._tokens:
            if jws.claimed(token).subject != hop.delegatee:  # it only selects a candidate
                continue
            try:
                verified = credential.verify(token, self._trust, at=at)
            except (DecodeError, VerificationError) as error:
                reason = error
                continue
            if verified.key.thumbprint == hop.key_id:
                self._needed[token] = verified
                return verified
        message = f"the chain brings no credential of {hop.delegatee} valid when a hop was signed"
        code = "chain.credential" if reason is None else reason.code
        raise VerificationError(message if reason is None else str(reason), code=code)

    def all_needed(self) -> tuple[Credential, ...]:
        """Return the credentials, in the order in which the hops need them.

        Raises ``VerificationError`` for a credential that no hop needs, that is listed twice, or
        that is out of order.
        """
        if [*self._needed] != [*self._tokens]:  # _needed has a repeated token once
            message = "the chain brings a credential that no hop needs, or credentials out of order"
            raise VerificationError(message, code="chain.credential")
        return tuple(self._needed.values())


def _texts(items: Sequence[JSON]) -> list[str]:
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) != len(items):
        raise _malformed("every hop and credential must be a compact JWS")
    return texts


def _is_list(value: object) -> bool:
    """Whether a value is a list or a tuple; a text would be a sequence of letters."""
    return isinstance(value, list | tuple)


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a chain: {problem}", code="chain.malformed")
