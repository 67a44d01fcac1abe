"""The checks of ``agentguard doctor`` on a guard server, its socket and its clients.

The checks run in the configuration of a server (with its state) and in that of a client. They look
at owners and modes of files, and at no other access lists.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from agentguard.cli.setup.finding import Finding
from agentguard.cli.terminal import client_side
from agentguard.cli.terminal.location import from_home
from agentguard.client import dial
from agentguard.client.connection import Greeting
from agentguard.client.link import Link
from agentguard.domain.config import Config, clients, rights
from agentguard.domain.config.clients import ClientConfig
from agentguard.domain.config.engine_loader import configured_engine
from agentguard.domain.config.server import ServerConfig
from agentguard.errors import AgentguardError
from agentguard.signing import canonical
from agentguard.wire.peer import ROOT

_CHECK: Final = "server"
_READ, _WRITE, _ENTER = 4, 2, 1


def findings(settings: Config, *, own: bool) -> Iterator[Finding]:
    """Check the server of a configuration, and its clients.

    ``own`` says that the configuration is the server's, and not a client's (``client_side``).
    """
    server = settings.server
    if server is None:
        return
    if not own and (settings.policy is not None or os.path.lexists(settings.state)):
        yield Finding("ok", "client", _unused(server, settings))
    yield _answer(server, settings, own=own)
    if isinstance(server.address, Path) and server.address.parent.is_dir():
        yield _folder(server.address.parent, own=own)
    if own:
        for what in clients.warnings(settings):
            yield Finding("warn", "clients", what)
        for client in settings.client_tables.values():
            try:
                yield _reach(client, settings)
            except OSError as error:
                yield Finding("fail", f"client {client.name}", str(error))


def _unused(server: ServerConfig, settings: Config) -> str:
    """Say what a client's configuration has from the time before the server."""
    return (
        f"programs with this configuration use the guard server at {client_side.name(server)}: its "
        f"policy, agents and log count, and those of this configuration ({settings.source}, "
        f"{from_home(settings.state)}) do not"
    )


def _answer(server: ServerConfig, settings: Config, *, own: bool) -> Finding:
    try:
        link = Link(dial.inherited() or dial.at(server.address), timeout=server.timeout)
        try:
            greeting = link.connect()
            looks_after = own and greeting.isolation == "same-user"
            loaded = link.request({"op": "status"}).header if looks_after else {}
        finally:
            link.close()
    except AgentguardError as error:
        # before the start of a server, its configuration may be sound
        is_absent = own and error.code == "server.unreachable"
        return Finding("warn" if is_absent else "fail", _CHECK, str(error))
    found = _failing(loaded) or _edited(loaded, settings)
    return found or _isolation(greeting, settings, own=own)


def _failing(loaded: Mapping[str, Any]) -> Finding | None:
    """Say that the server can't write its log, by its status; None where the server can."""
    failure = loaded.get("log_failure")
    if not isinstance(failure, Mapping):
        return None
    return Finding(
        "fail", _CHECK, f"it answers, and the log can't be written: {failure['message']}"
    )


def _edited(loaded: Mapping[str, Any], settings: Config) -> Finding | None:
    """Say that the server goes by an earlier configuration or policy; None where it does not.

    ``loaded`` is the server's status, empty for a process that may not see the status.
    """
    edited: list[str] = []
    if loaded and loaded.get("config_sha256") != canonical.sha256_hex(settings.encoded):
        edited.append("the configuration")
    with suppress(AgentguardError):  # another check says what is wrong with the policy
        if loaded and loaded.get("policy_sha256") != _policy_sha256(settings):
            edited.append("the policy")
    if not edited:
        return None
    what = (
        f"it answers, and goes by an earlier version of {' and of '.join(edited)}: run agentguard "
        "server reload"
    )
    return Finding("warn", _CHECK, what)


def _policy_sha256(settings: Config) -> str | None:
    with closing(configured_engine(settings)) as engine:
        return engine.policy_sha256


