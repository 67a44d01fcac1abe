"""Proof at the tool's side: a tool's HTTP server verifies by itself who calls, and for whom.

``verification.py`` verifies a request, ``receiver.py`` has what a server knows beforehand, and
``asgi.py`` and ``fastapi.py`` put both into an application. ``presentation.py`` gets a proof from
the guard inside a running call, and ``httpx.py`` and ``requests.py`` send the proof with requests.
``dpop.py``, ``target.py``, ``bound_request.py`` and ``headers.py`` have the formats, and
``call_proof.py`` that of requests of the Model Context Protocol, which ``agentguard_mcp`` sends and
receives.
The names here are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentguard.errors import ProofError

if TYPE_CHECKING:
    from agentguard.proof.asgi import CallerMiddleware
    from agentguard.proof.presentation import proof_headers, prove_call, prove_request
    from agentguard.proof.receiver import CallReceiver, Receiver
    from agentguard.proof.verification import RequestCaller, UnknownChainError
    from agentguard.storage.published_revocations import PublishedRevocations
    from agentguard.store.proof_store import ProofStore

__all__ = [
    "CallReceiver",
    "CallerMiddleware",
    "ProofError",
    "ProofStore",
    "PublishedRevocations",
    "Receiver",
    "RequestCaller",
    "UnknownChainError",
    "proof_headers",
    "prove_call",
    "prove_request",
]

_HOMES = {
    "CallReceiver": "agentguard.proof.receiver",
    "CallerMiddleware": "agentguard.proof.asgi",
    "ProofStore": "agentguard.store.proof_store",
    "PublishedRevocations": "agentguard.storage.published_revocations",
    "Receiver": "agentguard.proof.receiver",
    "RequestCaller": "agentguard.proof.verification",
    "UnknownChainError": "agentguard.proof.verification",
    "proof_headers": "agentguard.proof.presentation",
    "prove_call": "agentguard.proof.presentation",
    "prove_request": "agentguard.proof.presentation",
}
"""In which module each name stands that is imported at its first use."""

if not TYPE_CHECKING:  # a type checker reads the imports above, and finds a name that is misspelt

    def __getattr__(name: str) -> Any:
        """Import a name of the public API at its first use."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value
