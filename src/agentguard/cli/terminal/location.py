"""Finds the state, the anchors and the trust document that the command line names.

The trust document is the named one, else the copy with the anchors. Where nobody has named the
anchors, it is the state's own, with a warning (records.md). Nothing here takes a lock, needs a
passphrase or imports an application's code.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from agentguard.audit.log import LogReader
from agentguard.cli.terminal import files
from agentguard.domain import config, domain, keystore, trust_pin
from agentguard.domain.config import Config
from agentguard.errors import ConfigError, StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.storage import sqlite, writers
from agentguard.storage.anchor import log_folder, trust_path
from agentguard.storage.approval_files import FileApprovals
from agentguard.storage.ledger import Ledger
from agentguard.storage.reader import StateReader


@dataclass(frozen=True, slots=True)
class Location:
    """A state directory, and the directory with its anchors, None for nowhere.

    ``config`` is None where a state was named for which no configuration was found; ``assumed``
    says that nobody has named this anchor: it is the default.
    """

    state: Path
    anchor: Path | None
    config: Config | None
    assumed: bool = False

    def reader(self) -> LogReader:
        """Open the log for reading; raises ``StorageError``, also where no shard is there."""
        return StateReader(self.state)

    def reader_of_what_is_left(self) -> LogReader:
        """Open the log for reading, though no shard be there; raises ``StorageError``."""
        return StateReader(self.state, may_be_empty=True)


@dataclass(frozen=True, slots=True)
class Trust:
    """A trust document, and where it came from; ``outside`` unless from the state itself."""

    document: TrustDocument
    source: str
    outside: bool

    def warning(self) -> str:
        """Return the warning for a trust document from the state that it checks."""
        return (
            f"UNTRUSTED KEY: the keys come from {self.source}, a part of what is checked; "
            "name a trust document of your own with --trust"
        )


class TrustedLog(NamedTuple):
    """The location of a log, and its trust document."""

    location: Location
    trust: Trust

    def is_apart(self) -> bool:
        """Whether nobody who writes the state can change its anchor."""
        state, anchor = self.location.state, self.location.anchor
        log = self.trust.document.log
        return anchor is not None and writers.is_apart(state, log_folder(anchor, log))


def load(config_file: Path | None) -> Config:
    """Load the configuration: the named one, or the nearest, from here upwards.

    Raises ``ConfigError``.
    """
    return config.load(config_file or config.find(Path.cwd()))


def load_own(config_file: Path | None) -> Config:
    """Load the configuration of a state in which something is to be done; raises as ``locate``."""
    settings = load(config_file)
    _check(settings.state, settings.anchor, settings)
    return settings


def locate(
    config_file: Path | None, state: Path | None = None, anchor: str | None = None
) -> Location:
    """Find the state and its anchor.

    A named state takes its anchor from ``config_file`` or, if they name this very state, from the
    nearest configuration above the working directory; else it is the default.
    Raises ``ConfigError``, or ``StorageError`` (``storage.missing``) where no state is.
    """
    settings: Config | None
    if state is None:
        settings = load(config_file)
        state = settings.state
    else:
        settings = load(config_file) if config_file is not None else _config_of(state)
    if anchor is not None:
        anchors = config.resolve(Path(), anchor) if anchor else None
    elif settings is not None:
        anchors = settings.anchor
    else:
        anchors = config.resolve(Path(), config.DEFAULT_ANCHOR)
    _check(state, anchors, settings)
    return Location(state, anchors, settings, assumed=anchor is None and settings is None)


def trusted_log(
    config_file: Path | None, state: Path | None, anchor: str | None, trust_file: Path | None
) -> TrustedLog:
    """Find a log and the trust document that counts; raises as ``locate`` and ``trust`` do."""
    location = locate(config_file, state, anchor)
    return TrustedLog(location, trust(location, trust_file))


def trust(location: Location, file: Path | None) -> Trust:
    """Find the trust document that counts; raises as ``anchored_trust`` does."""
    if file is not None:
        return Trust(trust_in(file), from_home(file), outside=True)
    own = own_trust(location)
    return anchored_trust(location, own.document) or own


def approvals(config_file: Path | None) -> FileApprovals:
    """Return where requests wait, each held against the log; raises as ``trusted_log`` does."""
    where, believed = trusted_log(config_file, None, None, None)
    domain.refuse_links(where.state)
    ledger = Ledger(where.state, where.anchor, lambda: believed.document)
    return FileApprovals(where.state, ledger)


def own_trust(location: Location) -> Trust:
    """Read the state's own trust document; raises ``DecodeError`` or ``StorageError``."""
    document = keystore.load_trust(location.state)
    return Trust(document, from_home(location.state / keystore.TRUST), outside=False)


