"""Receipts (``typ: ag-receipt+jwt``): a tool's server signs what it has answered to a request.

A receipt is bound to the proof of the request, and to the status, the body and some headers of the
answer (``COVERED``). The client knows the server's keys beforehand, and takes none from an answer.
``answers.py`` makes receipts in a server; ``httpx.py`` and ``requests.py`` verify them in a client.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from agentguard.errors import (
    AgentguardError,
    ConfigError,
    DecodeError,
    ProofError,
    VerificationError,
)
from agentguard.proof.target import Target, parse_audience
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import JSON, is_integer, is_sha256
from agentguard.signing.keys import PublicKey, Signer

TYPE: Final = "ag-receipt+jwt"
"""The ``typ`` of a receipt."""

HEADER: Final = "Agentguard-Receipt"
"""The header of an answer with a receipt."""

MAX_ANSWER: Final = 1024 * 1024
"""The longest body of an answer that gets a receipt, in bytes."""

MAX_RECEIPT: Final = 4 * 1024
"""The longest receipt, in characters."""

COVERED: Final = ("content-encoding", "content-type", "location")
"""The headers of an answer that a receipt covers: how to read the body, and where to go on."""

_CLAIMS: Final = frozenset({"iss", "iat", "prf", "status", "hdg", "bdg"})


class Answer(NamedTuple):
    """An answer: the status, and digests (SHA-256, hex).

    They are of the request's proof, of the headers ``COVERED`` (``of``), and of the body.
    """

    proof_sha256: str
    status: int
    headers_sha256: str
    body_sha256: str

    @classmethod
    def of(
        cls, proof_sha256: str, status: int, headers: Iterable[tuple[str, str]], body: bytes
    ) -> Answer:
        """Return the answer with these headers (names in any case) and this body, still encoded.

        The digest of the headers is that of a canonical JSON object (RFC 8785): by the name of each
        header of ``COVERED``, the list of its values in their order.
        """
        values: dict[str, list[str]] = {name: [] for name in COVERED}
        for name, value in headers:
            values.get(name.lower(), []).append(value.strip())
        digest = canonical.sha256_hex(canonical.dumps(values))
        return cls(proof_sha256, status, digest, canonical.sha256_hex(body))


class VerifiedReceipt(NamedTuple):
    """A verified receipt: the compact JWS, and the thumbprint of the key (RFC 7638)."""

    token: str
    key_id: str
    proof_sha256: str


class SignedAnswer(NamedTuple):
    """What a receipt says, signed: the URL of the server, the answer, and the key's thumbprint."""

    server: str
    answer: Answer
    key_id: str


def mint(answer: Answer, signer: Signer, *, server: str, at: int) -> str:
    """Sign a receipt of ``answer``; ``at`` is in seconds since the epoch.

    ``server`` is the URL within which the server takes requests (``Target.uri``). Raises what the
    signer raises.
    """
    claims: dict[str, JSON] = {
        "iss": server,
        "iat": at,
        "prf": answer.proof_sha256,
        "status": answer.status,
        "hdg": answer.headers_sha256,
        "bdg": answer.body_sha256,
    }
    return jws.sign(claims, signer, typ=TYPE)


def verify(
    token: str, answer: Answer, keys: Sequence[PublicKey], *, server: str
) -> VerifiedReceipt:
    """Verify that the server at the URL ``server``, which has ``keys``, has signed this answer.

    Raises ``ProofError``: ``receipt.malformed``, ``receipt.key`` for a signature of none of the
    keys, ``receipt.mismatch`` for the receipt of another server, request or answer.
    """
    signed = verify_signature(token, keys)
    if (signed.server, signed.answer) != (server, answer):
        message = "the receipt is of another server, of another request or of another answer"
        raise ProofError(message, code="receipt.mismatch")
    return VerifiedReceipt(token, signed.key_id, answer.proof_sha256)


