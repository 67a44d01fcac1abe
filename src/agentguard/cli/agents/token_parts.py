"""The parts of an access token or a stored delegation that a person names, without verification.

Parts that can be read are returned even if others can't, so that a command can show what is wrong.
Verification is in ``delegation/access_token.py`` and ``delegation/verification.py``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agentguard.audit.find import find_chain
from agentguard.audit.kinds.identities import tokens_of_chain
from agentguard.audit.log import LogReader
from agentguard.cli.agents import delegations
from agentguard.cli.terminal import files
from agentguard.delegation import access_token, grant
from agentguard.delegation.chain import CHAIN_TYPE
from agentguard.delegation.grant import Grant
from agentguard.errors import AgentguardError, ConfigError, DecodeError
from agentguard.signing import canonical, jws
from agentguard.signing.canonical import JSON

# the header of a compact JWS is a JSON object; a name of a trust domain may have two dots as well
_COMPACT_JWS: Final = re.compile(r"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class TokenParts:
    """The text, the claims of an access token (else None), and each hop or why it can't be read.

    ``chain`` is a stored delegation, or the chain beside an access token; None for a single hop,
    and for a token whose chain is not known.
    """

    text: str
    claims: Mapping[str, JSON] | None
    chain: bytes | None
    hops: list[Grant | AgentguardError]

    @property
    def names(self) -> frozenset[str]:
        """All names by which it can be revoked, as it says itself."""
        names: set[str] = set()
        for hop in self.hops:
            if isinstance(hop, Grant):
                names |= delegations.names(hop)
        jti = self.claims.get("jti") if self.claims is not None else None
        return frozenset(names | ({jti} if isinstance(jti, str) else set()))

    @property
    def last_hop_id(self) -> str:
        """The ``jti`` of the last hop, whose revocation stops just this token or delegation.

        Raises ``ConfigError`` (``hop.malformed``) if the last hop can't be read.
        """
        last = self.hops[-1] if self.hops else None
        if isinstance(last, Grant):
            return last.jti
        message = "it has no hop that can be read: name what to revoke"
        raise ConfigError(message, code="hop.malformed")

    @property
    def lacks_chain(self) -> bool:
        """Whether this is an access token whose chain is not known."""
        return self.claims is not None and self.chain is None

    def with_chain_of(self, reader: LogReader) -> TokenParts:
        """Return the parts with the chain that the log has for the token, if there is one.

        Raises ``StorageError``.
        """
        if self.claims is None or self.chain is not None:
            return self
        digest = self.claims.get(access_token.CHAIN_CLAIM)
        delegatee = self.claims.get("client_id")
        if not (isinstance(digest, str) and isinstance(delegatee, str)):
            return self
        entry = find_chain(reader, digest, delegatee)
        if entry is None:
            return self
        hops, credentials = tokens_of_chain(entry.chain)
        found = {"type": CHAIN_TYPE, "hops": hops, "credentials": credentials}
        return self.with_chain(canonical.dumps(found))

    def with_chain(self, chain: bytes) -> TokenParts:
        """Return the parts with a chain beside the token; raises ``DecodeError``."""
        return replace(self, chain=chain, hops=_hops(canonical.loads_object(chain)))


def is_inline(text: str) -> bool:
    """Whether a text is itself a token or a delegation, or ``-`` for stdin."""
    return text == "-" or text.startswith("{") or _COMPACT_JWS.fullmatch(text) is not None


def is_file(name: str) -> bool:
    """Whether there is a file of this name."""
    with suppress(OSError):  # a token is too long for a file's name
        return Path(name).is_file()
    return False


def is_path(text: str) -> bool:
    """Whether a text is written as a file's path: with a slash, or with ``.json`` at its end.

    A name with a colon, such as a principal's or a URI, is a path only with ``/`` or ``./`` in
    front.
    """
    if text.startswith(("/", "./", "../")):
        return True
    return ":" not in text and ("/" in text or text.endswith(".json"))


def read(source: str) -> TokenParts:
    """Read a token or a delegation: the text itself, a file that it names, or stdin for ``-``.

    Raises ``DecodeError`` if it is neither, and ``StorageError`` for a file that can't be read.
    """
    if source == "-":
        text = sys.stdin.read()
    elif is_inline(source):
        text = source
    else:
        text = files.read(Path(source)).decode("utf-8", "replace")
    text = text.strip()
    if text.startswith("{"):
        chain = text.encode()
        return TokenParts(text, None, chain, _hops(canonical.loads_object(chain)))
    parsed = jws.parse(text)
    claims = parsed.claims()
    if parsed.header.get("typ") == grant.TYPE:
        return TokenParts(text, None, None, [grant.read(text)])
    return TokenParts(text, claims, None, [])


def _hops(members: Mapping[str, JSON]) -> list[Grant | AgentguardError]:
    hops = members.get("hops")
    if not isinstance(hops, list):
        raise DecodeError("neither an access token nor a stored delegation", code="chain.malformed")
    parts: list[Grant | AgentguardError] = []
    for hop in hops[: grant.MAX_DEPTH]:
        try:
            parts.append(grant.read(str(hop)))
        except AgentguardError as error:
            parts.append(error)
    return parts