def _isolation(greeting: Greeting, settings: Config, *, own: bool) -> Finding:
    """Say how the server sees this process, and what that means."""
    if greeting.isolation != "same-user":
        what = (
            f"it answers, and sees this process as client {greeting.client}, {greeting.isolation}: "
            "the process gets what [clients] allows, and reaches neither keys nor policy nor log"
        )
        return Finding("ok", _CHECK, what)
    if own and settings.clients is not None:
        what = "it answers, and sees this process as same-user, which looks after the server"
        return Finding("ok", _CHECK, what)
    what = (
        "it answers, and sees this process as same-user: code of an agent in such a process can "
        "read and change the server's files; give the agents' programs users of their own, and "
        "name the users in [clients] at the server"
    )
    return Finding("warn", _CHECK, what)


def _folder(folder: Path, *, own: bool) -> Finding:
    """Say whether others can put a socket of their own into the server's place.

    A client can't know who the server's user is, and so looks at the modes alone.
    """
    if own:
        try:
            rights.refuse_if_writable_by_others(folder)
        except (AgentguardError, OSError) as error:
            return Finding("fail", "socket", str(error))
    shared = next((at for at in (folder, *folder.resolve().parents) if _is_shared(at)), None)
    if shared is not None:
        what = (
            f"others can write {from_home(shared)}, and put a socket of their own into the "
            "server's place: the folder has to belong to root or to the server's user alone"
        )
        return Finding("fail", "socket", what)
    return Finding("ok", "socket", f"only its owner can write {from_home(folder)}")


def _is_shared(folder: Path) -> bool:
    """Whether others can write a folder, and replace what is in the folder."""
    mode = folder.stat().st_mode
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH)) and not mode & stat.S_ISVTX


def _reach(client: ClientConfig, settings: Config) -> Finding:
    """Say which files of the server a client's user can read or change."""
    check = f"client {client.name}"
    if client.uid is None:
        return _remote(check, client, settings)
    if client.uid in (ROOT, os.getuid()):
        who = "root" if client.uid == ROOT else "the server's own user"
        what = (
            f"it is {who}, who reaches keys, policy and log (same-user): give the agents' program "
            "a user of its own"
        )
        return Finding("warn", check, what)
    user = _User(client.uid)
    for path in _private(settings):
        if user.may(path, _READ) or user.may(path, _WRITE):
            what = (
                f"its user {client.uid} can read or write {from_home(path)}: run chmod go-rwx on it"
            )
            return Finding("fail", check, what)
    what = f"its user {client.uid} can read neither the state, nor the passphrase, nor a secret"
    return Finding("ok", check, what)


def _remote(check: str, client: ClientConfig, settings: Config) -> Finding:
    """Say how a client on another machine is known; a client with tokens can use the service."""
    proof = client.spiffe or f"tokens of {client.issuer} for {client.subject}"
    known = f"it is on another machine, and known by {proof}"
    if settings.server is not None and settings.server.tls is not None:
        return Finding("ok", check, known)
    if client.issuer is not None and settings.service is not None:
        what = f"{known}; without [server.tls], it can use the token service alone"
        return Finding("ok", check, what)
    what = "it is on another machine, and no client gets here from there: add [server.tls]"
    return Finding("warn", check, what)


def _private(settings: Config) -> list[Path]:
    """Return the files that only the server's user may read."""
    files = [secret.file for secret in settings.secrets.values()]
    tls = None if settings.server is None else settings.server.tls
    keys = () if tls is None else (tls.key,)
    paths = (settings.state, settings.keys.passphrase_file, *keys, *files)
    return [path.resolve() for path in paths if path is not None and path.exists()]


class _User:
    """A user of this machine, with the groups of the user's account, if there is an account."""

    def __init__(self, uid: int) -> None:
        self._uid = uid
        try:
            account = pwd.getpwuid(uid)
        except KeyError:
            self._groups: frozenset[int] = frozenset()
        else:
            self._groups = frozenset(os.getgrouplist(account.pw_name, account.pw_gid))

    def may(self, path: Path, bit: int) -> bool:
        """Whether the modes of a file and of the folders above the file let the user do this."""
        folders = all(self._allows(folder, _ENTER) for folder in path.parents)
        return folders and self._allows(path, bit)

    def _allows(self, path: Path, bit: int) -> bool:
        status = path.stat()
        if status.st_uid == self._uid:
            return bool(status.st_mode >> 6 & bit)
        if status.st_gid in self._groups:
            return bool(status.st_mode >> 3 & bit)
        return bool(status.st_mode & bit)
