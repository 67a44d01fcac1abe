"""The endpoints of an issuer: its key set, and its token endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agentguard.http.endpoint import Endpoint, Wanted
from agentguard.issuers.address import address_of

TIMEOUT: Final = 5.0
"""Seconds of a whole request, from the connection to the end of the answer."""

_MEDIA_TYPES: Final = ("application/json", "application/jwk-set+json")


def endpoint_of(url: str, key: str, ca: Path | None, timeout: float = TIMEOUT) -> Endpoint:
    """Return the endpoint at a URL of an issuer; ``key`` names the URL in the configuration.

    ``ca`` is a file with the certificates that are trusted, None for the system's. Raises
    ``ConfigError`` for a URL or a ``ca`` that can't be used.
    """
    address = address_of(url, key)
    target = f"{address.path or '/'}{'?' if address.query else ''}{address.query}"
    return Endpoint(address, target, Wanted(key, _MEDIA_TYPES), ca, timeout)
