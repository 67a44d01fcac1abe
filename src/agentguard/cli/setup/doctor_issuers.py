"""The checks of ``agentguard doctor`` on issuers of tokens: their keys, and whose tokens count.

A file is read. A URL is not asked: ``doctor`` uses no network beside the server's own address.
"""

from __future__ import annotations

from collections.abc import Iterator

from agentguard.cli.setup.finding import Finding
from agentguard.cli.terminal import screen
from agentguard.cli.terminal.location import from_home
from agentguard.domain.config import Config
from agentguard.domain.config.issuers import IssuerConfig
from agentguard.domain.issuer_keys import open_source
from agentguard.errors import AgentguardError


def findings(settings: Config) -> Iterator[Finding]:
    """Check each issuer of a configuration, and the clients that show tokens."""
    used = {client.issuer for client in settings.client_tables.values()}
    for name, issuer in settings.issuers.items():
        check = f"issuer {name}"
        try:
            source = open_source(issuer, settings.source)
            if issuer.jwks_file is None:
                what = (
                    f"doctor does not ask {issuer.jwks_url}: the first token makes the server ask"
                )
                yield Finding("ok", check, what)
            else:
                keys = screen.count(len(source.keys().keys), "key", "keys")
                place = from_home(issuer.jwks_file)
                yield Finding("ok", check, f"{place} has {keys} of {_who(issuer)}")
        except AgentguardError as error:
            yield Finding("fail", check, str(error))
        if name not in used and issuer.users is None:
            what = "no client in [clients] names it, and it has no users: none of its tokens counts"
            yield Finding("warn", check, what)
    yield from _unclear_clients(settings)


def _unclear_clients(settings: Config) -> Iterator[Finding]:
    """Warn of clients for whose program a user's token could be taken."""
    for name, client in settings.client_tables.items():
        if client.issuer is None or client.claims:
            continue
        claim = settings.issuers[client.issuer].rule.subject_claim
        if claim != "sub":
            what = (
                f"a user's token may have the same {claim}: name a claim that only tokens of the "
                f"program have, as in [clients.{name}] claims = {{ client_id = '{name}' }}"
            )
            yield Finding("warn", f"claims of {name}", what)


def _who(issuer: IssuerConfig) -> str:
    rule = issuer.rule
    return f"the trust domain {rule.trust_domain}" if rule.issuer is None else rule.issuer
