"""``agentguard init``: creates a trust domain in a folder, completely or not at all.

The folder ``template/`` has the templates of the new files. If the folder has a configuration
already, as a clone has, the command makes only the files that are never committed: the keys and the
log. The command never overwrites a file. It checks every path first, and removes its own files if a
later step fails (``undo.py``).

The passphrase is written first, then the state, which appears as a whole, and a new configuration
last. So a state without a configuration comes from an ``init`` that was killed, and the next
``init`` completes it. In a clone, an ``init`` that was killed leaves at most a passphrase, which
the next ``init`` uses.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Final

import click

from agentguard.cli.setup import starter, undo
from agentguard.cli.setup.starter import Starter
from agentguard.cli.setup.undo import Undos
from agentguard.cli.terminal import screen, times
from agentguard.cli.terminal.location import from_home
from agentguard.cli.terminal.options import PATH, Argument, Option, command
from agentguard.domain import config, domain, keystore, trust_pin
from agentguard.domain.config import Config
from agentguard.domain.keystore import PASSPHRASE_VARIABLE
from agentguard.domain.passphrase import passphrase_of
from agentguard.errors import ConfigError, StorageError
from agentguard.identity.trust import TrustDocument

_STATE: Final = ".agentguard"
_NOT_PLAIN: Final = re.compile(r"[^a-z0-9]+")
_ENTROPY: Final = 32
"""Random bytes of a passphrase."""


@command(
    Argument("folder", "DIR", "The folder; it is created if missing.", type=PATH, default=Path()),
    Option(
        "--trust-domain NAME",
        "A domain name, such as acme.example; by default the folder's name + .internal.",
    ),
    Option(
        "--anchor DIR",
        "Where checkpoints are kept outside the state; '' for nowhere; by default "
        f"{config.DEFAULT_ANCHOR}.",
    ),
    Option("--langgraph", "Also make a LangGraph agent that runs at once, offline."),
    Option("--crewai", "Also make a CrewAI crew that runs at once, offline."),
    Option("--fastapi", "Also make a web application with a LangGraph agent."),
)
def init(*, folder: Path, trust_domain: str | None, anchor: str | None, **projects: bool) -> None:
    """Makes keys, a log, a configuration, and an example policy that allows reads; or, with one of
    --langgraph, --crewai and --fastapi, a small project whose policy and tests fit its tools. In a
    folder that has an agentguard.toml already, such as a clone, makes only the keys and the log.
    The passphrase of the keys is AGENTGUARD_PASSPHRASE, or else a random one in a file of its own
    outside the state. Nothing is overwritten. If init is killed, run it again to complete the work.
    """
    _require_folder(folder)
    project = _project(projects)
    if os.path.lexists(folder / config.FILE):
        if trust_domain is not None or anchor is not None:
            raise _options_of_another(folder / config.FILE)
        if project is not starter.PLAIN:
            message = (
                f"{folder / config.FILE} exists already, and a project brings its own: choose an "
                "empty folder for --langgraph, --crewai or --fastapi"
            )
            raise click.BadParameter(message)
        _complete(folder)
    else:
        anchor = config.DEFAULT_ANCHOR if anchor is None else anchor
        _create(folder, _settings(folder, trust_domain, anchor), project)


def _project(options: Mapping[str, bool]) -> Starter:
    """Return the starter that an option names, or the plain one."""
    named = [name for name, is_named in options.items() if is_named]
    if len(named) > 1:
        message = (
            f"--{named[0]} and --{named[1]} make two projects: name one of them (--fastapi has a "
            "LangGraph agent in it)"
        )
        raise click.BadParameter(message)
    return starter.PROJECTS[named[0]] if named else starter.PLAIN


def _create(folder: Path, settings: Config, project: Starter) -> None:
    """Create the trust domain, or complete one whose ``init`` was killed."""
    is_half_made = (settings.state / keystore.TRUST).is_file()
    new = [folder / path for path in project.templates]
    for path in () if is_half_made else (*new, settings.state):
        undo.refuse_existing(path)
    for path in new:
        if path.parent != folder and path.parent.is_symlink():  # it may lead out of the folder
            undo.refuse_existing(path.parent, "remove the link, or choose another folder")
    with undo.all_or_nothing() as undos:
        undo.folder(undos, folder)
        trust, passphrase_file = _take_up(settings) if is_half_made else _make_new(undos, settings)
        for path in project.templates:
            if not (folder / path).exists():
                undo.folder(undos, (folder / path).parent)
                undo.file(undos, folder / path, project.content(path))
        undo.file(undos, folder / config.FILE, _toml(settings, passphrase_file, project))
        config.load(folder / config.FILE)  # a guard must be able to read the new file
    screen.line(f"Created the trust domain {trust.trust_domain}:")
    _list(
        (folder / config.FILE, "the configuration"),
        *((folder / path, what) for path, what in project.purposes.items()),
        *_private_paths(settings, trust, passphrase_file),
    )
    if project is starter.PLAIN:
        named = f"name your tools in {config.FILE} ([tools]) and in {starter.POLICY}"
        _next(folder, named, *_IN_CODE, _DOCTOR)
    else:
        _next(folder, *project.missing(), *project.runs, *_AFTER_A_RUN, _DOCTOR)


def _options_of_another(file: Path) -> click.BadParameter:
    """Return the error for options that only a new configuration can follow."""
    settings = config.load(file)
    anchor = "none" if settings.anchor is None else from_home(settings.anchor)
    return click.BadParameter(
        f"{file} exists already, with the trust domain {settings.trust_domain} and the anchor "
        f"{anchor}: leave out --trust-domain and --anchor to make the keys and the log for it, "
        "or name another folder for a new trust domain"
    )


def _complete(folder: Path) -> None:
    """Make the keys, the log and the passphrase of an existing configuration."""
    settings = config.load(folder / config.FILE)
    undo.refuse_existing(settings.state, "run agentguard doctor to check it")
    if settings.trust_domain == config.NO_DOMAIN:  # the name would be in every signature
        message = (
            f"{settings.source}: trust_domain: expected a domain name, as in 'acme.example', "
            "found none"
        )
        raise ConfigError(message)
    passphrase, new_file = _passphrase(settings)
    with undo.all_or_nothing() as undos:
        trust = _make_state(undos, settings, passphrase, lambda _trust: new_file)
    screen.line(f"Created the keys and the log of the trust domain {trust.trust_domain}:")
    _list(*_private_paths(settings, trust, new_file))
    unchanged = [(folder / config.FILE, "the configuration")]
    if settings.keys.passphrase_file is not None and settings.keys.passphrase_file != new_file:
        unchanged.append(
            (settings.keys.passphrase_file, "the passphrase, named by the configuration")
        )
    screen.line()
    screen.line("Unchanged:")
    _list(*unchanged)
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
    nearest = next(path for path in (path, *path.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise StorageError(f"{nearest} is not a folder: name a folder", code="storage.exists")


# --- the state ----------------------------------------------------------------------------------

_TrustAndFile = tuple[TrustDocument, Path | None]
"""The trust document, and the file with the passphrase, if there is one."""


def _make_new(undos: Undos, settings: Config) -> _TrustAndFile:
    variable = keystore.from_environment()
    passphrase = variable.reveal() if variable else _new_passphrase()
    file = _no_file if variable else _passphrase_file
    trust = _make_state(undos, settings, passphrase, file)
    return trust, file(trust)


def _make_state(
    undos: Undos,
    settings: Config,
    passphrase: bytes,
    file: Callable[[TrustDocument], Path | None],
) -> TrustDocument:
    """Make the state; ``file`` returns the path for the passphrase, or None to write no file."""

    def keep_passphrase(trust: TrustDocument) -> None:
        """Write the passphrase before the state appears, which nobody can open without it."""
        undos.append(lambda: _forget(settings, trust))
        path = file(trust)
        if path is not None:
            undo.folder(undos, path.parent, mode=0o700)
            undo.file(undos, path, passphrase.decode() + "\n", mode=0o600)

    undo.folder(undos, settings.state.parent)
    if settings.anchor is not None:
        undo.folder(undos, settings.anchor, mode=0o700)
    return domain.found(settings, passphrase, now=times.now(), ready=keep_passphrase)


def _forget(settings: Config, trust: TrustDocument) -> None:
    """Remove this run's state and its part of the anchor; other logs share the anchor."""
    if keystore.load_trust(settings.state) == trust:
        shutil.rmtree(settings.state)
        if settings.anchor is not None:
            trust_pin.forget(settings.anchor, trust.log)


