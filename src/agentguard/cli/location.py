"""Where a trust domain lies, as the command line is told it, and whom to believe about its log.

Which trust document counts (records.md, Audit log) is settled here: the one that was named, else
the copy with the anchors, else, and then it is said, the state's own. Nothing here takes a lock,
needs a passphrase or imports an application's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from agentguard import config
from agentguard.cli import files
from agentguard.config import Config
from agentguard.errors import ConfigError, StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.ports import LogReader
from agentguard.storage import keystore, sqlite
from agentguard.storage.anchor import trust_path
from agentguard.storage.reader import StateReader


@dataclass(frozen=True, slots=True)
class Location:
    """A state directory, and the directory with its anchors, None for nowhere.

    ``config`` is None where a state was named for which no configuration was found.
    """

    state: Path
    anchor: Path | None
    config: Config | None

    def reader(self) -> LogReader:
        """Open the log for reading; raises ``StorageError``."""
        return StateReader(self.state)


@dataclass(frozen=True, slots=True)
class Trust:
    """A trust document, and where it came from; ``outside`` unless from the state itself."""

    document: TrustDocument
    source: str
    outside: bool

    def warning(self) -> str:
        """Say of one from the state itself that its keys come from what is checked with them."""
        return (
            f"UNTRUSTED KEY: the keys come from {self.source}, a part of what is checked; "
            "name a trust document of your own with --trust"
        )


class TrustedLog(NamedTuple):
    """Where a log lies, and whom to believe about it."""

    location: Location
    trust: Trust


def load(config_file: Path | None) -> Config:
    """Load the configuration: the named one, or the nearest, from here upwards.

    Raises ``ConfigError``.
    """
    return config.load(config_file or config.find(Path.cwd()))


def load_own(config_file: Path | None) -> Config:
    """Load the configuration of a state in which something is to be done; raises as ``locate``."""
    settings = load(config_file)
    _check(settings.state, settings.anchor)
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
    _check(state, anchors)
    return Location(state, anchors, settings)


def trusted_log(
    config_file: Path | None, state: Path | None, anchor: str | None, trust_file: Path | None
) -> TrustedLog:
    """Find a log and the trust document that counts; raises as ``locate`` and ``trust`` do."""
    location = locate(config_file, state, anchor)
    return TrustedLog(location, trust(location, trust_file))


def trust(location: Location, file: Path | None) -> Trust:
    """Find the trust document that counts; raises ``DecodeError`` or ``StorageError``."""
    if file is not None:
        return Trust(TrustDocument.loads(files.read(file)), from_home(file), outside=True)
    own = keystore.load_trust(location.state)
    anchored = anchored_trust(location, own)
    if anchored is not None:
        return anchored
    return Trust(own, from_home(location.state / keystore.TRUST), outside=False)


def anchored_trust(location: Location, own: TrustDocument) -> Trust | None:
    """Return the copy kept with the anchors; of the state's ``own`` it takes only the name."""
    if location.anchor is None:
        return None
    try:
        path = trust_path(location.anchor, own.log)
    except StorageError:
        return None  # the state calls its log what none is called: no anchor can be of it
    if not path.exists():
        return None
    return Trust(TrustDocument.loads(files.read(path)), from_home(path), outside=True)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or below it, links followed."""
    return path.resolve().is_relative_to(folder.resolve())


def from_home(path: Path) -> str:
    """Write a path for people: below the home directory it begins with ``~``."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _check(state: Path, anchors: Path | None) -> None:
    """Say that there is no state before anything is said of its anchor."""
    if not any((state / name).exists() for name in (keystore.TRUST, sqlite.FOLDER)):
        message = f"there is no state at {state}: run agentguard init, or correct --state"
        raise StorageError(message, code="storage.missing")
    if anchors is not None and is_inside(anchors, state):
        message = (
            f"the anchor {anchors} lies inside the state {state}, for which it should vouch: "
            "name another with --anchor, or none with --anchor ''"
        )
        raise ConfigError(message, code="anchor.inside")


def _config_of(state: Path) -> Config | None:
    """Only what stands where the person stands: beside a state lies what came with it."""
    try:
        nearest = config.find(Path.cwd())
    except ConfigError:
        return None
    settings = config.load(nearest)
    return settings if settings.state.resolve() == state.resolve() else None
