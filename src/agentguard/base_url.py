"""The base URL of a service that the configuration names: an OPA server, a vault."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?")


def parse(url: str) -> SplitResult | None:
    """Return the parts of a base URL; None for a text that is none.

    A base URL is ASCII, begins with ``http`` or ``https``, and has a host. It has no user, no
    password, no query, no fragment, and no part of its path that begins with a dot (RFC 3986).
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    is_base = (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and url.isascii()
        and parts.username is None
        and parts.password is None
        and "?" not in url
        and "#" not in url
        and _PATH.fullmatch(parts.path) is not None
    )
    return parts if is_base else None


def is_loopback(parts: SplitResult) -> bool:
    """Whether the service is on this machine, with no network between."""
    host = parts.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
