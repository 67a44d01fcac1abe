"""``agentguard trust``: the public keys with which others verify this domain's log."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from agentguard.cli import place, screen
from agentguard.cli.place import AnchorOption, ConfigOption, StateOption
from agentguard.errors import StorageError, VerificationError
from agentguard.storage import keystore

app = typer.Typer(no_args_is_help=True, help="The public keys of the trust domain.")


@app.callback()
def group() -> None:
    """The public keys of the trust domain."""


@app.command("export")
def export(
    *,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="A new file; by default stdout."),
    ] = None,
    config: ConfigOption = None,
    state: StateOption = None,
    anchor: AnchorOption = None,
) -> None:
    """Write the trust document.

    JSON with public keys only, for those who verify the log. It is refused if the copy that is
    kept with the anchors says something else.
    """
    found = place.locate(config, state, anchor)
    own = keystore.load_trust(found.state)
    kept = place.anchored_trust(found, own)
    if kept is not None and kept.document != own:
        message = (
            f"the trust document in {found.state} is not the one in {kept.source}: "
            "find out who changed it; nothing was exported"
        )
        raise VerificationError(message, code="trust.changed")
    data = own.dumps() + b"\n"
    if output is None:
        sys.stdout.write(data.decode())
        return
    try:
        with output.open("xb") as file:
            file.write(data)
    except FileExistsError as error:
        message = f"{output} exists already: it is not overwritten"
        raise StorageError(message, code="storage.exists") from error
    except OSError as error:
        message = f"{output} can't be written ({error.strerror}): name another file"
        raise StorageError(message, code="storage.readonly") from error
    screen.line(f"{output} holds {len(own.keys)} public keys of {own.trust_domain}")
