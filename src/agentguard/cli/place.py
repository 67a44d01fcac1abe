"""Where a trust domain lies, as the command line is told it, and whom to believe about its log.

Which trust document counts (records.md, Audit log) is settled here: the one that was named, else
the copy with the anchors, else, and then it is said, the state's own. Nothing here takes a lock,
needs a passphrase or imports an application's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from agentguard import config
from agentguard.config import Config
from agentguard.errors import ConfigError, StorageError
from agentguard.identity.trust import TrustDocument
from agentguard.storage import keystore, sqlite
from agentguard.storage.anchor import trust_path
from agentguard.storage.reader import StateReader

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="The configuration; by default the nearest agentguard.toml, from here upwards.",
    ),
]
StateOption = Annotated[
    Path | None, typer.Option("--state", metavar="DIR", help="The state directory to read.")
]
AnchorOption = Annotated[
    str | None,
    typer.Option(
        "--anchor",
        metavar="DIR",
        help="Where checkpoints are kept outside the state; '' for nowhere.",
    ),
]
TrustOption = Annotated[
    Path | None,
    typer.Option(
        "--trust",
        metavar="FILE",
        help="The trust document to believe; by default the copy that is kept with the anchors.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@dataclass(frozen=True, slots=True)
class Place:
    """A state directory, and the directory with its anchors, None for nowhere.

    ``config`` is None where a state was named for which no configuration was found.
    """

    state: Path
    anchor: Path | None
    config: Config | None

    def reader(self) -> StateReader:
        """Open the log for reading; raises ``StorageError``."""
        return StateReader(self.state)


@dataclass(frozen=True, slots=True)
class Trust:
    """A trust document, and where it came from; ``outside`` unless from the state itself."""

    document: TrustDocument
    source: str
    outside: bool


def locate(config_file: Path | None, state: Path | None = None, anchor: str | None = None) -> Place:
    """Find the state and its anchor.

    A named state takes its anchor from ``config_file`` or, if they name this very state, from the
    nearest configuration above the working directory; else it is the default.
    Raises ``ConfigError``, or ``StorageError`` (``storage.missing``) where no state is.
    """
    settings: Config | None
    if state is None:
        settings = config.load(config_file or config.find(Path.cwd()))
        state = settings.state
    elif config_file is not None:
        settings = config.load(config_file)
    else:
        settings = _config_of(state)
    _require_state(state)
    if anchor is not None:
        kept = Path(anchor).expanduser() if anchor else None
    elif settings is not None:
        kept = settings.anchor
    else:
        kept = Path(config.DEFAULT_ANCHOR).expanduser()
    if kept is not None and is_inside(kept, state):
        message = (
            f"the anchor {kept} lies inside the state {state}, for which it should vouch: "
            "name another with --anchor, or none with --anchor ''"
        )
        raise ConfigError(message, code="anchor.inside")
    return Place(state, kept, settings)


def trust(place: Place, file: Path | None) -> Trust:
    """Find the trust document that counts; raises ``DecodeError`` or ``StorageError``."""
    if file is not None:
        return Trust(TrustDocument.loads(_bytes(file)), from_home(file), outside=True)
    own = keystore.load_trust(place.state)
    kept = anchored_trust(place, own)
    if kept is not None:
        return kept
    return Trust(own, from_home(place.state / keystore.TRUST), outside=False)


def anchored_trust(place: Place, own: TrustDocument) -> Trust | None:
    """Return the copy kept with the anchors; of the state's ``own`` it takes only the name."""
    if place.anchor is None:
        return None
    try:
        path = trust_path(place.anchor, own.log)
    except StorageError:
        return None  # the state calls its log what none is called: no anchor can be of it
    if not path.exists():
        return None
    return Trust(TrustDocument.loads(_bytes(path)), from_home(path), outside=True)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or below it, links followed."""
    return path.resolve().is_relative_to(folder.resolve())


def from_home(path: Path) -> str:
    """Write a path for people: below the home directory it begins with ``~``."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _require_state(state: Path) -> None:
    """Say that there is no state before anything is said of its anchor."""
    if any((state / name).exists() for name in (keystore.TRUST, sqlite.FOLDER)):
        return
    message = f"there is no state at {state}: run agentguard init, or correct --state"
    raise StorageError(message, code="storage.missing")


def _config_of(state: Path) -> Config | None:
    """Only what stands where the person stands: beside a state lies what came with it."""
    found = _nearest(Path.cwd())
    settings = config.load(found) if found is not None else None
    same = settings is not None and settings.state.resolve() == state.resolve()
    return settings if same else None


def _nearest(start: Path) -> Path | None:
    try:
        return config.find(start)
    except ConfigError:
        return None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"{path} can't be read ({error.strerror}): name a file that this user can read"
        raise StorageError(message, code="storage.missing") from error
