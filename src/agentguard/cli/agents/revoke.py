"""The command ``agentguard revoke``: revoke whatever a name, a token or a file stands for.

It needs the passphrase of the keys, and signs with the admin key. What a revocation denies is in
docs/how-to/delegation.md; the effects on a key of the trust domain are in docs/how-to/keys.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Final

import click

from agentguard.call.invocation import timestamp
from agentguard.cli.agents import delegations, inventory, token_parts
from agentguard.cli.agents.inventory import AgentRecord
from agentguard.cli.setup import key_status
from agentguard.cli.terminal import location, screen, times
from agentguard.cli.terminal.options import (
    AS_JSON,
    COMPROMISED_SINCE,
    CONFIG,
    Argument,
    Option,
    command,
)
from agentguard.domain import administration, keystore, rotation
from agentguard.domain.config import Config
from agentguard.domain.passphrase import passphrase_of
from agentguard.errors import ConfigError
from agentguard.identity import credential
from agentguard.identity.principal import is_principal
from agentguard.store.reader import StoredLog

_AGENT_NAME: Final = re.compile(credential.NAME)

# the form of an id that agentguard makes; that of an access token stands in the entries of calls
# alone, which are too many to search
_OWN_JTI: Final = re.compile(r"[0-9a-f]{32}")

_DASHED: Final = re.compile(r"-[A-Za-z0-9_-]{7,127}")
_THUMBPRINT_LENGTH: Final = 43


class _TakesNames(click.Command):
    """A command with an argument that may be an id that begins with ``-``, as one id in 64 does.

    The command has no option of one letter. So a word that begins with one ``-`` and is as long as
    an id is an id, and a word that begins with two and is as long as a thumbprint is a thumbprint.
    Any other such word is an option, or a misspelt option.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line, after such ids have been moved behind a ``--``."""
        end = args.index("--") if "--" in args else len(args)
        options = {name: one for one in self.params for name in (*one.opts, *one.secondary_opts)}
        names: list[str] = []
        others: list[str] = []
        takes_value = False
        for arg in args[:end]:
            is_value, option = takes_value, options.get(arg)
            takes_value = not is_value and isinstance(option, click.Option) and not option.is_flag
            is_name = not is_value and _is_dashed(arg) and f"-{arg}" not in options
            (names if is_name and option is None else others).append(arg)
        if not names:
            return super().parse_args(ctx, args)
        return super().parse_args(ctx, [*others, "--", *names, *args[end + 1 :]])


def _is_dashed(arg: str) -> bool:
    if arg.startswith("--"):
        return len(arg) == _THUMBPRINT_LENGTH and _DASHED.fullmatch(arg) is not None
    return _DASHED.fullmatch(arg) is not None


@command(
    Argument(
        "what",
        "NAME|FILE|TOKEN|KEY",
        "An agent's name, an instance (its URI or short name), a principal or a service as in "
        "user:alice, a file with a token or a stored delegation (./FILE or FILE.json; - for "
        "stdin), the token itself, its id, or a key's thumbprint.",
    ),
    Option(
        "--note TEXT", "The reason, which is logged. Required, but for a key of the trust domain."
    ),
    COMPROMISED_SINCE,
    Option("--in-advance", "Revoke a name that nobody in the log or the configuration has yet."),
    CONFIG,
    AS_JSON,
    cls=_TakesNames,
)
def revoke(
    *,
    what: str,
    note: str | None,
    compromised_since: datetime | None,
    in_advance: bool,
    config: Path | None,
    json: bool,
) -> None:
    """From then on each call that goes through what is revoked is denied, in every process on the
    state. The revocation is logged, and can't be undone.

    A key of the trust domain (agentguard keys list) that was rotated before is revoked with
    --compromised-since, and without --note.
    """
    if (note is None) == (compromised_since is None):
        message = "give --note TEXT; or, for a key of the trust domain, --compromised-since TIME"
        raise click.BadParameter(message)
    settings = location.load_own(config)
    if note is None and compromised_since is not None:
        _revoke_key(settings, what, compromised_since, json=json)
        return
    name = _name(settings, what, in_advance=in_advance)
    recorded = administration.revoke(
        settings, passphrase_of(settings), name, note=note or "", now=times.now()
    )
    screen.recorded(f"revoked: {name}", {"revoked": name}, recorded, json=json)


def _revoke_key(settings: Config, thumbprint: str, since: datetime, *, json: bool) -> None:
    revocation = rotation.revoke(
        settings,
        passphrase_of(settings),
        thumbprint,
        compromised_since=since,
        now=times.now(),
    )
    key, unfinished = revocation.key, revocation.unfinished
    if json:
        screen.json_line(
            {
                "revoked": key.key.thumbprint,
                "use": key.use,
                "compromised_since": timestamp(since),
                "unfinished": str(unfinished) if unfinished is not None else None,
            }
        )
        return
    screen.line(f"revoked: nothing counts any more that this {key.use} key signs")
    key_status.print_change(key, unfinished)


def _name(settings: Config, what: str, *, in_advance: bool) -> str:
    """Return the name to be revoked; raises ``ConfigError`` where there is none, or several.

    A file is read only where ``what`` is written as a path. Whoever may write into the working
    directory, an agent for one, could otherwise have another thing revoked in the place of a name.
    """
    is_agent = what in settings.agents
    is_name = is_agent or in_advance
    is_file = not is_name and token_parts.is_path(what) and token_parts.is_file(what)
    if is_file or token_parts.is_inline(what):
        with closing(StoredLog.of(settings.state)) as reader:
            return token_parts.read(what).with_chain_of(reader).last_hop_id
    if is_agent:
        return f"agent:{what}"
    agents = {f"agent:{name}" for name in settings.agents}
    if in_advance or what in {*settings.principal_tables, *agents}:
        return what
    _refuse_key_of_domain(settings, what)
    name = _name_in_log(settings, what)
    if name is None and _OWN_JTI.fullmatch(what):
        screen.warn(
            f"no delegation in the log has the id {what}: only an access token of this id is denied"
        )
        return what
    return name or _agent_or_instance(settings, what)


def _refuse_key_of_domain(settings: Config, what: str) -> None:
    for key in keystore.load_trust(settings.state).keys:
        if key.key.thumbprint == what:
            remedy = "revoke it with --compromised-since TIME, and without --note"
            if key.not_after is None and key.compromised_since is None:
                remedy = f"replace it: agentguard keys rotate {key.use} --compromised-since TIME"
            message = f"{what} is the trust domain's own {key.use} key: {remedy}"
            raise ConfigError(message, code="revocation.name")


def _name_in_log(settings: Config, what: str) -> str | None:
    """Return the name that delegations and credentials of the log have, None where none has it."""
    spellings = [what, f"agent:{what}"] if _AGENT_NAME.fullmatch(what) else [what]
    with closing(StoredLog.of(settings.state)) as reader:
        names = [name for name in spellings if delegations.is_known(reader, name)]
    if len(names) > 1:
        raise _ambiguous(
            f"{what} is an agent and the id of a delegation: write agent:{what} for the agent, or "
            "add --in-advance for the delegation"
        )
    return names[0] if names else None


def _agent_or_instance(settings: Config, what: str) -> str:
    """Return the name of an agent or of an instance by the entries of its calls, or its short name.

    Raises ``ConfigError`` where there is none, and where a short name has several instances.
    """
    if token_parts.is_path(what):
        message = (
            f"there is no file {what}, and nothing in the log or the configuration has that name: "
            "give the file's path, or the name of what is to be revoked"
        )
        raise ConfigError(message, code="revocation.name")
    agents = inventory.load(location.locate(Path(settings.source)))
    agent = None if is_principal(what) else inventory.find(agents, what)
    if agent is None:
        raise _unknown(settings, what, agents)
    if agent.name == what:
        return f"agent:{what}"
    if len(agent.instances) == 1:
        return agent.instances[0].uri
    uris = ", ".join(instance.uri for instance in agent.instances)
    raise _ambiguous(f"{what} may be {uris}: give the URI")


def _unknown(settings: Config, what: str, agents: Sequence[AgentRecord]) -> ConfigError:
    remedy = "correct the name, which is compared whole; a principal has its kind, as in user:alice"
    if token_parts.is_file(what):
        remedy = f"for the file of this name, write ./{what}; else {remedy}"
    if credential.parse_alias(what) is None:
        name = f"agent:{what}" if _AGENT_NAME.fullmatch(what) else what
        administration.require_revocable(name)
        write = "" if name == what else f"write {name}, and "
        remedy += f"; to revoke it before anybody has it, {write}add --in-advance"
    names = ", ".join(agent.name for agent in agents) or "none"
    message = (
        f"nobody in the log or in {settings.source} is called {what} (the agents are {names}): "
        f"{remedy}"
    )
    return ConfigError(message, code="revocation.unknown")


def _ambiguous(message: str) -> ConfigError:
    return ConfigError(message, code="revocation.ambiguous")
