"""The command ``agentguard token exchange``: a user's token for an access token of an agent.

The command asks a token service, and needs no state. Tokens come from files or stdin, since
everybody can read the arguments of a process. The instance's key is in a file, because the access
token is of no use without the key.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import click

from agentguard.cli.terminal import files
from agentguard.cli.terminal.options import PATH, Argument, Option, command
from agentguard.errors import ConfigError, DecodeError
from agentguard.signing import canonical
from agentguard.signing.canonical import b64url_decode, b64url_encode
from agentguard.signing.keys import Ed25519Signer

_MAX_TOKEN: Final = 16 * 1024
_MAX_KEY: Final = 4096
_SEED: Final = 32


def _if_given(
    _context: click.Context, _option: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...] | None:
    return names or None  # Click has an empty tuple for an option that was not given


@command(
    Argument("subject_token", "FILE|-", "A file with the user's token, - for stdin.", type=PATH),
    Option("--service URL", "The URL of the token service.", required=True),
    Option("--agent NAME", "The agent that acts with the token.", required=True),
    Option(
        "--workload-token FILE",
        "A file with the workload token of this program.",
        type=PATH,
        required=True,
    ),
    Option(
        "--key FILE",
        "The private key of the agent's instance, as a JWK. A file that is missing is made, with "
        "a new key.",
        type=PATH,
        required=True,
    ),
    Option(
        "--chain FILE",
        "Where to write the chain of the token; an older file is replaced.",
        type=PATH,
    ),
    Option(
        "--scope NAME",
        "A scope of the token; may be repeated. By default, all that the user and the agent share.",
        multiple=True,
        callback=_if_given,
    ),
    Option(
        "--audience NAME",
        "A receiver of the token; may be repeated. By default, the trust domain itself.",
        multiple=True,
        callback=_if_given,
    ),
    Option(
        "--id-jag", "The file has an ID-JAG of the user's identity provider, which counts once."
    ),
)
def exchange(  # noqa: PLR0913  the options of the command
    *,
    subject_token: Path,
    service: str,
    agent: str,
    workload_token: Path,
    key: Path,
    chain: Path | None,
    scope: tuple[str, ...] | None,
    audience: tuple[str, ...] | None,
    id_jag: bool,
) -> None:
    """Registers the key as an instance of the agent at the token service, and prints the access
    token. The token counts for five minutes at most, and only with a proof of the key.
    """
    # few commands send a request, and the extra brings what the module imports
    from agentguard.service.client import TokenService  # noqa: PLC0415

    user = token_in(subject_token)
    workload = token_in(workload_token)
    place = nullcontext() if chain is None else files.new(chain, force=True)
    # the file is opened first: an ID-JAG counts once, and would be lost with the chain
    with place as written, TokenService(service) as tokens:
        signer = _signer(key)
        identity = tokens.register(agent, workload_token=workload, signer=signer)
        send = tokens.redeem if id_jag else tokens.exchange
        got = send(identity, user, scope=scope, audience=audience)
        if written is not None:
            written.write(got.issued.chain + b"\n")
    click.echo(got.issued.token)  # in one piece: a screen's line would be wrapped


def token_in(path: Path) -> str:
    """Return the token in a file; raises ``ConfigError`` for a file without one."""
    data = files.read_or_stdin(path, _MAX_TOKEN + 1).strip()
    if not data or len(data) > _MAX_TOKEN or not data.isascii() or b" " in data:
        raise ConfigError(f"{path} has no token: expected a text without spaces")
    return data.decode("ascii")


def _signer(path: Path) -> Ed25519Signer:
    """Return the key in a file, which is made where it is missing.

    Raises ``ConfigError`` for a file without an Ed25519 key, and for ``-``: a private key is not
    printed.
    """
    if files.is_stream(path):
        raise ConfigError("--key: name a file, since a private key is not printed")
    if not os.path.lexists(path):
        seed = os.urandom(_SEED)
        signer = Ed25519Signer.from_seed(seed)
        made = {**signer.public_key.jwk(), "d": b64url_encode(seed)}
        with files.new(path, force=False) as written:
            written.write(canonical.dumps(made) + b"\n")
        return signer
    try:
        jwk = canonical.loads_object(files.read(path, _MAX_KEY))
        seed = b64url_decode(jwk.get("d"))
    except DecodeError as error:
        raise _no_key(path) from error
    if len(seed) != _SEED:
        raise _no_key(path)
    signer = Ed25519Signer.from_seed(seed)
    if {**jwk, "d": ""} != {**signer.public_key.jwk(), "d": ""}:
        raise _no_key(path)
    return signer


def _no_key(path: Path) -> ConfigError:
    message = f"{path} has no private Ed25519 key as a JWK: name a missing file, for a new key"
    return ConfigError(message)
