"""A chain of hops: from the principal whom the issuer vouches for to the agent that acts.

A chain is begun and extended here, and verified, offline, long after: each hop is signed by the one
to whom the hop before it went, under the rules of ``link.py``. An agent's name is believed from the
credential that travels along.

Hops that the issuer signs in the place of a delegatee without a key of its own (a service) are
signed with the issuer's key of that moment, so that a delegation outlives a rotation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agentguard.delegation import grant as grants
from agentguard.delegation import link
from agentguard.delegation.grant import Grant, Hop
from agentguard.errors import AgentguardError, DecodeError, DelegationError, VerificationError
from agentguard.identity import credential
from agentguard.identity.credential import Credential
from agentguard.identity.trust import TrustDocument
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import JSON
from agentguard.signing.keys import PublicKey, Signer

TYPE: Final = "urn:agentguard:chain:v1"
"""The ``type`` of a chain that is kept or sent by itself."""

DEFAULT_DEPTH: Final = 8
"""The most hops of a chain, where nobody says otherwise."""

MAX_CREDENTIALS: Final = 2 * grants.MAX_DEPTH


@dataclass(frozen=True, slots=True)
class Chain:
    """The hops of a delegation, issued here or verified; at least one.

    ``credentials`` are those of the agents in it, in the order in which they are needed: each
    agent's at the time of the hop that it was given, and of the hop that it has signed.
    """

    hops: tuple[Hop, ...]
    credentials: tuple[Credential, ...] = ()

    @property
    def root(self) -> Grant:
        """The first hop, which the issuer has signed for the principal."""
        return self.hops[0].grant

    @property
    def leaf(self) -> Grant:
        """The last hop: what may be done, and by whom."""
        return self.hops[-1].grant

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) over the signing inputs of the hops, one after another."""
        return digest([hop.token for hop in self.hops])

    @property
    def principal(self) -> str:
        """For whom all of it is."""
        return self.root.principal

    @property
    def via(self) -> str | None:
        """The service through which it was lent; None for the application itself."""
        first = self.root
        return None if first.delegatee == first.delegator else first.delegatee

    @property
    def members(self) -> tuple[str, ...]:
        """The principal, and every delegatee after it."""
        return (self.principal, *(hop.grant.delegatee for hop in self.hops))

    @property
    def actors(self) -> list[str]:
        """The delegatees by the names that are the same for all of an agent's instances."""
        return [
            f"agent:{credential.agent_name(one)}" if grants.is_agent(one) else one
            for one in self.members[1:]
        ]

    @property
    def names(self) -> frozenset[str]:
        """All by which it can be revoked: its members, their names and keys, and its hops."""
        hops = [hop.grant for hop in self.hops]
        keys = {hop.key_id for hop in hops if not hop.asserted}  # that one is the issuer's
        return frozenset(keys.union(self.members, self.actors, (hop.jti for hop in hops)))

    @property
    def issuer_keys(self) -> frozenset[str]:
        """The ids of the issuer's keys under which it verifies."""
        signed = [hop.token for hop in self.hops if hop.grant.depth == 1 or self._is_asserted(hop)]
        signed += [issued.token for issued in self.credentials]
        return frozenset(grants.key_id(token) for token in signed)

    def _is_asserted(self, hop: Hop) -> bool:
        return self.hops[hop.grant.depth - 2].grant.asserted

    def check(self, at: int) -> None:
        """Check that every hop counts at a time (seconds since the epoch).

        Raises ``VerificationError`` (``hop.expired``, ``hop.not_yet_valid``).
        """
        for hop in self.hops:
            link.check_time(hop.grant, at)

    @property
    def limits(self) -> list[tuple[str, int]]:
        """The hops that allow a number of calls only: ``(jti, max_calls)``."""
        found = ((hop.grant.jti, hop.grant.max_calls) for hop in self.hops)
        return [(jti, most) for jti, most in found if most is not None]

    def as_json(self) -> dict[str, JSON]:
        """Return the tokens that ``verify`` takes."""
        return {
            "hops": [hop.token for hop in self.hops],
            "credentials": [issued.token for issued in self.credentials],
        }

    def dumps(self) -> bytes:
        """Write the chain as a file of its own, in canonical form."""
        return canonical.dumps({"type": TYPE, **self.as_json()})


@dataclass(frozen=True, slots=True)
class Terms:
    """What a principal lends, and to whom first.

    ``via`` None is the application itself, which a chain names by the trust domain's URI; an empty
    ``audience`` is the trust domain. ``expires_in`` is in seconds.
    """

    principal: str
    scope: tuple[str, ...]
    via: str | None = None
    task_id: str | None = None
    audience: tuple[str, ...] = ()
    expires_in: int = 3600
    max_depth: int = DEFAULT_DEPTH
    max_calls: int | None = None


