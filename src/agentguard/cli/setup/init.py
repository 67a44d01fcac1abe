"""``agentguard init``: a trust domain in a folder, all of it or nothing.

What it writes from stands in ``template/``. For a configuration that is there already, as in a
clone, it makes what is never committed: the keys and the log. Nothing is ever overwritten:
everything is looked at first, and if a later step fails, what this run has made is taken away
again (``undo.py``). The state is there whole or not at all, after its passphrase; a new
configuration comes last. So a state without one is that of an init that was killed, and the next
one goes on; an init that was killed in a clone has left a passphrase at most, which the next takes.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated, Final

import typer

from agentguard.cli.setup import undo
from agentguard.cli.setup.undo import Undos
from agentguard.cli.terminal import screen, times
from agentguard.cli.terminal.location import from_home
from agentguard.domain import config, domain, keystore, trust_pin
from agentguard.domain.config import Config
from agentguard.domain.passphrase import PASSPHRASE_VARIABLE, passphrase_of
from agentguard.errors import ConfigError, StorageError
from agentguard.identity.trust import TrustDocument

_POLICY: Final = Path("policies", "authz.rego")
_CASES: Final = Path("policies", "authz_test.toml")
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
        str | None,
        typer.Option(
            "--anchor",
            metavar="DIR",
            help="Where checkpoints are kept outside the state; '' for nowhere; by default "
            f"{config.DEFAULT_ANCHOR}.",
        ),
    ] = None,
) -> None:
    """Create a trust domain in a folder.

    Makes keys, a log, a configuration, and an example policy that allows reads; where there is an
    agentguard.toml already, as in a clone, only the keys and the log that it asks for.
    The passphrase of the keys is AGENTGUARD_PASSPHRASE, or else a random one in a file of its own
    outside the state. Nothing is overwritten. If it is killed, run it again: it goes on.
    """
    _require_folder(folder)
    if os.path.lexists(folder / config.FILE):
        if trust_domain is not None or anchor is not None:
            message = f"{folder / config.FILE} is there: leave --trust-domain and --anchor to it"
            raise typer.BadParameter(message)
        _complete(folder)
    else:
        anchor = config.DEFAULT_ANCHOR if anchor is None else anchor
        _found(folder, _settings(folder, trust_domain, anchor))


def _found(folder: Path, settings: Config) -> None:
    """Make everything, or what an init that was killed has left to be made."""
    begun = (settings.state / keystore.TRUST).is_file()
    for path in () if begun else (folder / _POLICY, folder / _CASES, settings.state):
        undo.refuse_existing(path)
    with undo.all_or_nothing() as so_far:
        undo.folder(so_far, folder)
        trust, passphrase_file = _take_up(settings) if begun else _make_new(so_far, settings)
        for path in (_POLICY, _CASES):
            if not (folder / path).exists():
                undo.folder(so_far, folder / path.parent)
                undo.file(so_far, folder / path, _template(path.name))
        undo.file(so_far, folder / config.FILE, _toml(settings, passphrase_file))
        config.load(folder / config.FILE)  # what was written is what a guard will read
    screen.line(f"The trust domain {trust.trust_domain}, founded in:")
    _list(
        (folder / config.FILE, "the configuration"),
        (folder / _POLICY, "the policy: reads are allowed, all else is denied"),
        (folder / _CASES, "what it must say of some calls: agentguard policy test"),
        *_kept(settings, trust, passphrase_file),
    )
    _next(folder, f"name your tools in {_POLICY}", *_IN_CODE, _DOCTOR)


def _complete(folder: Path) -> None:
    """Make what an existing configuration lacks."""
    settings = config.load(folder / config.FILE)
    undo.refuse_existing(settings.state, "agentguard doctor says whether it is sound")
    if settings.trust_domain == config.NO_DOMAIN:  # else that is signed into all that follows
        message = (
            f"{settings.source}: trust_domain: expected a domain name, as in 'acme.example', "
            "found none"
        )
        raise ConfigError(message)
    passphrase, missing = _passphrase(settings)
    with undo.all_or_nothing() as so_far:
        trust = _make_state(so_far, settings, passphrase, lambda _trust: missing)
    screen.line(f"The trust domain {trust.trust_domain}, by its configuration; made:")
    _list(*_kept(settings, trust, missing))
    left = [(folder / config.FILE, "the configuration")]
    if settings.passphrase_file is not None and settings.passphrase_file != missing:
        left.append((settings.passphrase_file, "named there as the file of the passphrase"))
    screen.line()
    screen.line("Left as it was:")
    _list(*left)
    _next(folder, _DOCTOR)


def _settings(folder: Path, trust_domain: str | None, anchor: str) -> Config:
    name = trust_domain or _domain_of(folder)
    where = anchor if anchor in ("", config.DEFAULT_ANCHOR) else str(Path(anchor).absolute())
    return config.parse(
        {"trust_domain": name, "state": _STATE, "anchor": where},
        source="agentguard init",
        base=folder.absolute(),
    )


def _domain_of(folder: Path) -> str:
    label = _NOT_PLAIN.sub("-", folder.resolve().name.lower()).strip("-")[:63].strip("-")
    return f"{label or 'agents'}.internal"


def _require_folder(folder: Path) -> None:
    path = folder.absolute()
    there = next(path for path in (path, *path.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise StorageError(f"{there} is no folder: name one", code="storage.exists")


# --- the state ----------------------------------------------------------------------------------

_Founded = tuple[TrustDocument, Path | None]
"""The trust document, and the file with the passphrase, if there is one."""


def _make_new(so_far: Undos, settings: Config) -> _Founded:
    given = keystore.from_environment()
    passphrase = given.reveal() if given else _new_passphrase()
    file = _no_file if given else _passphrase_file
    trust = _make_state(so_far, settings, passphrase, file)
    return trust, file(trust)


def _make_state(
    so_far: Undos,
    settings: Config,
    passphrase: bytes,
    file: Callable[[TrustDocument], Path | None],
) -> TrustDocument:
    """Make the state, and the ``file`` of its passphrase, if that is to be made."""

    def keep_passphrase(trust: TrustDocument) -> None:
        """Keep it before the state is there, which can't be opened without it."""
        so_far.append(lambda: _forget(settings, trust))
        path = file(trust)
        if path is not None:
            undo.folder(so_far, path.parent, mode=0o700)
            undo.file(so_far, path, passphrase.decode() + "\n", mode=0o600)

    undo.folder(so_far, settings.state.parent)
    if settings.anchor is not None:
        undo.folder(so_far, settings.anchor, mode=0o700)
    return domain.found(settings, passphrase, now=times.now(), ready=keep_passphrase)


