"""Calls that stand in the log after what ended their authority: a log-out, or a surrender.

The entries are compared by their times: a delegation may have been given up long before its entry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from agentguard.audit.findings import LatestCall
from agentguard.delegation.chain import Chain
from agentguard.identity import login
from agentguard.identity.login import Ended, LogOut

GRACE: Final = 60
"""Seconds after the entry of a log-out or a surrender in which a call is no finding.

Such a call may have been under way.
"""


def names_of(chain: Chain) -> tuple[str, ...]:
    """Return the names by which a log-out or a surrender ends a chain."""
    token = chain.root.subject_token
    names = () if token is None else token.login(chain.root.issued_at).names
    return (*names, *(hop.grant.jti for hop in chain.hops))


def late_calls(
    latest: Iterable[LatestCall],
    logouts: Iterable[tuple[LogOut, int]],
    surrenders: Iterable[tuple[str, int]],
) -> Iterator[tuple[int, str]]:
    """Yield the index and the problem of each chain's latest call if the chain had ended before.

    The log-outs, and the ids of the hops that were given up, come with their times.
    """
    ended: defaultdict[str, list[Ended]] = defaultdict(list)
    for logout, at in logouts:
        for key in logout.keys:
            ended[key].append(Ended(logout.issued_at, at))
    given_up: dict[str, int] = {}
    for jti, at in surrenders:
        given_up[jti] = min(at, given_up.get(jti, at))
    if not ended and not given_up:
        return
    for call in latest:
        if any(call.at > at + GRACE for at in _log_outs(call.names, ended)):
            yield call.place, "a call was authorised although the user had logged out before"
        elif any(call.at > given_up.get(name, call.at) + GRACE for name in call.names):
            what = "a call was authorised although its delegation had been given up before"
            yield call.place, what


def _log_outs(names: Sequence[str], ended: defaultdict[str, list[Ended]]) -> Iterator[int]:
    """Yield when each log-out that ends a log-in of these names was received."""
    for name in names:
        key = login.key_of(name)
        if key is not None and key in ended:
            yield from (one.received_at for one in ended[key] if login.is_ended(name, one))
