"""``agentguard init``: a trust domain in a folder, all of it or nothing.

What it writes from stands in ``template/``. Nothing is ever overwritten: everything is looked at
first, and if a later step fails, what this run has made is taken away again.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated, Final

import typer

from agentguard import config, domain
from agentguard.cli import place, screen
from agentguard.config import Config
from agentguard.errors import AgentguardError, ConfigError, StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.storage import keystore
from agentguard.storage.anchor import anchor_path

_POLICY: Final = Path("policies", "authz.rego")
_STATE: Final = ".agentguard"
_NOT_PLAIN: Final = re.compile(r"[^a-z0-9]+")
_ENTROPY: Final = 32
"""Random bytes of a passphrase."""


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="The folder; it is made if need be.")
    ] = Path(),
    *,
    trust_domain: Annotated[
        str | None,
        typer.Option(
            "--trust-domain",
            metavar="NAME",
            help="A domain name, such as acme.example; by default the folder's name + .internal.",
        ),
    ] = None,
    anchor: Annotated[
        str,
        typer.Option(
            "--anchor",
            metavar="DIR",
            help="Where checkpoints are kept outside the state; '' for nowhere.",
        ),
    ] = config.DEFAULT_ANCHOR,
) -> None:
    """Found a trust domain: keys, configuration, an example policy that allows reads, the log.

    The passphrase of the keys is AGENTGUARD_PASSPHRASE, or else a random one in a file of its own
    outside the state. Nothing is overwritten.
    """
    settings = _settings(folder, trust_domain, anchor)
    for path in (folder / config.FILE, folder / _POLICY):
        _refuse_existing(path)
    given = os.environ.get(domain.PASSPHRASE_VARIABLE)
    passphrase = given or secrets.token_urlsafe(_ENTROPY)
    with _all_or_nothing() as made:
        _folder(made, folder)
        trust = _found(made, settings, passphrase.encode())
        keep = None if given else _passphrase_file(trust)
        if keep is not None:
            _folder(made, keep.parent)
            _write(made, keep, passphrase + "\n", mode=0o600)
        _folder(made, folder / _POLICY.parent)
        _write(made, folder / _POLICY, _template("authz.rego").template)
        _write(made, folder / config.FILE, _toml(settings, keep))
        _write(made, settings.state / ".gitignore", "*\n")
        config.load(folder / config.FILE)  # what was written is what a guard will read
    _show(folder, settings, trust, keep)


def _settings(folder: Path, trust_domain: str | None, anchor: str) -> Config:
    name = trust_domain or _domain_of(folder)
    where = anchor if anchor in ("", config.DEFAULT_ANCHOR) else str(Path(anchor).absolute())
    settings = config.parse(
        {"trust_domain": name, "state": _STATE, "anchor": where},
        source="agentguard init",
        base=folder.absolute(),
    )
    if settings.anchor is not None and place.is_inside(settings.anchor, settings.state):
        message = f"the anchor {settings.anchor} lies inside the state: name a folder outside it"
        raise ConfigError(message, code="anchor.inside")
    return settings


def _domain_of(folder: Path) -> str:
    label = _NOT_PLAIN.sub("-", folder.resolve().name.lower()).strip("-")[:63].strip("-")
    return f"{label or 'agents'}.internal"


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        message = f"{path} exists already: nothing is overwritten; choose another folder"
        raise StorageError(message, code="storage.exists")


# --- all or nothing -----------------------------------------------------------------------------

_Made = list[Callable[[], object]]
"""How to take away what was made, the oldest first."""


@contextmanager
def _all_or_nothing() -> Iterator[_Made]:
    made: _Made = []
    try:
        yield made
    except BaseException:
        for undo in reversed(made):
            with suppress(OSError):  # the first error is the one to report
                undo()
        raise


def _folder(made: _Made, path: Path) -> None:
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        try:
            folder.mkdir(mode=0o755)
        except OSError as error:
            raise _unwritable(folder, error) from error
        made.append(folder.rmdir)


def _write(made: _Made, path: Path, text: str, *, mode: int = 0o644) -> None:
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    except OSError as error:
        raise _unwritable(path, error) from error
    made.append(path.unlink)
    try:
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            stream.write(text)
            os.fchmod(stream.fileno(), mode)  # the umask may not let others write
    except OSError as error:
        raise _unwritable(path, error) from error


def _found(made: _Made, settings: Config, passphrase: bytes) -> TrustDocument:
    state = settings.state
    if state.exists():
        made.append(lambda: _empty(state))
    else:
        made.append(lambda: shutil.rmtree(state))
    if settings.anchor is not None:
        _folder(made, settings.anchor)
        made.append(lambda: _forget(settings, state))
    return domain.found(settings, passphrase, now=datetime.now(UTC))


def _unwritable(path: Path, error: OSError) -> StorageError:
    message = f"{path} can't be made ({error.strerror}): give this user the right"
    return StorageError(message, code="storage.readonly")
