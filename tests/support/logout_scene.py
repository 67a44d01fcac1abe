"""A state whose guard is in this process, with the endpoints of its token service as functions.

Two providers know users: acme, and partner with a prefix of its own. ``Scene.log_out`` sends a
log-out token as a provider does.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from login_provider import AUDIENCE, Provider, acme
from token_issuer import TokenIssuer, fresh

from agentguard import Denied, Guard
from agentguard.delegation.handle import Delegation
from agentguard.domain import config, domain
from agentguard.guard.embedded import Embedded
from agentguard.service.answers import Answer, RefusedError, refusal
from agentguard.service.logout import log_out
from agentguard.service.parts import ServiceParts, open_parts
from agentguard.service.reading import FORM, Request

PARTNER = "https://login.partner.example"
PASSPHRASE = b"correct horse"

CONFIG = f"""
trust_domain = "acme.example"
state = "state"
anchor = "anchor"

[policy]
path = "authz.rego"

[agents.clerk]
max_scope = ["read"]

{acme()}logout_audience = ["chat"]

[issuers.partner]
issuer = "{PARTNER}"
jwks_file = "partner.json"
audience = ["{AUDIENCE}"]
algorithms = ["ES256"]

[issuers.partner.users]
claim = "preferred_username"
prefix = "user:partner/"
"""

SERVICE = """
[server]
url = "unix:s"

[service]
issuer = "http://127.0.0.1:8787"
"""


class LogIn(NamedTuple):
    """A log-in of a user at acme; ``sid`` None for tokens that name no session."""

    provider: Provider
    sub: str
    sid: str | None

    def token(self, **claims: Any) -> str:
        """Return an access token of the log-in."""
        return self.provider.token(**{"sub": self.sub, "sid": self.sid, **claims})

    def logout_token(self, **claims: Any) -> str:
        """Return the log-out token of the log-in."""
        given = {"sub": self.sub, "sid": self.sid, "aud": "chat", **claims}
        return self.provider.logout_token(**given)


class Scene:
    """The folder of the state, and the guards that are open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "agentguard.toml"
        self.provider = Provider(folder)
        self.partner = TokenIssuer("partner", issuer=PARTNER)
        (folder / "partner.json").write_bytes(self.partner.jwks())
        (folder / "authz.rego").write_text("package agent.authz\nallow if true\n")
        self.path.write_text(CONFIG, encoding="utf-8")
        (folder / "service.toml").write_text(CONFIG + SERVICE, encoding="utf-8")
        domain.found(config.load(self.path), PASSPHRASE, now=datetime.now(UTC))

    @contextmanager
    def open(self) -> Iterator[Guard]:
        """Open a guard on the state."""
        with Guard.open(self.path, passphrase=PASSPHRASE) as guard:
            yield guard

    def parts(self, guard: Guard) -> ServiceParts:
        """Return the parts of the service that belongs to a guard."""
        assert isinstance(guard._parts, Embedded)
        return open_parts(config.load(self.folder / "service.toml"), guard._parts)

    def log_in(self, sub: str | None = None, *, has_session: bool = True) -> LogIn:
        """Have a user log in, a new one without ``sub``."""
        sid = secrets.token_hex(8) if has_session else None
        return LogIn(self.provider, sub or secrets.token_hex(8), sid)

    def partner_token(self, **claims: Any) -> str:
        """Return an access token of the other provider."""
        return self.partner.token(preferred_username="alice", scope="x", **{**fresh(), **claims})


def sent(parts: ServiceParts, token: str) -> Answer:
    """Send a log-out token; return the answer."""
    body = urlencode({"logout_token": token}).encode()
    request = Request("POST", "/backchannel-logout", {"content-type": FORM}, body)
    try:
        return log_out(parts, request)
    except RefusedError as refused:
        return refusal(refused)


def said(answer: Answer) -> tuple[int, str]:
    """Return the status of an answer, and the reason code in the description of a refusal."""
    description = json.loads(answer.body).get("error_description", "")
    return answer.status, description.partition("[")[2].removesuffix("]")


def lent(guard: Guard, token: str) -> Delegation:
    return guard.delegate(subject_token=token, scope=["read"])


def attempt(guard: Guard, delegation: Delegation) -> str:
    """Have a new agent make a call under a delegation; return the result or the reason code."""
    tool = guard.tool(name="read", requires=["read"])(lambda: "ok")
    try:
        return str(guard.new_agent("clerk").under(delegation).call(tool))
    except Denied as denied:
        return denied.code


def problems(guard: Guard) -> list[str]:
    """Return what is wrong with the log."""
    return [one.what for one in guard.verify().problems]
