"""A receiver without a server, and real proofs for its requests that a test may alter.

``check`` verifies a request as the receiver does. ``refused`` returns the reason code.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tool_servers import guard_in_memory, listed, proof_of

from agentguard import Guard
from agentguard.call.releases import RequestProof
from agentguard.errors import ProofError
from agentguard.proof import ProofStore, Receiver, RequestCaller
from agentguard.signing import jws
from agentguard.signing.canonical import JSON, b64url_decode, b64url_encode, dumps, loads_object
from agentguard.signing.keys import Ed25519Signer

URL = "https://payments.example"
_SIGNERS: list[Ed25519Signer] = []
BODY = b'{"amount":3}'


class Sent(NamedTuple):
    """A request as a server receives it; the proof is that of ``POST /pay?currency=EUR``."""

    headers: list[tuple[str, str]]
    method: str = "POST"
    path: str = "/pay"
    query: str = "currency=EUR"
    body: bytes = BODY


class ProofScene:
    """A guard, and the receiver ``URL``, whose clock the test may set (``clock``)."""

    def __init__(self, folder: Path, guard: Guard | None = None, **more: Any) -> None:
        self.guard = guard or guard_in_memory()
        self.folder = folder
        self.clock = time.time
        self.more = more
        self.receiver = self.new_receiver()

    def new_receiver(self, url: str = URL, **more: Any) -> Receiver:
        """Return another receiver with the same store, as another worker has."""
        store = ProofStore(self.folder / "proofs.sqlite")
        given = {"clock": self._now, **self.more, **more}
        return Receiver(url, self.guard.trust, store, **given)

    def _now(self) -> float:
        return self.clock()

    def prove(self, **terms: Any) -> RequestProof:
        return proof_of(self.guard, f"{URL}/pay?currency=EUR", BODY, **terms)

    def request(self, **changed: str | None) -> Sent:
        """Return a new request with its proof; ``changed`` replaces headers by their names."""
        return Sent(listed(self.prove(), **changed))


def check(receiver: Receiver, sent: Sent) -> RequestCaller:
    return receiver.verify(sent.method, sent.path, sent.query, sent.headers, sent.body)


def refused(receiver: Receiver, sent: Sent) -> str:
    with pytest.raises(ProofError) as caught:
        check(receiver, sent)
    return caught.value.code


def with_header(sent: Sent, name: str, value: str | None) -> Sent:
    """Return a request with another value of a header, or without the header (None)."""
    kept = [(other, old) for other, old in sent.headers if other != name]
    return sent._replace(headers=kept if value is None else [*kept, (name, value)])


def header(sent: Sent, name: str) -> str:
    return dict(sent.headers)[name]


def resigned(
    token: str, signer: Ed25519Signer, claims: Mapping[str, JSON], header: Mapping[str, JSON]
) -> str:
    """Return a token with some claims and members of the header replaced, signed by ``signer``."""
    old_header, old_claims = decoded(token)
    parts = [dumps({**old_header, **header}), dumps({**old_claims, **claims})]
    signed = ".".join(map(b64url_encode, parts))
    return f"{signed}.{b64url_encode(signer.sign(signed.encode()))}"


def decoded(token: str) -> tuple[dict[str, JSON], dict[str, JSON]]:
    """Return the header and the claims of a token, also of one whose header has a key."""
    header, claims = (loads_object(b64url_decode(part)) for part in token.split(".")[:2])
    return header, claims


def noting_signers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Note the keys that are made meanwhile: for a fixture of tests that use ``signer_of``."""
    made = Ed25519Signer.from_seed

    def noting(seed: bytes) -> Ed25519Signer:
        _SIGNERS.append(made(seed))
        return _SIGNERS[-1]

    monkeypatch.setattr(Ed25519Signer, "from_seed", staticmethod(noting))
    yield
    _SIGNERS.clear()


def signer_of(access_token: str) -> Ed25519Signer:
    """Return the signer of the instance that an access token names: what nobody else has.

    A test signs with it what a careless agent would sign.
    """
    agent = str(jws.parse(access_token).claims()["client_id"])
    return next(one for one in _SIGNERS if agent.endswith(one.key_id))
