"""Entries of log-outs: how one is built, and how one is read.

A provider has signed the log-out token in the entry, and the service verified the token before the
entry was written. The log's key vouches for this; who has the provider's keys can verify the token
again (log.md).
"""

from __future__ import annotations

from agentguard.audit.entry import Entry
from agentguard.audit.records import Record
from agentguard.audit.summary import Summary
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity import jwt, logout_token
from agentguard.identity.login import LogOut
from agentguard.signing import canonical


def record(token: str, *, at: str) -> Record:
    """Build the entry of a log-out, whose token the caller has verified."""
    body = canonical.dumps({"kind": "logout", "at": at, "token": token})
    return Record(body, Summary("logout", at))


def read(entry: Entry) -> LogOut:
    """Return the log-out in an entry; raises ``DecodeError`` (``entry.malformed``).

    The provider's signature is not verified: the keys of that time need not be known any more.
    """
    try:
        return logout_token.read(jwt.parse(str(entry.members["token"])).claims)
    except (DecodeError, VerificationError) as error:
        raise DecodeError(f"not a log-out: {error}", code="entry.malformed") from error
