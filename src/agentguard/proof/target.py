"""``Target``: the URL of a request, in the one spelling in which a proof names the URL.

A target is compared byte for byte. So the parser accepts few spellings: it adds nothing, decodes
nothing, and refuses what a server could read in two ways.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from agentguard.errors import ConfigError, ProofError

MAX_URL: Final = 8192
"""The longest URL that is accepted, in characters."""

_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[!\"$->@-\[\]-~]*)?(?:\?(?P<query>[!\"$-~]*))?"
)
_PATH: Final = re.compile(r"(?:[^?%]|%[0-9A-Fa-f]{2})*")
_ENCODED: Final = re.compile(r"%(?:2e|2f|3b|5c)", re.IGNORECASE)
_CHARACTERS: Final = {"%2e": ".", "%2f": "/", "%3b": ";", "%5c": "\\"}
_NUL: Final = "%00"
_PORTS: Final = {"http": "80", "https": "443"}
_BYTE: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LOOPBACK: Final = re.compile(rf"localhost|127(?:\.{_BYTE}){{3}}|\[::1\]")
"""No other text: a number that is no address, as in 127.0.0.256, is a name for the resolver."""


class Target(NamedTuple):
    """A URL in parts: ``origin`` (scheme, host, and a port that is not the default), path, query.

    ``query`` is the text after the question mark, empty for none.
    """

    origin: str
    path: str
    query: str

    @classmethod
    def parse(cls, url: object) -> Target:
        """Return the parts of an absolute URL.

        The path has no NUL and no dot segment, also none that is encoded or has a parameter, which
        some servers would resolve. Raises ``ProofError`` (``proof.malformed``).
        """
        match = _URL.fullmatch(url) if isinstance(url, str) and len(url) <= MAX_URL else None
        if match is None:
            raise _malformed("expected an http or https URL without a user and a fragment")
        path = match["path"] or "/"
        if not _PATH.fullmatch(path) or _NUL in path or _has_dot_segment(path):
            raise _malformed("its path could be read in two ways")
        scheme, host, port = match["scheme"], match["host"].lower(), match["port"]
        is_default = port is None or port == _PORTS[scheme]
        return cls(
            f"{scheme}://{host}" + ("" if is_default else f":{port}"), path, match["query"] or ""
        )

    @property
    def uri(self) -> str:
        """The URL without the query: the ``htu`` of a DPoP proof."""
        return self.origin + self.path

    @property
    def is_encrypted(self) -> bool:
        """Whether the URL is ``https``."""
        return self.origin.startswith("https://")

    @property
    def is_protected(self) -> bool:
        """Whether nobody on the network can read a request: https, or this machine."""
        authority = self.origin.partition("://")[2]
        host = authority if authority.endswith("]") else authority.partition(":")[0]
        if authority.startswith("["):
            host = authority.partition("]")[0] + "]"
        return self.is_encrypted or _LOOPBACK.fullmatch(host) is not None

    def is_within(self, base: Target) -> bool:
        """Whether this URL has the origin of ``base``, and a path at or below that of ``base``."""
        prefix = base.path.rstrip("/")
        is_below = self.path == prefix or self.path.startswith(f"{prefix}/")
        return self.origin == base.origin and is_below and not base.query


def _has_dot_segment(path: str) -> bool:
    """Whether a server could find ``.`` or ``..`` among the segments of a path."""
    decoded = _ENCODED.sub(lambda match: _CHARACTERS[match[0].lower()], path)
    segments = re.split(r"[/\\]", decoded)
    return any(segment.partition(";")[0] in (".", "..") for segment in segments)


def audience_target(name: str) -> Target | None:
    """Return the URL that an audience of a delegation is, None for an audience that is no URL.

    A URL that does not protect a request (``Target.is_protected``) counts as none.
    """
    try:
        base = Target.parse(name)
    except ProofError:
        return None
    return base if base.is_protected and not base.query else None


def parse_audience(url: str, what: str = "a receiver") -> Target:
    """Return the URL of a receiver; raises ``ConfigError`` for one that protects no request.

    ``what`` says in the message whose URL is expected.
    """
    try:
        base = Target.parse(url)
    except ProofError as error:
        raise ConfigError(f"{url!r} is no URL of {what}: {error}") from error
    if not base.is_protected or base.query:
        message = f"{url!r} is no URL of {what}: use https, or http on this machine's loopback"
        raise ConfigError(message)
    return base


def _malformed(problem: str) -> ProofError:
    return ProofError(f"not a URL that a proof can name: {problem}", code="proof.malformed")
