"""``[clients]``: who may be a client of a guard server, and what the client may do."""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agentguard.errors import ConfigError
from agentguard.spelling import did_you_mean
from agentguard.tables import Table, kinds, setting

if TYPE_CHECKING:
    from agentguard.domain.config.settings import Config

EVERYTHING: Final = "*"

LAUNCHED: Final = "run:"
"""The beginning of the names of the clients that ``agentguard run`` has started."""

_SPIFFE: Final = re.compile(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+")


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Who may be a client of the guard server.

    Without such a table, processes of the server's own user may, and may be any agent.

    ::

        [clients.reviewer]
        uid = 1001
        # user = "reviewer"
        # group = "agents"
        # spiffe = "spiffe://acme.example/web-1"
        # issuer = "cluster"
        # subject = "system:serviceaccount:prod:billing"
        # claims = { client_id = "billing" }
        agents = ["code-reviewer"]
        vouches_for = ["user:*"]
        answers = false
        sees_requests = false
    """

    name: str
    """The NAME of the table; ``NAME/USER`` for a user of a ``group``."""

    uid: int | None = setting(kinds.number, default=None)
    """The number of the user whose processes are this client; or ``user``, or ``group``, or
    ``spiffe``, or ``issuer`` with ``subject``. A client on another machine has none."""

    agents: tuple[str, ...] = setting(kinds.texts, default=())
    """The agents that the client may be; a name that ends in ``*`` stands for all that begin so."""

    vouches_for: tuple[str, ...] = setting(kinds.texts, default=())
    """The principals whose delegations the client begins and takes up, as in ``agents``."""

    answers: bool = setting(kinds.boolean, default=False)
    """Whether the client sees all requests for approvals, and its word counts for answers."""

    sees_requests: bool = setting(kinds.boolean, default=False)
    """Whether the client sees all requests for approvals, for a person who signs answers."""

    spiffe: str | None = setting(
        kinds.text.where(
            lambda text: _SPIFFE.fullmatch(text) is not None,
            "a SPIFFE ID, as in 'spiffe://acme.example/web-1'",
        ),
        default=None,
    )
    """The SPIFFE ID in the certificate of a client on another machine."""

    issuer: str | None = setting(kinds.text, default=None)
    """The NAME of ``[issuers.NAME]``, for a client on another machine that shows a token."""

    subject: str | None = setting(kinds.text, default=None)
    """The exact subject of that client's tokens."""

    claims: tuple[tuple[str, str], ...] = setting(
        kinds.mapping.to(
            lambda claims: tuple(sorted(claims.items())) or None,
            "the claims that a token of this client has, or no such key",
        ),
        default=(),
    )
    """Claims that each of that client's tokens has besides, with exactly these texts."""

    group: str | None = setting(kinds.text, default=None)
    """The name of a group of this machine, each of whose users is the client ``NAME/USER``. It is
    looked up at the start and at a reload (docs/how-to/server.md#who-is-a-client). The users share
    the descriptors of the server, so raise its limit (``LimitNOFILE``) for a large group."""

    user: str | None = setting(kinds.text, default=None)
    """The name of the user, in the place of ``uid``."""

    @property
    def table(self) -> str:
        """The NAME of the table in ``[clients]``."""
        return self.name if self.group is None else self.name.partition("/")[0]

    @property
    def mark(self) -> tuple[int | str | None, ...]:
        """What the server knows the client by; no two clients have the same."""
        return (self.uid, self.spiffe, self.issuer, self.subject)

    def may_see_requests_of(self, agent: str) -> bool:
        """Whether the client sees the requests for approvals of this agent."""
        return self.answers or self.sees_requests or self.may_be(agent)

    def may_be(self, agent: str) -> bool:
        """Whether the client may be this agent."""
        return _matches(self.agents, agent)

    def may_vouch_for(self, principal: str) -> bool:
        """Whether the client may begin and take up delegations of this principal."""
        return _matches(self.vouches_for, principal)


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith(EVERYTHING) else name == pattern
        for pattern in patterns
    )


def known_clients(
    outer: Table, tables: Mapping[str, ClientConfig], issuers: Collection[str]
) -> Mapping[str, ClientConfig]:
    """Return the clients of ``[clients]``, with the number of each user, and each group's members.

    ``outer`` is that table; ``issuers`` are the names in ``[issuers]``. The members of a group are
    those of now. Raises ``ConfigError``.
    """
    clients: dict[str, ClientConfig] = {}
    members: list[ClientConfig] = []
    for name, one in tables.items():
        table = outer.table(name)
        _require_one_proof(table, one, issuers)
        client = one if one.user is None else replace(one, uid=_uid(table, one.user))
        if client.group is not None:
            members += _members(table, client, client.group)
            continue
        for other in clients.values():
            if other.mark == client.mark:
                raise ConfigError(f"{table.name()}: the client {other.name} is the same")
        clients[name] = client
    known = {client.uid for client in clients.values()}
    for member in members:  # last: a table of the user's own counts more than a group
        if member.uid not in known:
            if member.name in clients:  # a log would mix the two
                message = (
                    f"clients.{member.name}: give this table another name: a member of the group "
                    f"{member.group} has this name already, by [clients.{member.table}]"
                )
                raise ConfigError(message)
            clients[member.name] = member
            known.add(member.uid)
    return clients


def _require_one_proof(table: Table, client: ClientConfig, issuers: Collection[str]) -> None:
    """Refuse a name that is none, and a client that is known by nothing, or in two ways."""
    if not client.name or not client.name.isprintable():
        raise ConfigError(f"{table.name()}: the name of a client is a text of one line")
    if client.name.startswith(LAUNCHED):
        message = f"{table.name()}: only programs of agentguard run have names with {LAUNCHED}"
        raise ConfigError(message)
    ways = (client.uid, client.user, client.group, client.spiffe, client.issuer)
    if len(ways) - ways.count(None) != 1:
        expected = (
            "one of uid, user = 'NAME', group = 'NAME', spiffe = 'spiffe://...', and issuer with "
            "subject"
        )
        raise table.mistake("uid", expected)
    if (client.issuer is None) is not (client.subject is None):
        raise table.mistake("subject", "the subject of the client's tokens, beside their issuer")
    if client.issuer is not None and client.issuer not in issuers:
        raise table.mistake("issuer", "the NAME of a table [issuers.NAME]")
    if client.issuer is None and client.claims:
        raise table.mistake("claims", "no claims: they are those of a token, beside an issuer")


def _uid(table: Table, user: str) -> int:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError as error:
        raise table.mistake("user", "the name of a user of this machine") from error


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


def warnings(settings: Config) -> Iterator[str]:
    """Yield what to do about each agent in ``[clients]`` that has no table in ``[agents]``."""
    tables = {client.table: client for client in settings.client_tables.values()}
    for client in tables.values():
        for pattern in client.agents:
            if not any(_matches((pattern,), agent) for agent in settings.agents):
                hint = did_you_mean(pattern, settings.agents)
                yield (
                    f"agents in [clients.{client.table}] has {pattern!r}, which is the name of no "
                    f"table [agents.NAME]: {hint}add the table, or correct the name"
                )
