"""The checks of ``agentguard doctor`` on the issuers of tokens, and on the token service.

A file is read. A URL is not asked: ``doctor`` uses no network beside the server's own address.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from agentguard.cli.setup.finding import Finding
from agentguard.cli.terminal import screen
from agentguard.cli.terminal.location import from_home
from agentguard.domain.config import Config
from agentguard.domain.config.issuers import IssuerConfig
from agentguard.domain.config.service import ServiceConfig
from agentguard.domain.issuer_keys import open_source
from agentguard.errors import AgentguardError

_CHECK = "token service"


def findings(settings: Config) -> Iterator[Finding]:
    """Check each issuer of a configuration, the clients that show tokens, and the token service."""
    yield from _issuers(settings)
    service = settings.service
    if service is None:
        return
    problems = list(_problems(settings, service))
    yield from problems
    if not problems:
        what = (
            f"agentguard serve issues tokens as {service.issuer}, for these audiences: "
            f"{_audiences(service)}"
        )
        yield Finding("ok", _CHECK, what)


def _problems(settings: Config, service: ServiceConfig) -> Iterator[Finding]:
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        what = "the extra 'service' is missing: pip install '.[service]', from your clone"
        yield Finding("fail", _CHECK, what)
    for path in (service.certificate, service.key):
        if path is not None and not path.is_file():
            yield Finding("fail", _CHECK, f"there is no file {path}: see [service]")
    if not any(client.issuer for client in settings.client_tables.values()):
        what = "nobody gets an identity: no [clients.NAME] has an issuer and a subject"
        yield Finding("warn", _CHECK, what)
    if not any(issuer.users for issuer in settings.issuers.values()):
        what = "nobody gets an access token: no [issuers.NAME.users] says which users may lend"
        yield Finding("warn", _CHECK, what)


def _audiences(service: ServiceConfig) -> str:
    return ", ".join(["the trust domain", *sorted(service.audiences)])


def _issuers(settings: Config) -> Iterator[Finding]:
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
