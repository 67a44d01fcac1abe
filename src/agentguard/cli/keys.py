"""``agentguard keys``: the long-lived keys of the trust domain, and their rotation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

import typer

from agentguard import domain, rotation
from agentguard.cli import place, screen
from agentguard.cli.place import AnchorOption, ConfigOption, JsonOption, StateOption, TrustOption
from agentguard.errors import ConfigError, DecodeError
from agentguard.identity.trust import TrustDocument, TrustedKey, Use, seconds
from agentguard.invocation import timestamp

app = typer.Typer(no_args_is_help=True, help="The keys of the trust domain, and their rotation.")

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
    believed = place.trust(place.locate(config, state, anchor), trust)
    keys = believed.document.keys
    if json:
        for trusted in keys:
            screen.json_line({**trusted.as_json(), "state": _state(trusted)})
        return
    names = ("use", "key", "state", "from", "until", "compromised since")
    screen.columns(names, ((_cells(trusted), "") for trusted in keys))
    if not believed.outside:
        screen.warn(f"UNTRUSTED KEY: these are the ones of {believed.source}")


@app.command("rotate")
def rotate(
    use: Annotated[_RotatedUse, typer.Argument(metavar="issuer|log|admin", help="Which key.")],
    *,
    overlap: Annotated[
        float,
        typer.Option(
            "--overlap", metavar="HOURS", help="How long running processes may use the old key."
        ),
    ] = rotation.OVERLAP / timedelta(hours=1),
    compromised_since: Annotated[
        str | None,
        typer.Option(
            "--compromised-since",
            metavar="TIME",
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
    settings = place.locate(config).config
    if settings is None:
        raise ConfigError("there is no agentguard.toml: name it with --config")
    trust = rotation.rotate(
        settings,
        domain.passphrase_of(settings),
        use,
        now=datetime.now(UTC),
        overlap=_hours(overlap),
        compromised_since=_moment(compromised_since),
    )
    old, new = _last_two(trust, use)
    screen.line(f"rotated: the {use} key is {new.key.thumbprint}")
    if old.compromised_since is not None:
        screen.line(f"{old.key.thumbprint} is compromised since {_time(old.compromised_since)}")
    else:
        screen.line(f"{old.key.thumbprint} counts until {_time(old.not_after)}")
    screen.line("next: agentguard trust export, for everybody who verifies")


def _last_two(trust: TrustDocument, use: Use) -> tuple[TrustedKey, TrustedKey]:
    new = max(
        trust.keys_for(use), key=lambda trusted: (trusted.not_before, trusted.not_after is None)
    )
    position = trust.keys.index(new)
    return trust.keys[position - 1], new


def _hours(number: float) -> timedelta:
    if not 0 <= number <= _MAX_HOURS:  # nor NaN
        message = f"--overlap: expected a number of hours up to {_MAX_HOURS}, got {number:g}"
        raise ConfigError(message)
    return timedelta(hours=number)


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        message = f"{text!r} is no time: write one as in 2026-01-31T12:00:00Z"
        raise DecodeError(message, code="time.malformed") from error
    if moment.tzinfo is None:
        message = f"{text!r} has no offset: write one as in 2026-01-31T12:00:00Z"
        raise DecodeError(message, code="time.malformed")
    return moment


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
    now = seconds(datetime.now(UTC))
    if trusted.compromised_since is not None:
        return "compromised"
    if trusted.not_after is None:
        return "current"
    return "ending" if now < trusted.not_after else "ended"


def _time(moment: int | None) -> str:
    if moment is None:
        return ""
    return timestamp(datetime.fromtimestamp(moment, UTC))[:19].replace("T", " ")