def verify_signature(token: str, keys: Sequence[PublicKey]) -> SignedAnswer:
    """Return what a receipt says, once its signature holds under one of ``keys``.

    For whoever has the receipt and not the answer. Raises ``ProofError``: ``receipt.malformed``,
    ``receipt.key`` for a signature of none of the keys.
    """
    if len(token) > MAX_RECEIPT:
        raise ProofError("the receipt is too long", code="receipt.malformed")
    key, claims = _signed(token, keys)
    if claims.keys() == _CLAIMS and is_integer(claims["iat"]) and is_integer(claims["status"]):
        server, *digests = (claims[name] for name in ("iss", "prf", "hdg", "bdg"))
        if isinstance(server, str) and all(map(is_sha256, digests)):
            proof, headers, body = digests
            answer = Answer(proof, claims["status"], headers, body)
            return SignedAnswer(server, answer, key.thumbprint)
    raise ProofError("the claims are not those of a receipt", code="receipt.malformed")


def _signed(token: str, keys: Sequence[PublicKey]) -> tuple[PublicKey, Mapping[str, Any]]:
    for key in keys:
        try:
            return key, jws.verify(token, key, typ=TYPE).claims()
        except DecodeError as error:
            raise ProofError(f"not a receipt: {error}", code="receipt.malformed") from error
        except VerificationError as error:
            if error.code != "signature.invalid":
                raise ProofError(f"not a receipt: {error}", code="receipt.malformed") from error
    message = "the receipt is signed by none of the server's keys: ask the server for its key"
    raise ProofError(message, code="receipt.key")


class ReceiptKeys:
    """The keys of the servers that have to sign their answers, by the URL of each audience.

    A key is a line in the form of OpenSSH (``ssh-ed25519 ...``), as in ``id_ed25519.pub``. Raises
    ``ConfigError`` for a URL that is none of ``audiences``, and for a server without a usable key.
    """

    def __init__(self, keys: Mapping[str, Iterable[str]], audiences: Iterable[str]) -> None:
        self._keys: dict[Target, tuple[PublicKey, ...]] = {}
        named = set(audiences)
        for url, lines in keys.items():
            if url not in named:
                raise ConfigError(f"{url!r} has keys of receipts, and is no audience here")
            self._keys[parse_audience(url)] = public_keys(url, lines)

    def wants(self, base: Target) -> bool:
        """Whether a server has to sign its answers."""
        return base in self._keys

    def require_no_redirect(self, first: Target | None, found: Target | None) -> None:
        """Raise ``ProofError`` (``receipt.redirect``) for a redirect between two audiences.

        ``first`` is the audience of the first request, ``found`` that of the next one; None is
        elsewhere. Nobody signs the answer of one server for another, and a request that is not
        proved has no receipt.
        """
        for base, way in ((first, "out of"), (found, "from elsewhere to")):
            if base is not None and self.wants(base):
                message = (
                    f"a redirect leads {way} {base.uri}, which has to sign its answers: send the "
                    "request to the right URL"
                )
                raise ProofError(message, code="receipt.redirect")

    def verify(self, base: Target, token: str, answer: Answer) -> VerifiedReceipt:
        """Verify the receipt of a server; raises ``ProofError``."""
        return verify(token, answer, self._keys[base], server=base.uri)


def missing(status: int) -> ProofError:
    """Return the error for an answer without a receipt."""
    message = f"the server has answered {status} without a receipt, which it has to sign"
    return ProofError(message, code="receipt.missing")


def public_keys(owner: str, lines: Iterable[str]) -> tuple[PublicKey, ...]:
    """Return the keys in ``lines``, each in the form of OpenSSH (``ssh-ed25519 ...``).

    ``owner`` says in an error whose keys they are. Raises ``ConfigError``, also for no keys.
    """
    listed = [] if isinstance(lines, str) else list(lines)
    try:
        keys = tuple(map(PublicKey.from_openssh, listed))
    except AgentguardError as error:
        raise ConfigError(f"a key of {owner!r} can't be used: {error}") from error
    if not keys:
        raise ConfigError(f"{owner!r} needs a list of keys, each a line ssh-ed25519 ...")
    return keys
