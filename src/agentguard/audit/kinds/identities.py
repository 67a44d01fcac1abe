"""Who acts, for whom, and who has stopped: credentials, delegations, surrenders, log-outs."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, cast

from agentguard.audit.entry import Content, Entry, Here, Record, parse_time
from agentguard.audit.summary import Summary
from agentguard.delegation import grant, verification
from agentguard.delegation.chain import Chain, hops_digest
from agentguard.delegation.grant import Grant
from agentguard.errors import AgentguardError, DecodeError, VerificationError
from agentguard.identity import credential, jwt, logout_token
from agentguard.identity.credential import Credential
from agentguard.identity.login import LogOut
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import JSON, Fragment, b64url_decode, is_integer
from agentguard.signing.keys import PublicKey

if TYPE_CHECKING:
    from agentguard.audit.contents import ContentsVerifier
    from agentguard.audit.state import State

WINDOW: Final = 60
"""How many seconds a proof may be older than the entry.

The token service takes a proof for half as long (``proof.dpop``), and then writes the entry.
"""

_PROOF_TYPE: Final = "dpop+jwt"
_PARTS: Final = 3


class IdentityEntry(Entry):
    """An agent instance has this credential (a compact JWS) from now on."""

    kind: ClassVar[str] = "identity"
    credential: str

    @classmethod
    def new(cls, issued: Credential, *, at: str) -> Record:
        """Return the entry."""
        return cls(at=at, credential=issued.token).record()

    @cached_property
    def agent(self) -> str:
        """The URI of the instance, unverified; raises ``DecodeError``."""
        subject = jws.parse(self.credential).claims().get("sub")
        if isinstance(subject, str):
            return subject
        raise DecodeError("a credential names no agent instance", code="entry.malformed")

    @property
    def key_id(self) -> str:
        """The id of the issuer's key that is named as the signer's."""
        return str(jws.parse(self.credential).header.get("kid"))

    @property
    def summary(self) -> Summary:
        """The columns: the instance."""
        return Summary(self.kind, self.at, agent=self.agent)

    def read(self) -> None:
        """Read whose credential it is."""
        _ = self.agent

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check the credential, and note it."""
        log.credentials.add(credential.verify(self.credential, log.trust, at=here.at))
        return Content(self.summary)


