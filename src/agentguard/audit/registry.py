"""The registry of a log's shards: the issuer's signed list of them.

A shard that the registry names and the state lacks was removed. A shard is registered after its
opening entry, which the issuer signs too, is durable. So a shard with one entry that the registry
does not name is no finding.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from agentguard.call.invocation import timestamp
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity.trust import TrustDocument, seconds
from agentguard.signing import canonical, dsse
from agentguard.signing.canonical import JSON
from agentguard.signing.dsse import Envelope
from agentguard.signing.keys import Signer


class Registry(NamedTuple):
    """The numbers of a log's shards, as of a time (RFC 3339)."""

    shards: frozenset[int]
    at: str


def seal_registry(issuer: Signer, trust: TrustDocument, shards: Iterable[int], *, at: str) -> bytes:
    """Return the signed registry of ``trust.log``: a DSSE envelope, as canonical JSON."""
    numbers: list[JSON] = [*sorted(shards)]
    predicate: dict[str, JSON] = {
        "trust_domain": trust.trust_domain,
        "log": trust.log,
        "shards": numbers,
        "at": at,
    }
    subject = canonical.sha256_hex(trust.log.encode())
    statement = dsse.statement("registry", subject, "log", predicate)
    return canonical.dumps(dsse.seal(statement, issuer).as_json())


def verify_registry(data: bytes, trust: TrustDocument) -> Registry:
    """Return the registry that an issuer of ``trust`` has signed for its log.

    Raises ``DecodeError`` (``registry.malformed``, ``json.*``, ``dsse.*``) and
    ``VerificationError`` (``signature.*``, ``key.*``, ``registry.log`` for another log's).
    """
    envelope = Envelope.parse(canonical.loads_canonical(data))
    predicate = dsse.parse_statement(envelope.payload, "registry").predicate
    match predicate:
        case {
            "trust_domain": str(),
            "log": str(log),
            "shards": [*shards],
            "at": str(at),
            **others,
        } if not others:
            numbers = frozenset(number for number in shards if type(number) is int and number >= 0)
        case _:
            raise _malformed("expected trust_domain, log, shards and at")
    if shards != sorted(numbers):
        raise _malformed("its shards are not numbers in their order")
    try:
        moment = datetime.fromisoformat(at)
        is_canonical_time = timestamp(moment) == at
    except (ValueError, OverflowError) as error:
        raise _malformed("its time is not RFC 3339") from error
    if not is_canonical_time:
        raise _malformed("its time is not written as agentguard writes it, in UTC")
    if not envelope.signatures:
        raise VerificationError("the registry is not signed", code="signature.missing")
    envelope.verify(trust.key("issuer", envelope.signatures[0][0], at=seconds(moment)))
    if log != trust.log:
        message = f"expected the registry of {trust.log}, found another log's"
        raise VerificationError(message, code="registry.log")
    return Registry(numbers, at)


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a registry of shards: {problem}", code="registry.malformed")
