"""Entries of log-outs: how one is built and read, and which calls stand in the log after one.

A provider has signed the log-out token in the entry, and the service verified the token before the
entry was written. The log's key vouches for this; who has the provider's keys can verify the token
again (log.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from agentguard.audit.entry import Entry
from agentguard.audit.findings import Problem, ShardReport
from agentguard.audit.records import Record
from agentguard.audit.summary import Summary
from agentguard.errors import DecodeError, VerificationError
from agentguard.identity import jwt, login, logout_token
from agentguard.identity.login import Ended, LogOut
from agentguard.signing import canonical

GRACE: Final = 60
"""Seconds after the entry of a log-out in which an authorised call is no finding.

Such a call may have been under way, or the log-out was not published yet.
"""


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


def late_calls(reports: Sequence[ShardReport]) -> Iterator[Problem]:
    """Yield, for each chain of each shard, the latest call if a log-out stands before the call.

    The entries of different shards are compared by their times.
    """
    ended: defaultdict[str, list[Ended]] = defaultdict(list)
    for logout, at in (one for report in reports for one in report.logouts):
        for key in logout.keys:
            ended[key].append(Ended(logout.issued_at, at))
    if not ended:
        return
    for report in reports:
        for call in report.latest_calls:
            if any(call.at > at + GRACE for at in _ends(call.names, ended)):
                what = "a call was authorised although the user had logged out before"
                yield Problem(report.shard, call.place, what)


def _ends(names: Iterable[str], ended: defaultdict[str, list[Ended]]) -> Iterator[int]:
    """Yield when each log-out that ends a log-in of these names was received."""
    for name in names:
        key = login.key_of(name)
        if key is not None and key in ended:
            yield from (one.received_at for one in ended[key] if login.is_ended(name, one))
