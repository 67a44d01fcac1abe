"""Reads ``[clients]``: who may be a client of a guard server, and what the client may do."""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final

from agentguard.domain.config.server import LAUNCHED, ClientConfig
from agentguard.domain.config.table import Table
from agentguard.errors import ConfigError

_WAYS: Final = 5  # to say who a client is
_SPIFFE: Final = re.compile(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+")


def read_clients(root: Table, issuers: Collection[str]) -> Mapping[str, ClientConfig] | None:
    """Read ``[clients]``; None without the table. ``issuers`` are the names in ``[issuers]``.

    The members of a group are those of now. Raises ``ConfigError``.
    """
    clients: dict[str, ClientConfig] = {}
    members: list[ClientConfig] = []
    for name, table in root.tables("clients"):
        if not name or not name.isprintable():
            raise ConfigError(f"{table.name('uid')}: the name of a client is a text of one line")
        if name.startswith(LAUNCHED):
            message = f"{table.name('uid')}: only programs of agentguard run have names with run:"
            raise ConfigError(message)
        uid, spiffe, issuer, subject = _who(table, issuers)
        client = ClientConfig(
            name,
            uid,
            table.texts("agents", ()),
            table.texts("vouches_for", ()),
            table.boolean("answers", default=False),
            table.boolean("sees_requests", default=False),
            spiffe,
            issuer,
            subject,
            _claims(table, issuer),
            table.optional("group"),
        )
        table.reject_unknown()
        if client.group is not None:
            members += _members(table, client, client.group)
            continue
        for other in clients.values():
            if other.mark == client.mark:
                message = f"{table.name('')}: the client {other.name} is the same"
                raise ConfigError(message)
        clients[name] = client
    known = {client.uid for client in clients.values()}
    for member in members:  # last: a table of the user's own counts more than a group
        if member.uid not in known:
            _require_new(member, clients)
            clients[member.name] = member
            known.add(member.uid)
    return clients if "clients" in root.names() else None


def _members(table: Table, client: ClientConfig, name: str) -> list[ClientConfig]:
    """Return a client for each user whose primary group it is, or whom the group names.

    ``name`` is the group's.
    """
    if "/" in client.name:
        raise table.mistake("group", "a NAME without a slash for a table with a group")
    try:
        group = grp.getgrnam(name)
    except KeyError as error:
        raise table.mistake("group", "the name of a group of this machine") from error
    accounts = [one for one in pwd.getpwall() if one.pw_gid == group.gr_gid]
    for user in group.gr_mem:
        with suppress(KeyError):  # a name in a group may be of no user any more
            accounts.append(pwd.getpwnam(user))  # not all directories list their users
    return [
        replace(client, name=f"{client.name}/{one.pw_name}", uid=one.pw_uid) for one in accounts
    ]


def _require_new(member: ClientConfig, clients: Mapping[str, ClientConfig]) -> None:
    """Raise ``ConfigError`` for a member with the name of another client: a log would mix them."""
    if member.name in clients:
        message = (
            f"clients.{member.name}: give this table another name: a member of the group "
            f"{member.group} has this name already, by [clients.{member.table}]"
        )
        raise ConfigError(message)


_Who = tuple[int | None, str | None, str | None, str | None]


def _who(table: Table, issuers: Collection[str]) -> _Who:
    """Return the user's number, or the SPIFFE ID, or the issuer and the subject of a client."""
    uid, user, spiffe = table.number("uid"), table.optional("user"), table.optional("spiffe")
    issuer, subject = table.optional("issuer"), table.optional("subject")
    group = table.optional("group")
    if [uid, user, group, spiffe, issuer].count(None) != _WAYS - 1:
        expected = (
            "one of uid, user = 'NAME', group = 'NAME', spiffe = 'spiffe://...', and issuer with "
            "subject"
        )
        raise table.mistake("uid", expected)
    if (issuer is None) is not (subject is None):
        raise table.mistake("subject", "the subject of the client's tokens, beside their issuer")
    if group is not None:
        return None, None, None, None
    if issuer is not None:
        if issuer not in issuers:
            raise table.mistake("issuer", "the NAME of a table [issuers.NAME]")
        return None, None, issuer, subject
    if spiffe is not None:
        if not _SPIFFE.fullmatch(spiffe):
            raise table.mistake("spiffe", "a SPIFFE ID, as in 'spiffe://acme.example/web-1'")
        return None, spiffe, None, None
    return _uid(table, uid, user), None, None, None


def _claims(table: Table, issuer: str | None) -> tuple[tuple[str, str], ...]:
    claims = table.mapping("claims")
    if claims is None:
        return ()
    if issuer is None:
        raise table.mistake("claims", "no claims: they are those of a token, beside an issuer")
    if not claims:
        raise table.mistake("claims", "the claims that a token of this client has, or no such key")
    return tuple(sorted(claims.items()))


def _uid(table: Table, uid: int | None, user: str | None) -> int:
    if user is None:
        assert uid is not None  # noqa: S101  one of the two is there
        return uid
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError as error:
        raise table.mistake("user", "the name of a user of this machine") from error