class DelegationEntry(Entry):
    """Somebody delegates to an agent instance: the signed hops of the chain, and credentials."""

    kind: ClassVar[str] = "delegation"
    chain: dict[str, Any]

    @classmethod
    def new(cls, chain: Chain, *, at: str) -> Record:
        """Return the entry."""
        members = chain.as_json()
        encoded = cls(at=at, chain=cast("Any", Fragment(canonical.dumps(members))))
        record = encoded.record(about=_of_hop(cls.kind, chain.leaf, at))
        return record._replace(entry=cls(at=at, chain=members))

    @cached_property
    def hops(self) -> tuple[Grant, ...]:
        """The hops of the chain, at least one, unverified.

        Raises ``DecodeError`` or ``VerificationError``.
        """
        hops, _credentials = tokens_of_chain(self.chain)
        if not hops:
            raise DecodeError("a delegation entry keeps a chain", code="entry.malformed")
        return tuple(map(grant.read, hops))

    @property
    def leaf(self) -> Grant:
        """The last hop, unverified; raises as ``hops`` does."""
        return self.hops[-1]

    @property
    def sha256(self) -> str:
        """The digest of the chain, unverified."""
        return hops_digest(tokens_of_chain(self.chain)[0])

    @property
    def summary(self) -> Summary:
        """The columns: the instance, for whom, and the task."""
        return _of_hop(self.kind, self.leaf, self.at)

    @property
    def words(self) -> str:
        """What the agent may do, and for whom."""
        return f"it may do {' '.join(self.leaf.scope) or 'nothing'} for {self.leaf.principal}"

    def read(self) -> None:
        """Read the hops."""
        _ = self.hops

    def verified(self, trust: TrustDocument, at: int) -> Chain:
        """Return the chain, verified as of ``at`` (seconds since the epoch).

        Raises ``DecodeError`` or ``VerificationError``.
        """
        return verification.from_json(self.chain, trust, at=at)

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check the chain, and note it."""
        chain = self.verified(log.trust, here.at)
        log.chains[chain.sha256] = chain
        return Content(_of_hop(self.kind, chain.leaf, self.at))

    def change(self, state: State) -> None:
        """The calls under the chain are counted, where its hops limit their number."""
        tokens = tokens_of_chain(self.chain)[0]
        digests = [hops_digest(tokens[:length]) for length in range(1, len(tokens) + 1)]
        state.limit(list(zip(digests, self.hops, strict=True)))


class SurrenderEntry(Entry):
    """An agent instance gives up a delegation: its last ``hop``, and a DPoP ``proof``.

    Nobody acts under the delegation again. No administrator signs: the evidence is the last hop,
    which the issuer has signed, and the instance's own proof of the request (RFC 9449), which the
    key in that hop has signed. So
    nobody but the instance gives up what it holds. The proof names the access token by a hash
    alone: who has stolen the log's key can put a proof of the instance beside another hop of the
    same instance, unless that hop is younger than the proof. RFC 7009; RFC 9449.
    """

    kind: ClassVar[str] = "surrender"
    hop: str
    proof: str

    @cached_property
    def given_up(self) -> Grant:
        """The hop, unverified, whose key has signed the proof; raises ``DecodeError``.

        The proof is at most ``WINDOW`` seconds older than the hop.
        """
        try:
            hop = grant.read(self.hop)
            signed = self._signed
        except AgentguardError as error:
            raise DecodeError(f"not a surrender: {error}", code="entry.malformed") from error
        if hop.is_asserted or hop.key_id != signed.key_id:
            message = "not a surrender: the proof is of another key than the hop's"
            raise DecodeError(message, code="entry.malformed")
        if hop.issued_at > self.latest:
            message = "not a surrender: the proof is older than the hop"
            raise DecodeError(message, code="entry.malformed")
        return hop

    @property
    def latest(self) -> int:
        """The latest time at which the holder's proof counted, in seconds since the epoch.

        Whoever moves the entry to a later place moves no proof.
        """
        return self._signed.at + WINDOW

    @cached_property
    def _signed(self) -> _Signed:
        return _signed(self.proof)

    @property
    def summary(self) -> Summary:
        """The columns: the instance, for whom, and the task."""
        return _of_hop(self.kind, self.given_up, self.at)

    @property
    def words(self) -> str:
        """For whom nobody acts any more."""
        return f"the agent has given up what it may do for {self.given_up.principal}"

    def read(self) -> None:
        """Read the hop, and the holder's proof."""
        _ = self.given_up

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Check that the issuer has signed the hop, and note its end."""
        require_issued(self.hop, log.trust, log.latest_time)
        log.surrenders.append((self.given_up.jti, min(here.at, self.latest)))
        return Content(self.summary)

    def change(self, state: State) -> None:
        """Nobody acts under the hop."""
        state.surrender(self.given_up.jti, self.given_up.expires_at)


class LogOutEntry(Entry):
    """A user has logged out at a provider, which has signed the log-out token.

    The service verified the token before the entry was written. The log's key vouches for this:
    the provider's keys of that time need not be known any more. Who has them can verify the token
    again (log.md).
    """

    kind: ClassVar[str] = "logout"
    token: str

    @cached_property
    def logout(self) -> LogOut:
        """What the provider says, unverified; raises ``DecodeError`` (``entry.malformed``)."""
        try:
            return logout_token.read(jwt.parse(self.token).claims)
        except (DecodeError, VerificationError) as error:
            raise DecodeError(f"not a log-out: {error}", code="entry.malformed") from error

    @property
    def words(self) -> str:
        """Who has logged out, and where."""
        logout = self.logout
        which = "all log-ins" if logout.session is None else f"the log-in {logout.session}"
        whose = "" if logout.subject is None else f" of {logout.subject}"
        return f"{logout.issuer} has ended {which}{whose}"

    def read(self) -> None:
        """Read the token."""
        _ = self.logout

    def check(self, log: ContentsVerifier, here: Here) -> Content:
        """Note which log-ins have ended."""
        log.logouts.append((self.logout, here.at))
        return Content(self.summary)

    def change(self, state: State) -> None:
        """Nobody acts for these log-ins."""
        state.log_out(self.logout, parse_time(self.at))


def tokens_of_chain(members: JSON) -> tuple[list[str], list[str]]:
    """Return the hops and the credentials in the members of a chain, unverified."""
    match members:
        case {"hops": [*hops], "credentials": [*credentials]}:
            return list(map(str, hops)), list(map(str, credentials))
    return [], []


def require_issued(hop: str, trust: TrustDocument, at: int) -> None:
    """Raise unless a key of the issuer that counts at the time ``at`` has signed a hop.

    The token service gives an instance such a hop. An agent could choose the id of a hop that the
    agent itself signs, and so the id of somebody else's hop. Raises ``DecodeError``, and
    ``VerificationError`` (``key.*``, ``signature.invalid``, ...).
    """
    kid, issued_at = grant.key_id(hop), jws.claimed(hop).issued_at
    if issued_at is None:
        raise DecodeError("the hop names no iat in whole seconds", code="hop.malformed")
    grant.verify(hop, verification.issuer_key(trust, kid, issued_at=issued_at, at=at))


def _of_hop(kind: str, hop: Grant, at: str) -> Summary:
    agent, principal = hop.delegatee, hop.principal
    return Summary(kind, at, agent=agent, principal=principal, task_id=hop.task_id)


class _Signed(NamedTuple):
    """Who has signed a proof (thumbprint), and when (seconds since the epoch)."""

    key_id: str
    at: int


def _signed(proof: str) -> _Signed:
    """Return who has signed a DPoP proof of a request to give up, and when (RFC 9449, 4.2).

    Raises ``DecodeError``, ``KeyMaterialError`` or ``VerificationError``.
    """
    parts = proof.split(".", _PARTS)
    if len(parts) != _PARTS or not proof.isascii():
        raise DecodeError("a proof is a compact JWS", code="jws.malformed")
    header = canonical.loads_object(b64url_decode(parts[0]))
    claims = canonical.loads_object(b64url_decode(parts[1]))
    if header.get("typ") != _PROOF_TYPE or not _is_of_surrender(claims):
        raise DecodeError("the proof is of another request", code="jws.malformed")
    jwk = header.get("jwk")
    key = PublicKey.from_jwk(jwk if isinstance(jwk, dict) else {})
    key.verify(b64url_decode(parts[2]), f"{parts[0]}.{parts[1]}".encode("ascii"))
    issued_at = claims.get("iat")
    if not is_integer(issued_at):
        raise DecodeError("the proof has no time", code="jws.malformed")
    return _Signed(key.thumbprint, issued_at)


def _is_of_surrender(claims: dict[str, JSON]) -> bool:
    """Whether the claims are of a request to give up one access token, which ``ath`` names."""
    is_request = claims.get("htm") == "POST" and str(claims.get("htu")).endswith("/revoke")
    return is_request and isinstance(claims.get("ath"), str)
