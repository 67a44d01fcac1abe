"""URLs of an issuer: https, or http on this machine alone.

Unlike a base URL (``base_url.py``), such a URL may have a query and ``/.well-known/``.
"""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from agentguard import base_url
from agentguard.errors import ConfigError


def address_of(url: str, key: str) -> SplitResult:
    """Return the parts of a URL; ``key`` names the URL in the configuration, for the message.

    Raises ``ConfigError`` for a URL that is neither https nor http on loopback, or that has a user,
    a password or a fragment.
    """
    parts = _split(url)
    if parts is None:
        # The message does not repeat the URL, which may hold a password.
        message = (
            f"{key}: expected a URL such as 'https://issuer.example/jwks.json', without user, "
            "password and fragment"
        )
        raise ConfigError(message)
    if parts.scheme == "http" and not base_url.is_loopback(parts):
        message = (
            f"{key}: others on the network could change what http brings: begin the URL with "
            "https; http is for a server on this machine"
        )
        raise ConfigError(message)
    return parts


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    is_plain = url.isascii() and url.isprintable() and " " not in url and "#" not in url
    has_user = parts.username is not None or parts.password is not None
    if not is_plain or has_user or parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    return parts
