"""``agentguard init``: a trust domain in a folder, all of it or nothing.

What it writes from stands in ``template/``. Nothing is ever overwritten: everything is looked at
first, and if a later step fails, what this run has made is taken away again. The configuration
comes last: a state without one is that of an init that was killed, and the next one goes on.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated, Final

import typer

from agentguard import config, domain
from agentguard.cli import screen
from agentguard.cli.location import from_home, is_inside
from agentguard.config import Config
from agentguard.errors import AgentguardError, ConfigError, StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.storage import keystore, pinned

_POLICY: Final = Path("policies", "authz.rego")
_STATE: Final = ".agentguard"
_NOT_PLAIN: Final = re.compile(r"[^a-z0-9]+")
_ENTROPY: Final = 32
"""Random bytes of a passphrase."""


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder; it is made if need be.")
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
    """Found a trust domain in a folder.

    Makes keys, a log, a configuration, and an example policy that allows reads.
    The passphrase of the keys is AGENTGUARD_PASSPHRASE, or else a random one in a file of its own
    outside the state. Nothing is overwritten. If it is killed, run it again: it goes on.
    """
    settings = _settings(folder, trust_domain, anchor)
    _refuse_existing(folder / config.FILE)
    begun = (settings.state / keystore.TRUST).is_file()
    for path in () if begun else (folder / _POLICY, settings.state):
        _refuse_existing(path)
    with _all_or_nothing() as made:
        _folder(made, folder)
        trust, passphrase_file = _complete(settings) if begun else _make_state(made, settings)
        if not (folder / _POLICY).exists():
            _folder(made, folder / _POLICY.parent)
            _write(made, folder / _POLICY, _template("authz.rego"))
        _write(made, folder / config.FILE, _toml(settings, passphrase_file))
        config.load(folder / config.FILE)  # what was written is what a guard will read
    _show(folder, settings, trust, passphrase_file)


def _settings(folder: Path, trust_domain: str | None, anchor: str) -> Config:
    name = trust_domain or _domain_of(folder)
    where = anchor if anchor in ("", config.DEFAULT_ANCHOR) else str(Path(anchor).absolute())
    settings = config.parse(
        {"trust_domain": name, "state": _STATE, "anchor": where},
        source="agentguard init",
        base=folder.absolute(),
    )
    if settings.anchor is not None and is_inside(settings.anchor, settings.state):
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
            with suppress(OSError, AgentguardError):  # the first error is the one to report
                undo()
        raise


def _folder(made: _Made, path: Path, *, mode: int = 0o755) -> None:
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        _make(folder, mode)
        made.append(folder.rmdir)


def _make(folder: Path, mode: int) -> None:
    try:
        folder.mkdir(mode=mode)
    except FileExistsError as error:  # made by somebody else since it was looked for
        message = f"{folder} exists already: nothing is overwritten; choose another folder"
        raise StorageError(message, code="storage.exists") from error
    except OSError as error:
        raise _unwritable(folder, error) from error


def _write(made: _Made, path: Path, text: str, *, mode: int = 0o644) -> None:
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        made.append(path.unlink)
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            os.fchmod(file, mode)  # exactly: no umask lets others write, or keeps readers out
            stream.write(text)
            stream.flush()
            os.fsync(file)
    except OSError as error:
        raise _unwritable(path, error) from error


_Founded = tuple[TrustDocument, Path | None]
"""The trust document, and the file with the passphrase, if there is one."""


def _make_state(made: _Made, settings: Config) -> _Founded:
    given = os.environ.get(domain.PASSPHRASE_VARIABLE)
    passphrase = given or secrets.token_urlsafe(_ENTROPY)

    def keep_passphrase(trust: TrustDocument) -> None:
        """Keep it before the state is there, which can't be opened without it."""
        made.append(lambda: _forget(settings, trust))
        if not given:
            path = _passphrase_file(trust)
            _folder(made, path.parent, mode=0o700)
            _write(made, path, passphrase + "\n", mode=0o600)

    if settings.anchor is not None:
        _folder(made, settings.anchor, mode=0o700)
    now = datetime.now(UTC)
    trust = domain.found(settings, passphrase.encode(), now=now, ready=keep_passphrase)
    return trust, None if given else _passphrase_file(trust)


