"""``agentguard audit prove`` and ``verify-evidence``: one call's evidence, made and checked.

What is told of it stands in ``testimony.py``, what it must hold in ``audit/evidence.py``, how it is
made in ``proving.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from agentguard import proving
from agentguard.audit import evidence
from agentguard.cli import place, screen, testimony
from agentguard.cli.place import AnchorOption, ConfigOption, JsonOption, StateOption, TrustOption
from agentguard.errors import DecodeError, StorageError, VerificationError
from agentguard.identity.trust import TrustDocument

_STREAM: Final = Path("-")


def prove(
    invocation_id: Annotated[
        str, typer.Argument(metavar="INVOCATION_ID", help="The call, as audit list names it.")
    ],
    *,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE", help="A new file; - for stdout."),
    ],
    without_arguments: Annotated[
        bool,
        typer.Option(
            "--without-arguments",
            help="Leave out arguments, policy input and result: their commitments stay.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    config: ConfigOption = None,
    state: StateOption = None,
    anchor: AnchorOption = None,
    trust: TrustOption = None,
) -> None:
    """Write the evidence of one call.

    One file, with which anybody who has the trust document can check, offline, who called what,
    what was decided and what became of it (docs/evidence.md). It is verified before it is written.
    """
    found = place.locate(config, state, anchor)
    believed = place.trust(found, trust)
    data = proving.prove(
        found.reader(), believed.document, invocation_id, attachments=not without_arguments
    )
    if output == _STREAM:
        sys.stdout.write(data.decode())
        return
    _write(output, data, force=force)
    screen.line(f"{output} proves the call {invocation_id}, in {len(data)} bytes")


def verify_evidence(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What audit prove has written; - for stdin.")
    ],
    *,
    trust: Annotated[
        Path,
        typer.Option(
            "--trust",
            metavar="TRUST.json",
            help="The trust document; not one that came with the evidence.",
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Check the evidence of one call, and tell what it proves.

    Offline, and with nothing but the trust document. Exit code 1 if anything does not hold. With
    --json, one object: ok, and code and problem, or what is proved, and unknown: what such a file
    can't know.
    """
    document = TrustDocument.loads(_read(trust))
    data = sys.stdin.buffer.read() if file == _STREAM else _read(file)
    try:
        proved = evidence.verify(data, document)
    except (DecodeError, VerificationError) as error:
        if json:
            screen.json_line({"ok": False, "code": error.code, "problem": str(error)})
        else:
            screen.line(screen.styled("fail", "FAILED"), f" [{error.code}]: {error}")
        raise typer.Exit(1) from error
    if json:
        screen.json_line(testimony.as_json(proved))
    else:
        screen.line(screen.styled("ok", "proved"), f", under the keys of {document.trust_domain}:")
        testimony.draw(proved)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): name a file that this user can read"
        raise StorageError(message, code="storage.missing") from error


def _write(path: Path, data: bytes, *, force: bool) -> None:
    try:
        with path.open("wb" if force else "xb") as file:
            file.write(data)
    except FileExistsError as error:
        message = f"{path} exists already: name another file, or overwrite it with --force"
        raise StorageError(message, code="storage.exists") from error
    except OSError as error:
        message = f"{path} can't be written ({error.strerror}): name another file"
        raise StorageError(message, code="storage.readonly") from error
