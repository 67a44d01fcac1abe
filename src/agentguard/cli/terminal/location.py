"""Finds the state, the anchor and the trust document that the command line names.

The trust document is the one that --trust names, or else the copy in the anchor. If nobody has
named the anchor, and the default anchor does not know the log, the trust document is the state's
own, with a warning (records.md). This module takes no lock, needs no passphrase and imports no
code of an application.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from agentguard.audit.log import LogReader
from agentguard.cli.terminal import client_side, files
from agentguard.domain import config, keystore, trust_pin
from agentguard.domain.config import Config
from agentguard.errors import ConfigError, StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.storage import writers
from agentguard.storage.anchor import log_folder, trust_path
from agentguard.store.log import StoreLog
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import FileEngine, path_in
from agentguard.store.state_log import open_log


@dataclass(frozen=True, slots=True)
class Location:
    """A state directory, and its anchor directory, or None without an anchor.

    ``config`` is None if the command line names a state that has no configuration. ``assumed``
    means that nobody has named the anchor, and that ``anchor`` is the default.
    """

    state: Path
    anchor: Path | None
    config: Config | None
    assumed: bool = False

    def log(self, trust: TrustDocument, *, writes_pages: bool = False) -> StoreLog:
        """Open the log to look into it, under its verified head; raises ``StorageError``."""
        keys = lambda: trust.keys_for("log")  # noqa: E731
        return open_log(self.state, self.anchor, trust.log, keys, writes_pages=writes_pages)

    def reader(self) -> LogReader:
        """Return a reader of the log; what is wrong with the file, the first read raises."""
        return StoredLog(FileEngine(path_in(self.state), writes=False))


@dataclass(frozen=True, slots=True)
class Trust:
    """A trust document and its file; ``outside`` means that the file is not part of the state."""

    document: TrustDocument
    source: str
    outside: bool

    def warning(self) -> str:
        """Return the warning about a trust document that is part of the verified state."""
        return (
            f"UNTRUSTED KEY: the keys come from {self.source}, which is part of the state that "
            "they verify; name a trust document from another source with --trust"
        )


class TrustedLog(NamedTuple):
    """The location of a log, and its trust document."""

    location: Location
    trust: Trust

    def is_apart(self) -> bool:
        """Whether nobody who can write the state can change its anchor."""
        state, anchor = self.location.state, self.location.anchor
        log = self.trust.document.log
        return anchor is not None and writers.is_apart(state, log_folder(anchor, log))


def load(config_file: Path | None) -> Config:
    """Load a configuration; raises ``ConfigError``.

    Without ``config_file``, load the nearest ``agentguard.toml``, from the working directory
    upwards.
    """
    return config.load(config_file or config.find(Path.cwd()))


def load_own(config_file: Path | None) -> Config:
    """Load the configuration of the state that a command will change; raises as ``locate``."""
    settings = load(config_file)
    client_side.refuse(settings)
    _check(settings.state, settings.anchor, settings)
    return settings


def load_to_serve(config_file: Path | None) -> Config:
    """Load the configuration of a guard server that is about to start; raises as ``locate``.

    Another server at the same address is an error of the server's start.
    """
    settings = load(config_file)
    _check(settings.state, settings.anchor, settings)
    return settings


def locate(
    config_file: Path | None, state: Path | None = None, anchor: str | None = None
) -> Location:
    """Find the state and its anchor.

    If ``state`` is named and ``anchor`` is not, the anchor comes from ``config_file``, or from the
    nearest configuration if it names this state; otherwise it is the default.
    Raises ``ConfigError`` (``server.remote`` where a guard server has the state), or
    ``StorageError`` (``storage.missing``) if there is no state.
    """
    settings: Config | None
    if state is None:
        settings = load(config_file)
        client_side.refuse(
            settings, hint="; to read the state from before the server, name it with --state"
        )
        state = settings.state
    else:
        settings = load(config_file) if config_file is not None else _config_of(state)
    if anchor is not None:
        anchor_folder = config.resolve(Path(), anchor) if anchor else None
    elif settings is not None:
        anchor_folder = settings.anchor
    else:
        anchor_folder = config.resolve(Path(), config.DEFAULT_ANCHOR)
    _check(state, anchor_folder, settings)
    return Location(state, anchor_folder, settings, assumed=anchor is None and settings is None)


def trusted_log(
    config: Path | None, state: Path | None, anchor: str | None, trust: Path | None
) -> TrustedLog:
    """Find a log and its trust document; raises as ``locate`` and ``trust_of`` do."""
    location = locate(config, state, anchor)
    return TrustedLog(location, trust_of(location, trust))


def trust_of(location: Location, file: Path | None) -> Trust:
    """Return the trust document to verify with; raises as ``anchored_trust`` does."""
    if file is not None:
        return Trust(trust_in(file), from_home(file), outside=True)
    trust_of_state = own_trust(location)
    return anchored_trust(location, trust_of_state.document) or trust_of_state


def own_trust(location: Location) -> Trust:
    """Read the state's own trust document; raises ``DecodeError`` or ``StorageError``."""
    document = keystore.load_trust(location.state)
    return Trust(document, from_home(location.state / keystore.TRUST), outside=False)


