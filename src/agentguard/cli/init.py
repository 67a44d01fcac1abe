"""``agentguard init``: a trust domain in a folder, all of it or nothing.

What it writes from stands in ``template/``. Nothing is ever overwritten: everything is looked at
first, and if a later step fails, what this run has made is taken away again.
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
from agentguard.storage import keystore
from agentguard.storage.anchor import log_folder

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
    outside the state. Nothing is overwritten.
    """
    settings = _settings(folder, trust_domain, anchor)
    for path in (folder / config.FILE, folder / _POLICY, settings.state):
        _refuse_existing(path)
    with _all_or_nothing() as made:
        trust, passphrase_file = _make_all(made, folder, settings)
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


def _make_all(made: _Made, folder: Path, settings: Config) -> tuple[TrustDocument, Path | None]:
    """Make everything; return the trust document and the passphrase's file, if there is one."""
    given = os.environ.get(domain.PASSPHRASE_VARIABLE)
    passphrase = given or secrets.token_urlsafe(_ENTROPY)
    _folder(made, folder)
    trust = _make_state(made, settings, passphrase.encode())
    passphrase_file = None if given else _passphrase_file(trust)
    if passphrase_file is not None:
        _folder(made, passphrase_file.parent, mode=0o700)
        _write(made, passphrase_file, passphrase + "\n", mode=0o600)
    _folder(made, folder / _POLICY.parent)
    _write(made, folder / _POLICY, _template("authz.rego"))
    _write(made, folder / config.FILE, _toml(settings, passphrase_file))
    _write(made, settings.state / ".gitignore", "*\n")
    config.load(folder / config.FILE)  # what was written is what a guard will read
    return trust, passphrase_file


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


def _make_state(made: _Made, settings: Config, passphrase: bytes) -> TrustDocument:
    state, anchor = settings.state, settings.anchor
    _make(state, 0o700)  # not there before: what will be in it is this run's
    made.append(lambda: shutil.rmtree(state))
    if anchor is not None:
        _folder(made, anchor, mode=0o700)
        made.append(lambda: _forget(anchor, state))
    return domain.found(settings, passphrase, now=datetime.now(UTC))


def _forget(anchor: Path, state: Path) -> None:
    """Remove the anchors of this state alone: others keep theirs in the same folder."""
    trust = keystore.load_trust(state)
    shutil.rmtree(log_folder(anchor, trust.log), ignore_errors=True)


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
