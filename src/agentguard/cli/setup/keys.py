"""The group ``agentguard keys``: commands that list the keys of the trust domain, and rotate them.

The revocation of a key is in ``cli/agents/revoke.py``, with all other revocations.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal, Unpack, get_args

import click

from agentguard.cli.setup import key_status
from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.options import (
    AS_JSON,
    COMPROMISED_SINCE,
    CONFIG,
    LOG,
    Argument,
    LogOptions,
    Option,
    command,
)
from agentguard.domain import rotation
from agentguard.domain.passphrase import passphrase_of
from agentguard.identity.trust import TrustedKey

_MAX_HOURS: Final = 24 * 365
"""The longest overlap: with a longer one the old key would stay in use."""

_RotatedUse = Literal["issuer", "log", "admin"]


@command(*LOG, AS_JSON)
def list_keys(*, json: bool, **log: Unpack[LogOptions]) -> None:
    """Each is shown with the times between which its signatures count. With --json, one object a
    line.
    """
    source = location.trusted_log(**log).trust
    keys = source.document.keys
    if json:
        for trusted in keys:
            screen.json_line({**trusted.as_json(), "state": key_status.state(trusted)})
        return
    names = ("use", "key", "state", "from", "until", "compromised since")
    screen.columns(names, ((_cells(trusted), "") for trusted in keys))
    if not source.outside:
        screen.warn(f"UNTRUSTED KEY: these keys come from {source.source}, a part of the state")


def _hours(text: str) -> timedelta:
    try:
        hours = float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number of hours") from None
    if not 0 <= hours <= _MAX_HOURS:  # this refuses NaN, too
        raise click.BadParameter(f"expected a number of hours up to {_MAX_HOURS}, got {hours:g}")
    return timedelta(hours=hours)


@command(
    Argument("use", "issuer|log|admin", "Which key.", type=click.Choice(get_args(_RotatedUse))),
    Option(
        "--overlap HOURS",
        "How long running processes may use the old key (24 if not given).",
        type=_hours,
    ),
    COMPROMISED_SINCE,
    CONFIG,
)
def rotate(
    *,
    use: _RotatedUse,
    overlap: timedelta | None,
    compromised_since: datetime | None,
    config: Path | None,
) -> None:
    """Earlier signatures of the old key still verify. Afterwards give the new trust document
    (agentguard trust export) to everybody who verifies. After a compromise, restart every process
    that has the domain open: each uses the old key until it renews a credential, which takes up to
    an hour.
    """
    settings = location.load_own(config)
    rotated = rotation.rotate(
        settings,
        passphrase_of(settings),
        use,
        now=times.now(),
        overlap=overlap,
        compromised_since=compromised_since,
    )
    screen.line(f"rotated: the new {use} key is {rotated.new.key.thumbprint}")
    key_status.print_change(rotated.old, rotated.unfinished)


def _cells(trusted: TrustedKey) -> tuple[str, ...]:
    return (
        trusted.use,
        trusted.key.thumbprint,
        key_status.state(trusted),
        key_status.time(trusted.not_before),
        key_status.time(trusted.not_after),
        key_status.time(trusted.compromised_since),
    )
