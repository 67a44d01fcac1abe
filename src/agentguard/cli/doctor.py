"""``agentguard doctor``: is this set-up sound, and what is weak in it.

Each check yields findings, ``ok``, ``warn`` or ``fail``, whose text says what to do. Nothing is
changed and no lock is taken; keys are decrypted to see that they can be, and dropped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import typer

from agentguard import config as configuration
from agentguard import domain
from agentguard.cli import history, place, screen
from agentguard.cli.place import ConfigOption, JsonOption, Place
from agentguard.config import Config
from agentguard.errors import AgentguardError, ConfigError
from agentguard.guard import load_engine
from agentguard.identity.trust import Use
from agentguard.storage import keystore

_KEYS: Final[tuple[Use, ...]] = ("issuer", "log", "admin")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it."""

    status: Literal["ok", "warn", "fail"]
    check: str
    what: str


def doctor(*, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check whether this set-up is sound.

    Looks at configuration, policy, rights, keys, anchor, agents, tools and log; exit code 1 if a
    check fails. With --json, one object: ok, checks (each with status, check, what). Look-ups of
    facts are imported, as a guard does it: set PYTHONPATH as the application has it.
    """
    findings = list(_findings(config))
    ok = all(finding.status != "fail" for finding in findings)
    if json:
        checks = [{"status": f.status, "check": f.check, "what": f.what} for f in findings]
        screen.json_line({"ok": ok, "checks": checks})
    else:
        rows = ((screen.styled(f.status, f.status), f.check, f.what) for f in findings)
        screen.table(("", "check", "finding"), rows)
    if not ok:
        raise typer.Exit(1)


def _findings(path: Path | None) -> Iterator[Finding]:
    yield _platform()
    try:
        source = path or configuration.find(Path.cwd())
        settings = configuration.load(source)
    except AgentguardError as error:
        yield Finding("fail", "configuration", str(error))
        return
    yield Finding("ok", "configuration", f"{source} loads")
    yield from _agents(settings)
    yield from _facts(settings)
    yield _attempt("policy", lambda: _policy(settings))
    yield _attempt("state", lambda: _state(settings))
    yield _passphrase(settings)
    yield _attempt("keys", lambda: _keys(settings))
    yield from _anchor(settings)
    yield from _log(settings)


def _attempt(check: str, detail: Callable[[], str]) -> Finding:
    try:
        return Finding("ok", check, detail())
    except (AgentguardError, OSError) as error:
        return Finding("fail", check, str(error))


def _platform() -> Finding:
    if os.name != "posix":
        return Finding("fail", "platform", f"{os.name}: agentguard needs a POSIX system")
    return Finding("ok", "platform", "POSIX")


def _policy(settings: Config) -> str:
    engine = load_engine(settings)
    return f"{engine.name} {engine.version} loads it; sha256 {engine.policy_sha256 or 'unknown'}"


def _state(settings: Config) -> str:
    keystore.refuse_if_exposed(settings.state)
    return f"{settings.state} is this user's alone"


def _passphrase(settings: Config) -> Finding:
    file = settings.passphrase_file
    if os.environ.get(domain.PASSPHRASE_VARIABLE):
        what = f"it comes from {domain.PASSPHRASE_VARIABLE}, which child processes inherit"
        return Finding("ok", "passphrase", what)
    if file is None:
        what = f"there is none at hand: set {domain.PASSPHRASE_VARIABLE} or [keys] passphrase_file"
        return Finding("fail", "passphrase", what)
    if place.is_inside(file, settings.state):
        what = f"{file} lies with the keys that it protects: move it out of {settings.state}"
        return Finding("fail", "passphrase", what)
    if place.is_inside(file, settings.base):
        what = f"{file} lies beside the configuration: see that it is never committed or copied"
        return Finding("warn", "passphrase", what)
    return Finding("ok", "passphrase", f"{file}, outside the state")


def _keys(settings: Config) -> str:
    passphrase = domain.passphrase_of(settings)
    for use in _KEYS:
        keystore.load_key(settings.state, use, passphrase)
    return f"{', '.join(_KEYS)}: each opens with the passphrase"


def _anchor(settings: Config) -> Iterator[Finding]:
    if settings.anchor is None:
        what = 'there is none: a state that is rolled back is not found out; set anchor, not ""'
        yield Finding("warn", "anchor", what)
    elif place.is_inside(settings.anchor, settings.state):
        what = f"{settings.anchor} lies inside the state, for which it should vouch: move it out"
        yield Finding("fail", "anchor", what)
    elif not settings.anchor.is_dir():
        what = f"there is no {settings.anchor}: it is made with the next call that is recorded"
        yield Finding("warn", "anchor", what)
    else:
        yield Finding("ok", "anchor", f"{settings.anchor}, outside the state")


def _agents(settings: Config) -> Iterator[Finding]:
    if not settings.agents:
        yield Finding("warn", "agents", "none is configured: add an [agents.NAME] table")
    for name, agent in settings.agents.items():
        check = f"agent {name}"
        if agent.authority == "delegated":
            what = (
                "authority is delegated, which this release always denies (delegation.missing): "
                'say authority = "own" for an agent that acts by itself'
            )
            yield Finding("warn", check, what)
        elif not agent.max_scope:
            what = "max_scope is empty: every tool with `requires` is denied to it (scope.exceeded)"
            yield Finding("warn", check, what)
        else:
            yield Finding("ok", check, f"own authority over {' '.join(sorted(agent.max_scope))}")


def _facts(settings: Config) -> Iterator[Finding]:
    for name, tool in settings.tools.items():
        if tool.facts is None:
            continue
        check = f"tool {name}"
        try:
            configuration.load_callable(tool.facts, tool.where)
        except ConfigError as error:
            yield Finding("warn", check, str(error))
        else:
            yield Finding("ok", check, f"its facts come from {tool.facts}")


def _log(settings: Config) -> Iterator[Finding]:
    anchor = settings.anchor
    if anchor is not None and place.is_inside(anchor, settings.state):
        anchor = None  # reported; it vouches for nothing
    found = Place(settings.state, anchor, settings)
    try:
        believed = place.trust(found, None)
        reader = found.reader()
        with screen.counter("verifying entry") as count:
            report = domain.examine(reader, believed.document, anchor=anchor, progress=count)
        called = {row.tool for row in history.rows(reader) if row.tool is not None}
    except AgentguardError as error:
        yield Finding("fail", "log", str(error))
        return
    for problem in report.problems:
        where = f"shard {problem.shard}" + (
            f", entry {problem.index}" if problem.index is not None else ""
        )
        yield Finding("fail", "log", f"{where}: {problem.what}")
    if report.ok:
        yield Finding("ok", "log", f"{report.entries} entries are consistent")
    if not report.anchored:
        yield Finding("warn", "log", "UNANCHORED: no checkpoint from outside vouches for it")
    if not believed.outside:
        yield Finding("warn", "log", f"UNTRUSTED KEY: checked with {believed.source} itself")
    if report.in_doubt:
        what = f"{len(report.in_doubt)} calls in doubt: find out what happened; see audit verify"
        yield Finding("warn", "log", what)
    yield from _tools(settings, called)


def _tools(settings: Config, called: set[str]) -> Iterator[Finding]:
    if not called:
        if settings.tools:
            yield Finding("ok", "tools", "no call is recorded yet: nothing to compare with")
        return
    for name in settings.tools:
        if name in called:
            yield Finding("ok", f"tool {name}", "called before")
        else:
            what = f"[tools.{name}] matches nothing so far: compare the name with the tool's"
            yield Finding("warn", f"tool {name}", what)