def trust_in(file: Path) -> TrustDocument:
    """Read the trust document that --trust names; raises ``DecodeError`` or ``StorageError``."""
    remedy = "name with --trust what agentguard trust export has written"
    return keystore.parse_trust(files.read(file), file, remedy)


def anchored_trust(location: Location, own: TrustDocument) -> Trust | None:
    """Return the copy kept with the anchors; of the state's ``own`` it takes only the name.

    None without an anchor, or where the default one does not know the log. Raises ``StorageError``,
    ``DecodeError``, or ``VerificationError`` (``trust.changed``) as ``trust_pin.require`` does.
    """
    anchors, state = location.anchor, location.state
    if anchors is None:
        return None
    pin = trust_pin.find if location.assumed else trust_pin.require
    document = pin(anchors, state, own.log)
    if document is None:
        return None
    return Trust(document, from_home(trust_path(anchors, own.log)), outside=True)


def repeated(
    config_file: Path | None, state: Path | None, anchor: str | None, trust_file: Path | None
) -> str:
    """Write the options that a command was given, for the line of another that reads the same."""
    given = (
        ("--config", config_file),
        ("--state", state),
        ("--anchor", anchor),
        ("--trust", trust_file),
    )
    return "".join(
        f" {name} {shlex.quote(str(value))}" for name, value in given if value is not None
    )


def acting(where: Location) -> str:
    """Write the option with which a command acts in a state that was read.

    Nothing, if it is that of the nearest configuration; ``FILE``, if its own is not known.
    """
    settings = where.config
    if settings is None or settings.state.resolve() != where.state.resolve():
        return " --config FILE"
    nearest = _nearest()
    if nearest is not None and nearest.samefile(settings.source):
        return ""
    return f" --config {shlex.quote(settings.source)}"


def from_home(path: Path) -> str:
    """Write a path for people: below the home directory it begins with ``~``."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _is_there(path: Path) -> bool:
    """Whether there is something; what this user may not look at is an error, and no absence."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): give this user the right"
        raise StorageError(message, code="storage.readonly") from error
    return True


def _check(state: Path, anchors: Path | None, settings: Config | None) -> None:
    """Say that there is no state before anything is said of its anchor."""
    if not any(_is_there(state / name) for name in (keystore.TRUST, sqlite.FOLDER)):
        where = ""
        if settings is not None and settings.state == state:
            # in another folder than the configuration's it would found another domain
            where = f" {shlex.quote(str(settings.base))}"
        message = f"there is no state at {state}: run agentguard init{where}, or correct --state"
        raise StorageError(message, code="storage.missing")
    config.require_outside(anchors, state, "the anchor ")


def _config_of(state: Path) -> Config | None:
    """Only what stands where the person stands: beside a state lies what came with it."""
    nearest = _nearest()
    if nearest is None:
        return None
    settings = config.load(nearest)
    return settings if settings.state.resolve() == state.resolve() else None


def _nearest() -> Path | None:
    try:
        return config.find(Path.cwd())
    except ConfigError:
        return None
