"""Call proofs (``typ: ag-call+jwt``): an agent instance proves that an MCP request is its own.

The Model Context Protocol has no headers on a pipe. So the tokens and the proof are members of
``_meta`` in the parameters of the request, and the proof is bound to the parameters as a JSON
value. ``bound_request.py`` has the proof of an HTTP request. The module knows JSON-RPC values
alone, and no SDK of the protocol (docs/adr/0043-a-call-over-mcp-proves-its-caller.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from agentguard.call.releases import RequestRecord
from agentguard.errors import EncodeError, ProofError
from agentguard.proof import dpop, headers
from agentguard.proof.bound_request import VerifiedProof
from agentguard.proof.headers import PresentedCaller
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import JSON, is_sha256
from agentguard.signing.keys import PublicKey, Signer

TYPE: Final = "ag-call+jwt"
"""The ``typ`` of a call proof."""

TOKEN: Final = "dev.agentguard/token"  # noqa: S105  the name of a member
CREDENTIAL: Final = "dev.agentguard/credential"
CHAIN: Final = "dev.agentguard/chain"
PROOF: Final = "dev.agentguard/proof"

MEMBERS: Final = frozenset({TOKEN, CREDENTIAL, CHAIN, PROOF})
"""The members of ``_meta`` that say who calls."""

UNBOUND: Final = MEMBERS | {
    "progressToken",
    "traceparent",
    "tracestate",
    "baggage",
    "io.modelcontextprotocol/protocolVersion",
    "io.modelcontextprotocol/clientInfo",
    "io.modelcontextprotocol/clientCapabilities",
    "io.modelcontextprotocol/logLevel",
}
"""The members of ``_meta`` to which a proof is not bound: a gateway may write these anew."""

MAX_METHOD: Final = 128
"""The longest method, in characters."""

MAX_CHAIN_TEXT: Final = 64 * 1024
"""The longest chain in ``_meta``, in characters (``headers.encode_chain``)."""

MAX_TOKEN: Final = 4 * 1024
"""The longest access token, credential and proof, in characters."""

_CLAIMS: Final = frozenset({"aud", "iat", "jti", "wth", "ath", "mth", "mdg", "inv"})
_HEADER: Final = frozenset({"alg", "typ"})
_LIMITS: Final = {
    TOKEN: MAX_TOKEN,
    CREDENTIAL: MAX_TOKEN,
    PROOF: MAX_TOKEN,
    CHAIN: MAX_CHAIN_TEXT,
}


class BoundCall(NamedTuple):
    """What a proof is bound to: the server, the method, and the SHA-256 (hex) of the parameters."""

    audience: str
    method: str
    params_sha256: str

    @classmethod
    def of(cls, audience: str, method: object, params: object) -> BoundCall:
        """Return the bound parts of a request; raises ``ProofError`` (``proof.malformed``)."""
        return cls.of_digest(audience, method, params_digest(params))

    @classmethod
    def of_digest(cls, audience: str, method: object, params_sha256: object) -> BoundCall:
        """Return the bound parts of a request with this digest of parameters; raises as ``of``."""
        if not isinstance(method, str) or not 1 <= len(method) <= MAX_METHOD:
            raise _malformed(f"the method of a request has 1 to {MAX_METHOD} characters")
        if not method.isascii() or not method.isprintable():
            raise _malformed("the method of a request is printable ASCII")
        if not is_sha256(params_sha256):
            raise _malformed("the digest of the parameters is 64 hex digits")
        return cls(audience, method, params_sha256)

    @property
    def record(self) -> RequestRecord:
        """What a log says of the request: the name of the server is in the place of a URL."""
        return RequestRecord(self.method, self.audience, None, self.params_sha256)

    def verify(
        self, token: str, *, credential: str | None, access_token: str, at: int
    ) -> VerifiedProof:
        """Verify a proof of this request as of ``at`` (seconds since the epoch).

        ``credential`` is a verified Workload Identity Token, and ``access_token`` the token in the
        request. Raises as ``jws.verify`` does, and ``ProofError``: ``proof.malformed``,
        ``proof.audience`` for another server, ``proof.expired`` for a time outside of
        ``dpop.WINDOW``, ``proof.token`` for a proof of another token, ``proof.request`` for one of
        another method or of other parameters.
        """
        assert credential is not None  # noqa: S101  ``read`` refuses a request without one
        confirmed: Any = jws.parse(credential).claims().get("cnf")
        jwk: Any = confirmed.get("jwk") if isinstance(confirmed, dict) else None
        if not isinstance(jwk, dict):
            raise _malformed("the credential names no key")
        key = PublicKey.from_jwk(jwk)
        verified = jws.verify(token, key, typ=TYPE)
        if verified.header.keys() != _HEADER or verified.header["alg"] != jwk.get("alg"):
            raise _malformed("the header is not alg and typ, with the alg of the credential's key")
        claims = verified.claims()
        jti, invocation = claims.get("jti"), claims.get("inv")
        if claims.keys() != _CLAIMS or not jws.is_jti(jti) or not is_sha256(invocation):
            raise _malformed("the claims are not those of a call proof")
        expires_at = dpop.proof_end(claims["iat"], at)
        if claims["aud"] != self.audience:
            raise ProofError("the proof is for another server", code="proof.audience")
        hashes = claims["wth"], claims["ath"]
        if hashes != (dpop.token_hash(credential), dpop.token_hash(access_token)):
            message = "the proof is for another credential, or for another access token"
            raise ProofError(message, code="proof.token")
        if (claims["mth"], claims["mdg"]) != (self.method, self.params_sha256):
            message = "the proof is for another method or for other parameters"
            raise ProofError(message, code="proof.request")
        return VerifiedProof(jti, key.thumbprint, expires_at, invocation)


def params_digest(params: object) -> str:
    """Return the SHA-256 (hex) of the parameters of a request in canonical form (RFC 8785).

    ``params`` is a JSON object, or None for none. The members of ``_meta`` in ``UNBOUND`` are left
    out, and then an empty ``_meta``. Raises ``ProofError`` (``proof.malformed``) for parameters
    without a canonical form. The message names the argument of the tool that has none.
    """
    bound = dict(_object(params, "the parameters of a request"))
    meta = {name: value for name, value in meta_of(bound).items() if name not in UNBOUND}
    bound.pop("_meta", None)
    if meta:
        bound["_meta"] = meta
    try:
        return canonical.digest(bound)
    except EncodeError as error:
        message = f"{_place(bound)} can't be proved, because its value has no canonical form"
        raise ProofError(f"{message}: {error}", code="proof.malformed") from error


def meta_of(params: object) -> Mapping[str, JSON]:
    """Return ``_meta`` of the parameters of a request, empty for none.

    Raises ``ProofError`` (``proof.malformed``) where the parameters or ``_meta`` are no object.
    """
    return _object(_object(params, "the parameters of a request").get("_meta"), "_meta")


def _object(value: object, name: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(type(member) is str for member in value):
        raise _malformed(f"{name} is no JSON object")
    return value


def _place(params: Mapping[str, JSON]) -> str:
    """Return the name of the first parameter without a canonical form, an argument if it is one."""
    for name, value in params.items():
        if _is_encodable({name: value}):
            continue
        if name == "arguments" and isinstance(value, Mapping):
            for argument, inner in value.items():
                if not _is_encodable({argument: inner}):
                    return f"the argument {argument!r}"
        return f"the parameter {name!r}"
    return "the request"


def _is_encodable(value: object) -> bool:
    try:
        canonical.dumps(value)
    except EncodeError:
        return False
    return True


def read(params: object) -> PresentedCaller:
    """Return what the parameters of a request say about the caller, unverified.

    Raises ``ProofError``: ``proof.missing`` where a member of ``_meta`` is missing, and
    ``proof.malformed`` for a member that is too long or has another form.
    """
    meta = meta_of(params)
    found: dict[str, str] = {}
    for name in MEMBERS & meta.keys():
        value = meta[name]
        if not isinstance(value, str) or len(value) > _LIMITS[name]:
            raise _malformed(f"{name} is no text, or is too long")
        if name != CHAIN and not headers.is_compact_jws(value):
            raise _malformed(f"{name} is no compact JWS")
        found[name] = value
    if found.keys() != MEMBERS:
        message = "the request has no access token with its chain, a credential and a proof"
        raise ProofError(message, code="proof.missing")
    return PresentedCaller("call", found[TOKEN], found[PROOF], found[CREDENTIAL], found[CHAIN])


def mint(
    call: BoundCall,
    signer: Signer,
    *,
    credential: str,
    access_token: str,
    invocation_sha256: str,
    now: int,
    jti: str,
) -> str:
    """Sign a proof that ``call`` belongs to the authorised call ``invocation_sha256`` (hex).

    ``credential`` is the Workload Identity Token of the signer's key. ``now`` is in seconds since
    the epoch; the proof ends ``dpop.WINDOW`` seconds later.
    """
    claims: dict[str, JSON] = {
        "aud": call.audience,
        "iat": now,
        "jti": jti,
        "wth": dpop.token_hash(credential),
        "ath": dpop.token_hash(access_token),
        "mth": call.method,
        "mdg": call.params_sha256,
        "inv": invocation_sha256,
    }
    return jws.sign(claims, signer, typ=TYPE)


def _malformed(problem: str) -> ProofError:
    return ProofError(problem, code="proof.malformed")
