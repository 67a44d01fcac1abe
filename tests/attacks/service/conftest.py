"""One token service, for the attacks that leave the service as it was."""

from __future__ import annotations

from asked_service import credential, key, service

__all__ = ["credential", "key", "service"]
