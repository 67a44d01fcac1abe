"""The checks of ``agentguard doctor`` on the token service: who could use the service at all.

The checks ask nobody: ``doctor_issuers.py`` looks at the issuers and their keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from agentguard.cli.setup.finding import Finding
from agentguard.domain.config import Config
from agentguard.domain.config.service import ServiceConfig

_CHECK = "token service"


def findings(settings: Config) -> Iterator[Finding]:
    """Check the token service of a configuration; nothing without ``[service]``."""
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