def begin(issuer: Signer, trust_domain: str, terms: Terms, *, now: int, jti: str) -> Chain:
    """Let the issuer vouch for the first hop; raises ``DelegationError`` for what can't be lent."""
    domain = f"spiffe://{trust_domain}"
    grants.require_terms(
        now=now,
        expires_in=terms.expires_in,
        task_id=terms.task_id,
        max_depth=terms.max_depth,
        max_calls=terms.max_calls,
        audience=terms.audience,
    )
    first = Grant(
        delegator=domain,
        principal=grants.principal(terms.principal),
        delegatee=domain if terms.via is None else grants.principal(terms.via, "service"),
        key_id=issuer.key_id,
        scope=grants.scopes(terms.scope),
        audience=tuple(sorted(set(terms.audience))) or (domain,),
        issued_at=now,
        expires_at=now + terms.expires_in,
        jti=jti,
        task_id=terms.task_id,
        depth=1,
        max_depth=terms.max_depth,
        max_calls=terms.max_calls,
        parent=None,
        assurance="application",
        asserted=True,
    )
    return Chain((_issued(first, issuer),))


def extend(
    chain: Chain,
    signer: Signer,
    delegatee: Credential,
    *,
    by: Credential | None,
    scope: Iterable[str],
    now: int,
    jti: str,
) -> Chain:
    """Hand on to ``delegatee``, an agent instance, what ``scope`` says of what the chain grants.

    ``signer`` is who holds the chain: the agent of the last hop, with its credential ``by``, or the
    issuer (None) where that asserts it. Raises ``DelegationError``: ``invalid_scope``,
    ``delegation.depth``, ``delegation.expired``, ``delegation.holder``, and so on.
    """
    parent = chain.hops[-1]
    held = parent.grant
    hop = Grant(
        delegator=held.delegatee,
        principal=held.principal,
        delegatee=delegatee.uri,
        key_id=delegatee.key.thumbprint,
        scope=grants.scopes(scope),
        audience=held.audience,
        issued_at=now,
        expires_at=held.expires_at,
        jti=jti,
        task_id=held.task_id,
        depth=held.depth + 1,
        max_depth=held.max_depth,
        max_calls=None,  # those of the hops before count every call anyway
        parent=parent.digest,
        assurance=None,
        asserted=False,
    )
    # which key is the issuer's, whoever verifies knows
    holds = by is None if held.asserted else by is not None and signer.key_id == held.key_id
    if not holds:
        message = f"only {held.delegatee} can hand on what it was given"
        raise DelegationError(message, code="delegation.holder")
    try:
        link.check_link(parent, hop)
        link.check_narrowing(held, hop)
    except VerificationError as error:
        raise DelegationError(str(error), code=_REFUSALS.get(error.code, error.code)) from error
    credentials = list(chain.credentials)
    for agent in (by, delegatee):
        if agent is not None and not any(_covers(known, agent, now) for known in credentials):
            credentials.append(agent)
    return Chain((*chain.hops, _issued(hop, signer)), tuple(credentials))


def _covers(known: Credential, agent: Credential, at: int) -> bool:
    """Whether a credential that is there already shows who an agent was at a time."""
    return known.uri == agent.uri and known.issued_at <= at < known.expires_at


_REFUSALS: Final = {
    "hop.scope": "invalid_scope",  # RFC 6749, 5.2; RFC 8693, 2.2.2
    "hop.depth": "delegation.depth",
    "hop.expiry": "delegation.expired",
}


def _issued(grant: Grant, signer: Signer) -> Hop:
    """Sign a grant that a verifier takes; raises ``DelegationError``."""
    try:
        return grants.verify(grants.sign(grant, signer).token, signer.public_key)
    except AgentguardError as error:
        raise DelegationError(str(error), code=_REFUSALS.get(error.code, error.code)) from error


def digest(tokens: Sequence[str]) -> str:
    """Return ``Chain.sha256`` of hops in their signed form, unverified."""
    signed = (token.rpartition(".")[0].encode() for token in tokens)
    return hashlib.sha256(b"".join(signed)).hexdigest()


def loads(data: bytes, trust: TrustDocument, *, at: int) -> Chain:
    """Read and verify what ``Chain.dumps`` wrote; raises as ``verify`` does."""
    match canonical.loads_object(data):
        case {"type": "urn:agentguard:chain:v1", **members}:
            return from_json(members, trust, at=at)
    raise _malformed(f"expected a JSON object of the type {TYPE}")


def from_json(members: Mapping[str, JSON], trust: TrustDocument, *, at: int) -> Chain:
    """Verify a chain in its JSON form, which may come from anywhere; raises as ``verify`` does."""
    match members:
        case {"hops": [*hops], "credentials": [*credentials], **others} if not others:
            return verify(_texts(hops), _texts(credentials), trust, at=at)
    raise _malformed("expected hops and credentials, and no more")