def _take_up(settings: Config) -> _TrustAndFile:
    """Open the state of an ``init`` that was killed; raises as ``domain.take_up`` does."""
    trust = keystore.load_trust(settings.state)
    file = None if keystore.from_environment() else _passphrase_file(trust)
    if file is not None and not file.is_file():
        message = (
            f"{settings.state} exists already, and the file {file} with its passphrase does not: "
            f"nothing is overwritten; set {PASSPHRASE_VARIABLE}, or choose another folder"
        )
        raise StorageError(message, code="storage.exists")
    settings = replace(settings, keys=replace(settings.keys, passphrase_file=file))
    return domain.take_up(settings, passphrase_of(settings)).trust, file


# --- the passphrase -----------------------------------------------------------------------------


def _new_passphrase() -> bytes:
    return secrets.token_urlsafe(_ENTROPY).encode()


def _passphrase(settings: Config) -> tuple[bytes, Path | None]:
    """Return the passphrase for an existing configuration, and the path if a new file is needed.

    Raises ``KeyMaterialError`` if neither the configuration nor the environment has a passphrase,
    and ``ConfigError`` for a new file inside the state.
    """
    file = settings.keys.passphrase_file
    if keystore.from_environment() or file is None or os.path.lexists(file):
        return passphrase_of(settings).reveal(), None
    if config.is_inside(file, settings.state):
        message = (
            f"{settings.source}: keys.passphrase_file: {file} would be in the same folder as the "
            f"keys that it protects: name a file outside {settings.state}"
        )
        raise ConfigError(message)
    return _new_passphrase(), file


