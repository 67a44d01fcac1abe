"""The status of a key of the trust domain, and the next steps after a change of a key."""

from __future__ import annotations

from datetime import UTC, datetime

from agentguard.call.invocation import timestamp
from agentguard.cli.terminal import screen, times
from agentguard.errors import AgentguardError
from agentguard.identity.trust import TrustedKey, seconds


def state(key: TrustedKey) -> str:
    """Return ``current``, ``ending``, ``ended`` or ``compromised``."""
    now = seconds(times.now())
    if key.compromised_since is not None:
        return "compromised"
    if key.not_after is None:
        return "current"
    return "ending" if now < key.not_after else "ended"


def time(moment: int | None) -> str:
    """Format seconds since the epoch as a time in UTC; an empty text for None."""
    at = timestamp(datetime.fromtimestamp(moment, UTC)) if moment is not None else None
    return times.to_the_second(at)


def print_change(old: TrustedKey, unfinished: AgentguardError | None) -> None:
    """Print until when an old key is valid, and the next steps."""
    if old.compromised_since is not None:
        screen.line(f"{old.key.thumbprint} is compromised since {time(old.compromised_since)}")
    else:
        screen.line(f"{old.key.thumbprint} is valid until {time(old.not_after)}")
    if unfinished is not None:
        screen.warn(f"the change is in force, but not in the log yet: {unfinished}")
        screen.warn("the next process that opens the state completes the change and logs it")
    screen.line("next: run agentguard trust export, and give the file to everybody who verifies")
