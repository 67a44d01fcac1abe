"""The headers of a request that carry the caller's tokens, the proof and the chain.

The reading is strict: each header once at most, each value in its one form, and no more bytes than
such values have. The names are lower-case here, as HTTP/2 and ASGI write names.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from agentguard.errors import DecodeError, ProofError
from agentguard.proof.dpop import MAX_PROOF
from agentguard.signing.canonical import b64url_decode, b64url_encode

AUTHORIZATION: Final = "authorization"
CREDENTIAL: Final = "workload-identity-token"
PROOF: Final = "dpop"
CHAIN: Final = "agentguard-chain"

NAMES: Final = frozenset({AUTHORIZATION, CREDENTIAL, PROOF, CHAIN})
"""The headers that say who calls."""

MAX_CHAIN_HEADER: Final = 6 * 1024
"""The longest chain that a header carries, in characters; a longer chain is sent by itself."""

MAX_CHAIN: Final = 64 * 1024
"""The longest chain, in bytes of JSON."""

CHAINS_PATH: Final = "/.well-known/agentguard/chains/"
"""Where a receiver takes a chain (``PUT``); the digest of the chain (SHA-256, hex) follows."""

MAX_AUTHORIZATION: Final = 4 * 1024 + len("DPoP ")
"""The longest header with an access token or with a credential, in characters."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_LIMITS: Final = {CHAIN: MAX_CHAIN_HEADER, PROOF: MAX_PROOF}


Assurance = Literal["request", "dpop", "call"]
"""What a proof is bound to: a whole HTTP request, its method and path alone, or an MCP request."""


class PresentedCaller(NamedTuple):
    """What a request says about its caller, unverified.

    ``credential`` is None with the assurance ``dpop``. ``chain`` is the text of the header, or
    None. The assurance ``call`` is that of a request of the Model Context Protocol
    (``call_proof.py``).
    """

    assurance: Assurance
    access_token: str
    proof: str
    credential: str | None
    chain: str | None


def read(headers: Iterable[tuple[str, str]], *, accepts_plain_dpop: bool) -> PresentedCaller:
    """Return what the headers of a request say about the caller; names in any case.

    Raises ``ProofError``: ``proof.missing`` where a header is missing, ``proof.malformed`` for a
    header that comes twice, is too long or has another form.
    """
    found = _each_once(headers)
    scheme, _space, token = found.get(AUTHORIZATION, "").partition(" ")
    proof, credential = found.get(PROOF), found.get(CREDENTIAL)
    if scheme.lower() != "dpop" or proof is None or (credential is None and not accepts_plain_dpop):
        message = "the request has no access token with a credential and a proof"
        raise ProofError(message, code="proof.missing")
    tokens = [token, proof] if credential is None else [token, proof, credential]
    if not all(map(is_compact_jws, tokens)):
        raise _malformed("a header has no compact JWS")
    assurance: Assurance = "dpop" if credential is None else "request"
    return PresentedCaller(assurance, token, proof, credential, found.get(CHAIN))


def is_compact_jws(text: str) -> bool:
    """Whether a text has the form of a compact JWS; nothing is decoded."""
    return _TOKEN.fullmatch(text) is not None


def _each_once(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for written, value in headers:
        name = written.lower().replace("_", "-")  # a gateway may take one for the other
        if name not in NAMES:
            continue
        if name in found or written.lower() != name:
            raise _malformed("a header comes twice, or has an underscore in its name")
        if len(value) > _LIMITS.get(name, MAX_AUTHORIZATION):
            raise _malformed("a header is too long")
        found[name] = value
    return found


def encode_chain(chain: bytes) -> str:
    """Return a chain (``Chain.dumps``) in the form of the header: deflated, in base64url."""
    deflating = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b64url_encode(deflating.compress(chain) + deflating.flush())


def decode_chain(text: str) -> bytes:
    """Return the chain in a header, unverified; raises ``ProofError`` (``proof.malformed``)."""
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        chain = inflating.decompress(b64url_decode(text), MAX_CHAIN + 1)
    except (DecodeError, zlib.error) as error:
        raise _malformed("the chain is not deflated, or not in base64url") from error
    if len(chain) > MAX_CHAIN or not inflating.eof or inflating.unused_data:
        raise _malformed("the chain is too long, or is not whole")
    return chain


def _malformed(problem: str) -> ProofError:
    return ProofError(problem, code="proof.malformed")
