"""The trust document: the public keys that a verifier trusts, and the time of each.

``agentguard trust export`` writes the document. A verifier of a log or of evidence has the document
beforehand, and never takes it from the state under verification.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Final, Literal, get_args

from agentguard.errors import DecodeError, KeyMaterialError, VerificationError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON, is_integer
from agentguard.signing.keys import PublicKey

Use = Literal["issuer", "log", "admin", "approver"]

DOCUMENT_TYPE: Final = "urn:agentguard:trust:v1"
"""The member ``type`` of a trust document."""

_USES: Final[Mapping[str, Use]] = {use: use for use in get_args(Use)}

LATEST: Final = 253_402_300_799
"""The latest time of a token or a hop, in seconds since the epoch: the end of the year 9999."""


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key with its use and its time; times are seconds since the epoch."""

    use: Use
    key: PublicKey
    not_before: int
    not_after: int | None = None
    compromised_since: int | None = None

    def check(self, at: int) -> None:
        """Raise ``VerificationError`` unless the key is valid at ``at`` (seconds since the epoch).

        The codes are ``key.expired`` and ``key.compromised``.
        """
        if at < self.not_before or (self.not_after is not None and at >= self.not_after):
            message = f"the {self.use} key {self.key.thumbprint} was not valid then"
            raise VerificationError(message, code="key.expired")
        if self.compromised_since is not None and at >= self.compromised_since:
            message = f"the {self.use} key {self.key.thumbprint} was compromised by then"
            raise VerificationError(message, code="key.compromised")

    def as_json(self) -> dict[str, JSON]:
        """Return the key as a member of the document's list ``keys``."""
        return {
            "use": self.use,
            "kid": self.key.thumbprint,
            "jwk": {**self.key.jwk()},
            "not_before": self.not_before,
            "not_after": self.not_after,
            "compromised_since": self.compromised_since,
        }


