"""Finds agentguard.toml, reads and checks it, and returns a ``Config``.

A mistake is a ``ConfigError`` that names the file, the key and the expected value. An unknown key
is a mistake. This module opens only the configuration's file; the guard opens the
files that the configuration names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from agentguard.domain.config.agents import (
    PrincipalsConfig,
    known_agents,
    known_principals,
    require_delegatees,
)
from agentguard.domain.config.approvals import roster_of
from agentguard.domain.config.paths import require_outside
from agentguard.domain.config.settings import DEFAULT_ANCHOR, Config
from agentguard.domain.config.tools import require_aliases
from agentguard.errors import ConfigError, EncodeError
from agentguard.signing import canonical
from agentguard.storage import files
from agentguard.tables import Table, read

FILE: Final = "agentguard.toml"


def load(path: Path) -> Config:
    """Read ``agentguard.toml``.

    Raises ``ConfigError``: ``config.missing``, ``config.invalid``, ``config.exposed``,
    ``anchor.inside``.
    """
    config = parse(_read(path), source=str(path), base=path.absolute().parent)
    if config.policy is None and config.server is None:
        raise ConfigError(f"{path}: policy: expected a table [policy] with a path, found none")
    return config


def find(start: Path) -> Path:
    """Return the nearest ``agentguard.toml``, from ``start`` upwards; raises ``ConfigError``."""
    for folder in (start, *start.parents):
        path = folder / FILE
        # A pipe or a device of this name is found as well, and refused when it is read.
        if os.path.lexists(path) and not path.is_dir():
            return path
    message = (
        f"there is no {FILE} in {start} or above it: run agentguard init there, or go to the "
        "project's folder, or name the file with --config, or the state where a command has --state"
    )
    raise ConfigError(message, code="config.missing")


def parse(tables: Mapping[str, Any], *, source: str, base: Path) -> Config:
    """Check the tables of a configuration; paths in it are relative to ``base``.

    Raises ``ConfigError`` (``config.invalid``, ``anchor.inside``).
    """
    defaults = {"anchor": DEFAULT_ANCHOR, "state": ".agentguard"}
    root = Table({**defaults, **tables}, source, base=base)
    for name in root.names():
        if not root.has(name):  # a table that is null is not the same as none
            raise root.mistake(name, "a value, or no such key")
    config = _joined(root, read(Config, root, source=source, base=base))
    config = replace(config, encoded=_encoded(tables, source))
    config.require_unredacted()
    require_outside(config.anchor, config.state, f"{source}: anchor: ")
    return config


def _joined(root: Table, config: Config) -> Config:
    """Return the configuration by the rules between tables; ``root`` has the tables."""
    scopes, delegation, issuers = config.role_scopes, config.delegation, config.issuers
    joined: dict[str, Any] = {"lists_agents": root.has("agents")}
    if delegation is not None and root.has("agents"):
        require_delegatees(root.table("delegation"), delegation, config.agents)
    if config.agents:
        joined["agents"] = known_agents(
            root.table("agents"),
            config.agents,
            scopes,
            delegation,
            has_owners=config.owners is not None,
        )
    if isinstance(config.principals, PrincipalsConfig):
        outer = root.table("principals")
        joined["principals"] = known_principals(outer, config.principals, scopes)
    if config.approvers or config.approvals.application:
        joined["roster"] = roster_of(root, config.approvers, config.approvals)
    require_aliases(root.table("aliases"), config.aliases)
    if issuers:
        # few configurations name an issuer
        from agentguard.domain.config.issuers import known_issuers  # noqa: PLC0415

        joined["issuers"] = known_issuers(root.table("issuers"), issuers)
    if config.clients is not None:
        # few configurations are a server's
        from agentguard.domain.config.clients import known_clients  # noqa: PLC0415

        outer = root.table("clients")
        joined["clients"] = known_clients(outer, config.clients, issuers)
    config = replace(config, **joined)
    _require_server_tables(root, config)
    return config


def _require_server_tables(root: Table, config: Config) -> None:
    """Refuse tables of a server that go with another table, where the other one says no."""
    server, service = config.server, config.service
    if service is not None and server is None:
        message = (
            f"{root.name('service')}: expected a table [server] beside it, found none: add one "
            'with a url, such as url = "unix:guard.sock"'
        )
        raise ConfigError(message)
    if server is not None and server.tls is not None and server.tls.ca is None:
        remote = [client for client in config.client_tables.values() if client.uid is None]
        if not remote or any(client.spiffe is not None for client in remote):
            expected = "the certificates of the authority of the clients' certificates"
            raise root.table("server").table("tls").mistake("ca", expected)
    for name, issuer in config.issuers.items():
        # draft-ietf-oauth-identity-assertion-authz-grant, Cross-Domain Use
        takes = issuer.users is not None and issuer.users.id_jag
        if takes and (service is None or issuer.issuer == service.issuer):
            message = (
                f"{root.name(f'issuers.{name}.users.id_jag')}: expected a table [service] with "
                "another issuer, because the token service takes ID-JAGs of others"
            )
            raise ConfigError(message)


def _read(path: Path) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415  a guard in memory reads no file

    from agentguard.domain.config import rights  # noqa: PLC0415  for the same reason

    try:
        return tomllib.loads(rights.read(path).decode())
    except FileNotFoundError as error:
        message = f"there is no file {path}: run agentguard init, or name the right file"
        raise ConfigError(message, code="config.missing") from error
    except OSError as error:
        raise ConfigError(files.unreadable(path, error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _encoded(tables: Mapping[str, Any], source: str) -> bytes:
    try:
        return canonical.dumps(dict(tables))
    except EncodeError as error:
        raise ConfigError(f"{source}: a value can't be part of a configuration: {error}") from error