def verify(
    hops: Sequence[str], credentials: Sequence[str], trust: TrustDocument, *, at: int
) -> Chain:
    """Verify every hop, and every link between two, as of ``at`` (seconds since the epoch).

    Raises ``DecodeError`` (``chain.malformed``, ``hop.malformed``, ...) and ``VerificationError``:
    ``hop.issuer``, ``hop.key``, ``hop.parent``, ``hop.subject``, ``hop.task``, ``hop.scope``,
    ``hop.expiry``, ``hop.depth``, ``hop.audience``, ``hop.calls``, ``hop.repeated``, ``hop.name``,
    ``hop.expired``, ``hop.not_yet_valid``, ``chain.credential``, ``credential.*``, ``key.*``,
    ``signature.invalid``. None of them is checked before the signature that it stands under.
    """
    if not (_is_list(hops) and _is_list(credentials)):
        raise _malformed("hops and credentials are lists")
    if not 1 <= len(hops) <= grants.MAX_DEPTH or len(credentials) > MAX_CREDENTIALS:
        raise _malformed(f"a chain has 1 to {grants.MAX_DEPTH} hops")
    wallet = _Wallet(_texts(credentials), trust)
    verified: list[Hop] = []
    for place, token in enumerate(hops):
        try:
            parent = verified[-1] if verified else None
            verified.append(_verified(token, parent, trust, wallet, at))
            link.check_time(verified[-1].grant, at)
        except DecodeError as error:
            raise DecodeError(f"hop {place + 1}: {error}", code=error.code) from error
        except VerificationError as error:
            raise VerificationError(f"hop {place + 1}: {error}", code=error.code) from error
    if len({hop.grant.jti for hop in verified}) < len(verified):
        raise VerificationError("two hops have one jti", code="hop.repeated")
    return Chain(tuple(verified), wallet.all_needed())


def _verified(
    token: str, parent: Hop | None, trust: TrustDocument, wallet: _Wallet, at: int
) -> Hop:
    """Verify one hop, under the key of the one who was given the hop before it."""
    kid = grants.key_id(token)
    issued_at = jws.parse(token).claims().get("iat")
    if not canonical.is_integer(issued_at):
        raise DecodeError("not a hop grant: it names no iat in whole seconds", code="hop.malformed")
    if parent is None or parent.grant.asserted:
        hop = grants.verify(token, issuer_key(trust, kid, issued_at=issued_at, at=at))
    else:
        key = wallet.key(parent.grant.delegatee, parent.grant.key_id, at=issued_at)
        hop = grants.verify(token, key)
    if parent is None:
        link.check_root(hop.grant, trust)
    else:
        link.check_link(parent, hop.grant)
        link.check_narrowing(parent.grant, hop.grant)
        wallet.require(hop.grant)
    return hop


def issuer_key(trust: TrustDocument, kid: str, *, issued_at: int, at: int) -> PublicKey:
    """Return the issuer's key under which something from ``issued_at`` counts at the time ``at``.

    From when on it is stolen, nothing that a key has signed counts, whatever date that bears: a
    thief writes an old one. Raises ``VerificationError`` (``key.*``).
    """
    trusted = trust.trusted("issuer", kid)
    trusted.check(issued_at)
    since = trusted.compromised_since
    if since is not None and at >= since:
        message = f"the issuer key {kid} is compromised: what it has signed counts no more"
        raise VerificationError(message, code="key.compromised")
    return trusted.key


class _Wallet:
    """The credentials that came with a chain; each must be needed, and is verified when it is."""

    def __init__(self, tokens: Sequence[str], trust: TrustDocument) -> None:
        self._tokens = tokens
        self._trust = trust
        self._subjects: dict[str, JSON] = {}
        self._needed: dict[str, Credential] = {}

    def key(self, uri: str, key_id: str, *, at: int) -> PublicKey:
        """Return the key of an agent that had a credential at a time."""
        return self._find(uri, key_id, at).key

    def require(self, given: Grant) -> None:
        """See that the agent to whom a hop went had a credential then."""
        self._find(given.delegatee, given.key_id, given.issued_at)

    def _find(self, uri: str, key_id: str, at: int) -> Credential:
        reason: AgentguardError | None = None
        for token in self._tokens:
            if self._claimed_subject(token) != uri:
                continue
            try:
                found = credential.verify(token, self._trust, at=at)
            except (DecodeError, VerificationError) as error:
                reason = error
                continue
            if found.key.thumbprint == key_id:
                self._needed[token] = found
                return found
        message = f"no credential of {uri} that was valid then came with it"
        code = "chain.credential" if reason is None else reason.code
        raise VerificationError(message if reason is None else str(reason), code=code)

    def _claimed_subject(self, token: str) -> JSON:
        """Return whose credential a token says to be, unverified: it only chooses among them."""
        if token not in self._subjects:
            self._subjects[token] = jws.parse(token).claims().get("sub")
        return self._subjects[token]

    def all_needed(self) -> tuple[Credential, ...]:
        """Return the credentials, in their order; raises where one of them is not needed."""
        if list(self._needed) != list(dict.fromkeys(self._tokens)) or len(self._needed) != len(
            self._tokens
        ):
            message = "a credential came with it that nothing needs, or not in their order"
            raise VerificationError(message, code="chain.credential")
        return tuple(self._needed.values())


def _texts(items: Sequence[JSON]) -> list[str]:
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) != len(items):
        raise _malformed("its hops and credentials are compact JWS")
    return texts


def _is_list(value: object) -> bool:
    """Whether a value is a list or a tuple: a text is a sequence as well, of letters."""
    return isinstance(value, list | tuple)


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a chain: {problem}", code="chain.malformed")
