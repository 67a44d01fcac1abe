"""One token service, for all tests that only ask the service."""

from __future__ import annotations

from asked_service import credential, key, service

__all__ = ["credential", "key", "service"]