@dataclass(frozen=True, slots=True)
class TrustDocument:
    """The keys of a trust domain, and the name of its log: the origin of its checkpoints."""

    trust_domain: str
    log: str
    keys: tuple[TrustedKey, ...]

    def key(self, use: Use, kid: str, *, at: int) -> PublicKey:
        """Return the key ``kid`` for ``use``, valid at ``at`` (seconds since the epoch).

        Raises ``VerificationError``: ``key.unknown``, ``key.expired``, ``key.compromised``.
        """
        trusted = self.trusted_key(use, kid)
        trusted.check(at)
        return trusted.key

    def trusted_key(self, use: Use, kid: str) -> TrustedKey:
        """Return the key ``kid`` for ``use``, valid or not.

        Raises ``VerificationError`` (``key.unknown``).
        """
        for trusted in self.keys:
            if trusted.use == use and trusted.key.thumbprint == kid:
                return trusted
        message = f"{kid} is no {use} key of {self.trust_domain}"
        raise VerificationError(message, code="key.unknown")

    def keys_for(self, use: Use) -> Iterable[TrustedKey]:
        """Yield the keys for one use, valid or not."""
        return (trusted for trusted in self.keys if trusted.use == use)

    def current(self, use: Use) -> list[PublicKey]:
        """Return the keys for one use that have no end and are not compromised."""
        return [
            trusted.key
            for trusted in self.keys_for(use)
            if trusted.not_after is None and trusted.compromised_since is None
        ]

    def rotated(
        self, old: PublicKey, new: PublicKey, *, now: int, until: int, compromised_since: int | None
    ) -> TrustDocument:
        """Return a document in which ``new`` replaces ``old``, for the same use, from ``now`` on.

        ``old`` stays valid for signatures before ``until`` and, if ``compromised_since`` is not
        None, before that. Times are seconds since the epoch. Raises ``VerificationError``
        (``key.unknown``).
        """
        keys: list[TrustedKey] = []
        for trusted in self.keys:
            if trusted.key == old:
                ended = replace(trusted, not_after=until, compromised_since=compromised_since)
                keys += [ended, TrustedKey(trusted.use, new, now)]
            else:
                keys.append(trusted)
        if len(keys) == len(self.keys):
            message = f"{old.thumbprint} is no key of {self.trust_domain}"
            raise VerificationError(message, code="key.unknown")
        return replace(self, keys=tuple(keys))

    def revoked(self, kid: str, *, compromised_since: int) -> TrustDocument:
        """Return a document in which a rotated-out key is compromised since a time.

        ``kid`` is the key's thumbprint; ``compromised_since`` is in seconds since the epoch. Raises
        ``VerificationError``: ``key.unknown``, ``key.current`` for a key without an end,
        ``key.compromised`` for a key that is compromised since that time or earlier already.
        """
        revoked = [trusted for trusted in self.keys if trusted.key.thumbprint == kid]
        if not revoked:
            message = f"{kid} is no key of {self.trust_domain}: see agentguard keys list"
            raise VerificationError(message, code="key.unknown")
        for trusted in revoked:
            since = trusted.compromised_since
            if since is not None and since <= compromised_since:
                message = f"the {trusted.use} key {kid} counts for nothing since then already"
                raise VerificationError(message, code="key.compromised")
            if trusted.not_after is None and since is None:
                message = (
                    f"{kid} is the {trusted.use} key in force: agentguard keys rotate "
                    f"{trusted.use} --compromised-since puts a new one in its place"
                )
                raise VerificationError(message, code="key.current")
        ended = tuple(
            replace(trusted, compromised_since=compromised_since) if trusted in revoked else trusted
            for trusted in self.keys
        )
        return replace(self, keys=ended)

    def dumps(self) -> bytes:
        """Encode the document in canonical JSON."""
        keys: list[JSON] = [trusted.as_json() for trusted in self.keys]
        document: dict[str, JSON] = {
            "type": DOCUMENT_TYPE,
            "trust_domain": self.trust_domain,
            "log": self.log,
            "keys": keys,
        }
        return canonical.dumps(document)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 (hex) of the file that ``trust export`` writes, for people to compare."""
        return hashlib.sha256(self.dumps() + b"\n").hexdigest()

    @classmethod
    def loads(cls, data: bytes) -> TrustDocument:
        """Decode a document; raises ``DecodeError`` (``json.*``, ``trust.malformed``)."""
        if not isinstance(data, str | bytes):  # the cache needs a hashable key
            raise DecodeError("JSON is text, or its bytes", code="json.malformed")
        return _loads(data)


@lru_cache(maxsize=16)
def _loads(data: bytes) -> TrustDocument:
    """Decode a document, with a cache: a guard compares the same document again and again."""
    document = canonical.loads_object(data)
    match document:
        case {
            "type": "urn:agentguard:trust:v1",
            "trust_domain": str(trust_domain),
            "log": str(log),
            "keys": [*keys],
        } if len(document) == 4:  # noqa: PLR2004  the four members above, and no other
            return TrustDocument(trust_domain, log, tuple(_parse_key(key) for key in keys))
    raise _malformed("expected type, trust_domain, log and keys")


def _parse_key(value: JSON) -> TrustedKey:
    match value:
        case {
            "use": str(use),
            "kid": str(kid),
            "jwk": dict(jwk),
            "not_before": not_before,
            "not_after": not_after,
            "compromised_since": compromised_since,
        } if (
            use in _USES
            and is_integer(not_before)
            and (not_after is None or is_integer(not_after))
            and (compromised_since is None or is_integer(compromised_since))
        ):
            try:
                key = PublicKey.from_jwk(jwk)
            except (DecodeError, KeyMaterialError) as error:
                raise _malformed(f"key {kid!r}: {error}") from error
            if key.thumbprint != kid:
                raise _malformed(f"key {kid!r} has the thumbprint {key.thumbprint}")
            return TrustedKey(_USES[use], key, not_before, not_after, compromised_since)
    raise _malformed("a key needs use, kid, jwk, not_before, not_after and compromised_since")


def _malformed(problem: str) -> DecodeError:
    return DecodeError(f"not a trust document: {problem}", code="trust.malformed")


def seconds(moment: datetime) -> int:
    """Return the whole seconds since the epoch of an aware time."""
    return int(moment.timestamp())