def _forget(settings: Config, trust: TrustDocument) -> None:
    """Remove this run's state, if it is there, with its anchors: others keep theirs beside them."""
    if keystore.load_trust(settings.state) == trust:
        shutil.rmtree(settings.state)
        if settings.anchor is not None:
            trust_pin.forget(settings.anchor, trust.log)


def _take_up(settings: Config) -> _Founded:
    """Take up the state of an init that was killed; raises as ``domain.take_up`` does."""
    trust = keystore.load_trust(settings.state)
    given = keystore.from_environment()
    file = None if given else _passphrase_file(trust)
    if file is not None and not file.is_file():
        message = (
            f"{settings.state} exists already, and there is no {file} with its passphrase: nothing "
            f"is overwritten; set {PASSPHRASE_VARIABLE}, or choose another folder"
        )
        raise StorageError(message, code="storage.exists")
    settings = replace(settings, passphrase_file=file)
    return domain.take_up(settings, passphrase_of(settings)).trust, file


# --- the passphrase -----------------------------------------------------------------------------


def _new_passphrase() -> bytes:
    return secrets.token_urlsafe(_ENTROPY).encode()


def _passphrase(settings: Config) -> tuple[bytes, Path | None]:
    """Return the passphrase for an existing configuration, and its file if that is to be made.

    Raises ``KeyMaterialError`` where the configuration names no file and the environment has none,
    ``ConfigError`` for a file in the state, which is not there yet.
    """
    file = settings.passphrase_file
    given = keystore.from_environment()
    if given or file is None or os.path.lexists(file):
        return passphrase_of(settings).reveal(), None
    if config.is_inside(file, settings.state):
        message = (
            f"{settings.source}: keys.passphrase_file: {file} would lie with the keys that it "
            f"protects: name a file outside {settings.state}"
        )
        raise ConfigError(message)
    return _new_passphrase(), file


def _no_file(_trust: TrustDocument) -> None:
    """The passphrase comes from the environment, and is written nowhere."""


def _passphrase_file(trust: TrustDocument) -> Path:
    """Name the file after the log, so that no two domains share it (XDG Base Directory)."""
    home = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not home.is_absolute():
        home = Path("~/.config").expanduser()
    return home / "agentguard" / f"{trust.log.rpartition('/')[2]}.passphrase"


# --- what is written ----------------------------------------------------------------------------


def _template(name: str) -> str:
    return (files("agentguard.cli.setup") / "template" / name).read_text(encoding="utf-8")


def _toml(settings: Config, passphrase_file: Path | None) -> str:
    if passphrase_file is None:
        keys = (
            f"# The passphrase of the keys is in {PASSPHRASE_VARIABLE}; or, in a file:\n"
            '# [keys]\n# passphrase_file = "~/.config/agentguard/passphrase"'
        )
    else:
        keys = (
            f"# The passphrase of the keys; {PASSPHRASE_VARIABLE}, if set, goes before it.\n"
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


# --- what is told -------------------------------------------------------------------------------

_IN_CODE: Final = (
    'guard_tools(tools, "assistant")    in your code (agentguard-langchain), or',
    "guard_crew(crew, Guard.find())     for agents that [agents] names (agentguard-crewai)",
)
_DOCTOR: Final = "agentguard doctor                  is all of it sound?"


def _kept(
    settings: Config, trust: TrustDocument, passphrase_file: Path | None
) -> Iterator[tuple[Path, str]]:
    """Yield what is never committed, and why it is there."""
    what = f"keys, trust document and log, for you alone; {len(trust.keys)} keys"
    yield settings.state, what
    if passphrase_file is not None:
        yield passphrase_file, "the passphrase of the keys: back it up, it is nowhere else"
    if settings.anchor is not None:
        yield settings.anchor, "checkpoints of the log, outside the state"


def _list(*paths: tuple[Path, str]) -> None:
    for path, what in paths:
        screen.line()
        screen.item("  ", str(from_home(path)))
        screen.item("      ", what)


def _next(folder: Path, *steps: str) -> None:
    screen.line()
    screen.line("Next:")
    if folder.resolve() != Path.cwd():
        screen.item("  ", screen.command(f"cd {shlex.quote(str(folder))}"))
    for step in steps:
        screen.item("  ", screen.command(step))
