"""Finds agentguard.toml, reads and checks it, and returns a ``Config``.

A mistake is a ``ConfigError`` that names the file, the key and the expected value. An unknown key
is a mistake (``table.py``). This module opens only the configuration's file; the guard opens the
files that the configuration names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentguard.domain.config.agents import (
    delegators_of,
    read_agent,
    read_assurance,
    read_delegatees,
    read_principals,
    read_role,
)
from agentguard.domain.config.approvals import read_limits, read_roster
from agentguard.domain.config.clients import read_clients
from agentguard.domain.config.paths import require_outside, resolve
from agentguard.domain.config.policy import read_policy
from agentguard.domain.config.secrets import read_secrets
from agentguard.domain.config.server import read_server
from agentguard.domain.config.settings import DIRECTORY_SECONDS, EXPIRING_SECONDS, NO_DOMAIN, Config
from agentguard.domain.config.table import Table
from agentguard.domain.config.tools import (
    read_aliases,
    read_folders,
    read_redactions,
    read_tools,
    read_unlisted,
)
from agentguard.errors import ConfigError, EncodeError
from agentguard.signing import canonical
from agentguard.storage import files
from agentguard.telemetry.settings import ENDPOINT, RECEIVER, Settings

if TYPE_CHECKING:
    from agentguard.domain.config.issuers import IssuerConfig
    from agentguard.domain.config.mcp import McpConfig
    from agentguard.domain.config.service import ServiceConfig

FILE: Final = "agentguard.toml"
DEFAULT_ANCHOR: Final = "~/.local/state/agentguard"

_DOMAIN: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")


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
    root = Table(tables, source, "")
    anchor = root.text("anchor", DEFAULT_ANCHOR, may_be_empty=True)
    resolve_path = partial(resolve, base)
    roles = {name: read_role(table) for name, table in root.tables("roles")}
    delegatees = read_delegatees(root) if "delegation" in tables else None
    has_table = "principals" in tables and not root.is_text("principals")
    owners = root.optional("owners")
    approvals = root.table("approvals")
    issuers = _issuers(root, resolve_path)
    clients = read_clients(root, issuers)
    has_server = "server" in tables
    service = _service(root, resolve_path)
    _require_other_issuers(root, issuers, service)
    config = Config(
        source=source,
        base=base,
        trust_domain=_trust_domain(root),
        state=resolve(base, root.text("state", ".agentguard")),
        anchor=resolve(base, anchor) if anchor else None,
        passphrase_file=_passphrase_file(root.table("keys"), base),
        policy=read_policy(root.table("policy"), resolve_path) if "policy" in tables else None,
        agents={
            name: read_agent(
                name, table, roles, delegators_of(name, delegatees), has_owner=owners is None
            )
            for name, table in root.tables("agents")
        },
        lists_agents="agents" in tables,
        role_scopes=roles,
        principals=read_principals(root, roles) if has_table else None,
        assurance=read_assurance(root) if has_table else "application",
        principals_function=root.text("principals") if root.is_text("principals") else None,
        owners_function=owners,
        directory_seconds=root.seconds("directory_seconds", DIRECTORY_SECONDS),
        delegatees=delegatees,
        tools=read_tools(root),
        denies_unlisted=read_unlisted(root) == "deny",
        paths=read_folders(root.table("paths"), resolve_path),
        aliases=read_aliases(root.table("aliases")),
        roster=read_roster(root, approvals),
        limits=read_limits(approvals),
        on_request=approvals.optional("on_request"),
        on_expiring=approvals.optional("on_expiring"),
        on_expired=approvals.optional("on_expired"),
        expiring_seconds=approvals.count("expiring_seconds", EXPIRING_SECONDS),
        approver_roles=approvals.optional("roles"),
        redactions=read_redactions(root.table("redact")),
        secrets=read_secrets(root, resolve_path),
        server=read_server(root.table("server"), resolve_path, clients) if has_server else None,
        issuers=issuers,
        clients=clients,
        service=service,
        mcp=_mcp(root, resolve_path),
        telemetry=_telemetry(root.table("telemetry") if "telemetry" in tables else None),
        encoded=_encoded(tables, source),
    )
    approvals.reject_unknown()
    root.reject_unknown()
    config.require_unredacted()
    require_outside(config.anchor, config.state, f"{source}: anchor: ")
    return config


def _issuers(root: Table, resolve_path: Callable[[str], Path]) -> Mapping[str, IssuerConfig]:
    if "issuers" not in root.names():
        root.allow("issuers")
        return {}
    # few configurations name an issuer
    from agentguard.domain.config.issuers import read_issuers  # noqa: PLC0415

    return read_issuers(root, resolve_path)


def _service(root: Table, resolve_path: Callable[[str], Path]) -> ServiceConfig | None:
    if "service" not in root.names():
        root.allow("service")
        return None
    if "server" not in root.names():
        message = (
            f"{root.name('service')}: expected a table [server] beside it, found none: add one "
            'with a url, such as url = "unix:guard.sock"'
        )
        raise ConfigError(message)
    # few configurations have a token service
    from agentguard.domain.config.service import read_service  # noqa: PLC0415

    return read_service(root.table("service"), resolve_path)


def _require_other_issuers(
    root: Table, issuers: Mapping[str, IssuerConfig], service: ServiceConfig | None
) -> None:
    """Refuse ID-JAGs without a service that takes them, and the service's own.

    draft-ietf-oauth-identity-assertion-authz-grant, Cross-Domain Use.
    """
    for name, issuer in issuers.items():
        if issuer.users is None or not issuer.users.id_jag:
            continue
        if service is None or issuer.rule.issuer == service.issuer:
            message = (
                f"{root.name(f'issuers.{name}.users.id_jag')}: expected a table [service] with "
                "another issuer, because the token service takes ID-JAGs of others"
            )
            raise ConfigError(message)


def _mcp(root: Table, resolve_path: Callable[[str], Path]) -> Mapping[str, McpConfig]:
    if "mcp" not in root.names():
        root.allow("mcp")
        return {}
    # few configurations name a server behind a gateway
    from agentguard.domain.config.mcp import read_mcp  # noqa: PLC0415

    return read_mcp(root, resolve_path)


def _trust_domain(root: Table) -> str:
    name = root.text("trust_domain", NO_DOMAIN)
    if not _DOMAIN.match(name):
        raise root.mistake("trust_domain", "a domain name in lower case, as in 'acme.example'")
    return name


def _passphrase_file(keys: Table, base: Path) -> Path | None:
    file = keys.file("passphrase_file", partial(resolve, base))
    keys.reject_unknown()
    return file


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


def _telemetry(table: Table | None) -> Settings:
    if table is None:
        return Settings()
    endpoint, service = table.text("endpoint", ""), table.text("service_name", "")
    if endpoint and not ENDPOINT.match(endpoint):
        raise table.mistake("endpoint", RECEIVER)
    switches = ("metrics", "arguments", "results", "reasons", "hash_users")
    on = {name: table.boolean(name, default=False) for name in switches}
    on["host"] = table.boolean("host", default=True)
    table.reject_unknown()
    return Settings(True, endpoint, service, **on)  # noqa: FBT003  the table is present


def _encoded(tables: Mapping[str, Any], source: str) -> bytes:
    try:
        return canonical.dumps(dict(tables))
    except EncodeError as error:
        raise ConfigError(f"{source}: a value can't be part of a configuration: {error}") from error