def trust_in(file: Path) -> TrustDocument:
    """Read the trust document that --trust names; raises ``DecodeError`` or ``StorageError``."""
    remedy = "name a file of agentguard trust export with --trust"
    return keystore.parse_trust(files.read(file), file, remedy)


def anchored_trust(location: Location, trust_of_state: TrustDocument) -> Trust | None:
    """Return the copy of the trust document in the anchor.

    Of ``trust_of_state`` only the name of the log is used. None without an anchor, and if the
    default anchor does not know the log. Raises ``StorageError``, ``DecodeError``, or
    ``VerificationError`` (``trust.changed``) as ``trust_pin.require`` does.
    """
    anchor, state = location.anchor, location.state
    if anchor is None:
        return None
    pin = trust_pin.find if location.assumed else trust_pin.require
    document = pin(anchor, state, trust_of_state.log)
    if document is None:
        return None
    return Trust(document, from_home(trust_path(anchor, trust_of_state.log)), outside=True)


def log_options(
    config: Path | None, state: Path | None, anchor: str | None, trust: Path | None
) -> str:
    """Write the options of this command for the line of another command that reads the same log."""
    options = (
        ("--config", config),
        ("--state", state),
        ("--anchor", anchor),
        ("--trust", trust),
    )
    return "".join(
        f" {name} {shlex.quote(str(value))}" for name, value in options if value is not None
    )


def config_option(where: Location) -> str:
    """Write the option --config with which a command changes the state that was read.

    An empty text if the nearest configuration names this state; ``--config FILE``, to be filled in
    by the user, if the configuration of the state is unknown.
    """
    settings = where.config
    if settings is None or settings.state.resolve() != where.state.resolve():
        return " --config FILE"
    nearest = _nearest()
    if nearest is not None and nearest.samefile(settings.source):
        return ""
    return f" --config {shlex.quote(settings.source)}"


def from_home(path: Path) -> str:
    """Write a path for people: a path below the home directory begins with ``~``."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _exists(path: Path) -> bool:
    """Whether a path exists; raises ``StorageError`` if this user may not look at it."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): give this user the right to read it"
        raise StorageError(message, code="storage.readonly") from error
    return True


def _check(state: Path, anchor: Path | None, settings: Config | None) -> None:
    """Refuse a missing state first, and then an anchor inside the state."""
    if not any(map(_exists, (state / keystore.TRUST, path_in(state)))):
        where = ""
        if settings is not None and settings.state == state:
            # init in another folder than the configuration's would create another domain
            where = f" {shlex.quote(str(settings.base))}"
        message = f"there is no state at {state}: run agentguard init{where}, or correct --state"
        raise StorageError(message, code="storage.missing")
    config.require_outside(anchor, state, "the anchor ")


def _config_of(state: Path) -> Config | None:
    """Return the nearest configuration if it names this state.

    A configuration beside a state is not used, because it may come from whoever sent the state.
    """
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