def _forget(settings: Config, trust: TrustDocument) -> None:
    """Remove this run's state, if it is there, with its anchors: others keep theirs beside them."""
    if keystore.load_trust(settings.state) == trust:
        shutil.rmtree(settings.state)
        if settings.anchor is not None:
            pinned.forget(settings.anchor, trust.log)


def _complete(settings: Config) -> _Founded:
    """Take up the state of an init that was killed; raises as ``domain.take_up`` does."""
    trust = keystore.load_trust(settings.state)
    given = os.environ.get(domain.PASSPHRASE_VARIABLE)
    file = None if given else _passphrase_file(trust)
    if file is not None and not file.is_file():
        message = (
            f"{settings.state} exists already, and there is no {file} with its passphrase: nothing "
            f"is overwritten; set {domain.PASSPHRASE_VARIABLE}, or choose another folder"
        )
        raise StorageError(message, code="storage.exists")
    settings = replace(settings, passphrase_file=file)
    return domain.take_up(settings, domain.passphrase_of(settings)).trust, file


def _unwritable(path: Path, error: OSError) -> StorageError:
    message = f"{path} can't be made ({error.strerror}): give this user the right"
    return StorageError(message, code="storage.readonly")


# --- what is written ----------------------------------------------------------------------------


def _passphrase_file(trust: TrustDocument) -> Path:
    """Name the file after the log, so that no two domains share it (XDG Base Directory)."""
    home = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not home.is_absolute():
        home = Path("~/.config").expanduser()
    return home / "agentguard" / f"{trust.log.rpartition('/')[2]}.passphrase"


def _template(name: str) -> str:
    return (files("agentguard.cli") / "template" / name).read_text(encoding="utf-8")


def _toml(settings: Config, passphrase_file: Path | None) -> str:
    if passphrase_file is None:
        keys = (
            f"# The passphrase of the keys is in {domain.PASSPHRASE_VARIABLE}; or, in a file:\n"
            '# [keys]\n# passphrase_file = "~/.config/agentguard/passphrase"'
        )
    else:
        keys = (
            f"# The passphrase of the keys; {domain.PASSPHRASE_VARIABLE}, if set, goes before it.\n"
            f"[keys]\npassphrase_file = {_quoted(from_home(passphrase_file))}"
        )
    return Template(_template(config.FILE)).substitute(
        trust_domain=_quoted(settings.trust_domain),
        anchor=_quoted("" if settings.anchor is None else from_home(settings.anchor)),
        keys=keys,
    )


def _quoted(text: str) -> str:
    """Write a TOML basic string: JSON's, but for U+007F."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{text!r} is no UTF-8 text, which agentguard.toml needs: choose another path"
        raise ConfigError(message) from error
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _show(
    folder: Path, settings: Config, trust: TrustDocument, passphrase_file: Path | None
) -> None:
    made = [
        (folder / config.FILE, "the configuration"),
        (folder / _POLICY, "the policy: reads are allowed, all else is denied"),
        (settings.state, f"keys, trust document and log, for you alone; {len(trust.keys)} keys"),
    ]
    if passphrase_file is not None:
        made.append((passphrase_file, "the passphrase of the keys: back it up, it is nowhere else"))
    if settings.anchor is not None:
        made.append((settings.anchor, "checkpoints of the log, outside the state"))
    screen.line(f"The trust domain {trust.trust_domain}, founded in:")
    for path, what in made:
        screen.line()
        screen.line(f"  {from_home(path)}")
        screen.item("      ", what)
    screen.line()
    screen.line("Next:")
    if folder.resolve() != Path.cwd():
        screen.line(f"  cd {shlex.quote(str(folder))}")
    screen.line(f"  name your tools in {_POLICY}")
    screen.line('  guard_tools(tools, "assistant")    in your code (agentguard-langchain)')
    screen.line("  agentguard doctor                  is all of it sound?")
