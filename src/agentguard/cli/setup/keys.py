"""``agentguard keys``: the long-lived keys of the trust domain, and their rotation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

import typer

from agentguard.call.invocation import timestamp
from agentguard.cli.lazy import Group
from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.options import (
    AnchorOption,
    ConfigOption,
    JsonOption,
    StateOption,
    TakesNames,
    TrustOption,
    one_of,
)
from agentguard.domain import rotation
from agentguard.domain.passphrase import passphrase_of
from agentguard.errors import AgentguardError
from agentguard.identity.trust import TrustedKey, seconds

app = typer.Typer(no_args_is_help=True, cls=Group)

_MAX_HOURS: Final = 24 * 365
"""A longer overlap is no rotation."""

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
    """List the public keys of the trust document, and from when to when each counts.

    With --json, one object a line.
    """
    believed = location.trusted_log(config, state, anchor, trust).trust
    keys = believed.document.keys
    if json:
        for trusted in keys:
            screen.json_line({**trusted.as_json(), "state": _state(trusted)})
        return
    names = ("use", "key", "state", "from", "until", "compromised since")
    screen.columns(names, ((_cells(trusted), "") for trusted in keys))
    if not believed.outside:
        screen.warn(f"UNTRUSTED KEY: these are the ones of {believed.source}")


def _within_a_year(hours: float | None) -> float | None:
    if hours is not None and not 0 <= hours <= _MAX_HOURS:  # nor NaN, which min and max let through
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
    compromised_since: Annotated[
        datetime | None,
        typer.Option(
            "--compromised-since",
            metavar="TIME",
            parser=times.given_exactly,
            help="The old key counts for nothing from then on (RFC 3339, with an offset).",
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Put a new key in the place of an old one.

    What the old key signed before still verifies. Give everybody who verifies the new trust
    document (agentguard trust export). After a compromise restart every process that has the
    domain open: until it renews a credential, within the hour, it goes on with the old key.
    """
    settings = location.load_own(config)
    done = rotation.rotate(
        settings,
        passphrase_of(settings),
        use,
        now=times.now(),
        overlap=timedelta(hours=overlap) if overlap is not None else None,
        compromised_since=compromised_since,
    )
    screen.line(f"rotated: the {use} key is {done.new.key.thumbprint}")
    _end(done.old, done.unfinished)


@app.command("revoke", cls=TakesNames)
def revoke(
    key: Annotated[
        str, typer.Argument(metavar="THUMBPRINT", help="The old key: see agentguard keys list.")
    ],
    *,
    compromised_since: Annotated[
        datetime,
        typer.Option(
            "--compromised-since",
            metavar="TIME",
            parser=times.given_exactly,
            help="The key counts for nothing from then on (RFC 3339, with an offset).",
        ),
    ],
    config: ConfigOption = None,
) -> None:
    """Mark a key as compromised that was rotated before.

    The one in force is rotated instead. Give everybody who verifies the new trust document
    (agentguard trust export).
    """
    settings = location.load_own(config)
    done = rotation.revoke(
        settings,
        passphrase_of(settings),
        key,
        compromised_since=compromised_since,
        now=times.now(),
    )
    screen.line(f"revoked: nothing counts any more that this {done.key.use} key signs")
    _end(done.key, done.unfinished)


def _end(old: TrustedKey, unfinished: AgentguardError | None) -> None:
    if old.compromised_since is not None:
        screen.line(f"{old.key.thumbprint} is compromised since {_time(old.compromised_since)}")
    else:
        screen.line(f"{old.key.thumbprint} counts until {_time(old.not_after)}")
    if unfinished is not None:
        screen.warn(f"this counts, but is not in the log yet: {unfinished}")
        screen.warn("whoever opens the state next finishes and announces it")
    screen.line("next: agentguard trust export, for everybody who verifies")


def _cells(trusted: TrustedKey) -> tuple[str, ...]:
    return (
        trusted.use,
        trusted.key.thumbprint,
        _state(trusted),
        _time(trusted.not_before),
        _time(trusted.not_after),
        _time(trusted.compromised_since),
    )


def _state(trusted: TrustedKey) -> str:
    now = seconds(times.now())
    if trusted.compromised_since is not None:
        return "compromised"
    if trusted.not_after is None:
        return "current"
    return "ending" if now < trusted.not_after else "ended"


def _time(moment: int | None) -> str:
    at = timestamp(datetime.fromtimestamp(moment, UTC)) if moment is not None else None
    return times.shown(at)
