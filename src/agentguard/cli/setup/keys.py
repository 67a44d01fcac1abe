"""The group ``agentguard keys``: commands that list the keys of the trust domain, and rotate them.

The revocation of a key is in ``cli/agents/revoke.py``, with all other revocations.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final, Literal

import typer

from agentguard.cli.lazy import Group
from agentguard.cli.setup import key_status
from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.options import (
    AnchorOption,
    CompromisedSinceOption,
    ConfigOption,
    JsonOption,
    StateOption,
    TrustOption,
    one_of,
)
from agentguard.domain import rotation
from agentguard.domain.passphrase import passphrase_of
from agentguard.identity.trust import TrustedKey

app = typer.Typer(no_args_is_help=True, cls=Group)

_MAX_HOURS: Final = 24 * 365
"""The longest overlap: with a longer one the old key would stay in use."""

_RotatedUse = Literal["issuer", "log", "admin"]


@app.command("list")
def list_keys(
    *,
    config: ConfigOption = None,
    state: StateOption = None,
    anchor: AnchorOption = None,
    trust: TrustOption = None,
    json: JsonOption = False,
) -> None:
    """List the public keys of the trust document.

    Each is shown with the times between which its signatures count. With --json, one object a line.
    """
    source = location.trusted_log(config, state, anchor, trust).trust
    keys = source.document.keys
    if json:
        for trusted in keys:
            screen.json_line({**trusted.as_json(), "state": key_status.state(trusted)})
        return
    names = ("use", "key", "state", "from", "until", "compromised since")
    screen.columns(names, ((_cells(trusted), "") for trusted in keys))
    if not source.outside:
        screen.warn(f"UNTRUSTED KEY: these keys come from {source.source}, a part of the state")


def _within_a_year(hours: float | None) -> float | None:
    if hours is not None and not 0 <= hours <= _MAX_HOURS:  # this refuses NaN, too
        message = f"expected a number of hours up to {_MAX_HOURS}, got {hours:g}"
        raise typer.BadParameter(message)
    return hours


OverlapOption = Annotated[
    float | None,
    typer.Option(
        "--overlap",
        metavar="HOURS",
        callback=_within_a_year,
        help="How long running processes may use the old key (24 if not given).",
    ),
]


@app.command("rotate")
def rotate(
    use: Annotated[
        _RotatedUse,
        typer.Argument(metavar="issuer|log|admin", parser=one_of(_RotatedUse), help="Which key."),
    ],
    *,
    overlap: OverlapOption = None,
    compromised_since: CompromisedSinceOption = None,
    config: ConfigOption = None,
) -> None:
    """Replace a key of the trust domain with a new key.

    Earlier signatures of the old key still verify. Afterwards give the new trust document
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
        overlap=timedelta(hours=overlap) if overlap is not None else None,
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