def _no_file(_trust: TrustDocument) -> None:
    """Write no file: the passphrase comes from the environment."""


def _passphrase_file(trust: TrustDocument) -> Path:
    """Name the file after the log, so that no two domains share a file (XDG Base Directory)."""
    home = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not home.is_absolute():
        home = Path("~/.config").expanduser()
    return home / "agentguard" / f"{trust.log.rpartition('/')[2]}.passphrase"


# --- the files ----------------------------------------------------------------------------------


def _toml(settings: Config, passphrase_file: Path | None, project: Starter) -> str:
    if passphrase_file is None:
        keys = (
            f"# The passphrase of the keys is in {PASSPHRASE_VARIABLE}. To use a file instead:\n"
            '# [keys]\n# passphrase_file = "~/.config/agentguard/passphrase"'
        )
    else:
        keys = (
            f"# The passphrase of the keys. {PASSPHRASE_VARIABLE}, if set, takes precedence.\n"
            f"[keys]\npassphrase_file = {_quoted(from_home(passphrase_file))}"
        )
    return Template(starter.template(config.FILE)).substitute(
        trust_domain=_quoted(settings.trust_domain),
        anchor=_quoted("" if settings.anchor is None else from_home(settings.anchor)),
        keys=keys,
        tables=starter.template(project.tables),
    )


def _quoted(text: str) -> str:
    """Write a TOML basic string, which is a JSON string with U+007F escaped."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{text!r} is not UTF-8, as agentguard.toml must be: choose another path"
        raise ConfigError(message) from error
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# --- the report ---------------------------------------------------------------------------------

_IN_CODE: Final = (
    'guard_tools(tools, "assistant")    in your code (agentguard-langchain), or',
    "guard_crew(crew, Guard.find())     for agents that [agents] names (agentguard-crewai), or",
    "agentguard mcp pin --name NAME -- COMMAND    for an MCP server (agentguard-mcp)",
)
_AFTER_A_RUN: Final = (
    "agentguard trace --last            what the agent did, from the log",
    "agentguard policy test             does the policy say what its tests expect?",
)
_DOCTOR: Final = "agentguard doctor                  to check the set-up"


def _private_paths(
    settings: Config, trust: TrustDocument, passphrase_file: Path | None
) -> Iterator[tuple[Path, str]]:
    """Yield the paths that are never committed, each with its purpose."""
    what = f"{len(trust.keys)} keys, the trust document and the log, readable only by you"
    yield settings.state, what
    if passphrase_file is not None:
        yield passphrase_file, "the passphrase of the keys: back it up, there is no other copy"
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
