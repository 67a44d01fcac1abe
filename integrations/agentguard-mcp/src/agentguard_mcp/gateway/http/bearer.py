"""``BearerAdmission``: each request comes with an access token of a user, for this gateway alone.

The gateway is the resource server of OAuth (MCP, "Authorization"; RFC 6750; RFC 9728). The guard
verifies a token as one of ``[issuers]``, and begins a delegation of the token's user, so that the
agent acts for this user. No token goes on to the server behind the gateway.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

from agentguard import Agent, AgentguardError, Delegation, Guard
from agentguard.adapters import agent_scope, loads
from agentguard_mcp.gateway.answers import code_of
from agentguard_mcp.gateway.http.admission import Admitted, Owner
from agentguard_mcp.gateway.http.refusal import HttpRefusalError, Refusal
from agentguard_mcp.gateway.http.request_context import RequestContext, User
from agentguard_mcp.gateway.http.settings import METADATA, OAuth, Place
from agentguard_mcp.gateway.messages import Message, encoded
from agentguard_mcp.gateway.settings import Settings
from agentguard_mcp.messages import ERROR

RECHECK: Final = 60.0
"""Seconds after which the guard verifies a token anew: the user may have logged out."""

MAX_KNOWN: Final = 1024
"""The most tokens that are remembered."""

_THREADS: Final = 4
_LONGEST: Final = 16 * 1024
_LONGEST_DELEGATION: Final = 24 * 3600
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_LOGGED_OUT: Final = "delegation.logged_out"
_SPOILED: Final = ("jwt.", "json.", "base64.", _LOGGED_OUT)
_LATER: Final = ("issuer.", "storage.", "server.")
_LOGGER = logging.getLogger("agentguard.mcp")


@dataclass(frozen=True, slots=True)
class Known:
    """A token that was verified: its user, what a call can have, and how long the token counts.

    ``owner`` tells users and their clients apart. ``granted`` has the scopes that the token says,
    None where tokens say nothing of scopes. ``ends_at`` is Unix time, ``checked_at`` that of the
    event loop.
    """

    owner: Owner
    delegation: Delegation
    most: frozenset[str]
    granted: frozenset[str] | None
    ends_at: float
    checked_at: float


class BearerAdmission:
    """Admits the users of ``oauth.issuers`` who come with a token for the gateway at ``place``."""

    def __init__(
        self, guard: Guard, agent: Agent, settings: Settings, oauth: OAuth, place: Place
    ) -> None:
        self._guard = guard
        self._agent = agent
        self._settings = settings
        self._oauth = oauth
        self._place = place
        self._known: dict[str, Known] = {}
        self._verifying: dict[str, asyncio.Task[Known]] = {}
        # threads of its own: whoever sends tokens must not take those of the calls
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="agentguard-tokens")

    def close(self) -> None:
        """Verify no token any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def require_passed(self, _method: str) -> None:
        """Let each method pass that the relay passes: a user has sent the request."""

    def metadata(self, path: str) -> bytes | None:
        """Return the metadata of the resource (RFC 9728, 2), at its own path and at the root."""
        if path not in (METADATA, self._place.metadata_path):
            return None
        document: dict[str, Any] = {
            "resource": self._place.url,
            "authorization_servers": list(self._oauth.issuers),
            "bearer_methods_supported": ["header"],
            "resource_name": self._settings.server,
        }
        if self._oauth.scopes:
            document["scopes_supported"] = list(self._oauth.scopes)
        return encoded(document)

    async def admit(self, headers: Mapping[str, str]) -> Admitted:
        """Return the user of a request's token; raises ``HttpRefusalError``.

        The status is 401 without a token that counts, 403 for a user who may not act here, and 503
        while the issuer's keys can't be had.
        """
        scheme, _space, token = headers.get("authorization", "").partition(" ")
        if not scheme:
            raise self._refused("a token is missing: log in", None)
        if scheme.lower() != "bearer" or not _TOKEN.fullmatch(token) or len(token) > _LONGEST:
            raise self._refused("expected Authorization: Bearer and a token", "invalid_request")
        try:
            known = await self._verified(token)
        except AgentguardError as error:
            raise self._of_error(error) from error
        except Exception as error:  # a look that fails admits nobody
            _LOGGER.exception("a token can't be verified")
            raise HttpRefusalError(503, "tokens can't be verified now", code=ERROR) from error
        user = User(known.delegation, known.most, known.granted)
        return Admitted(known.owner, user, known.ends_at)

    async def _verified(self, token: str) -> Known:
        """Return what is known of a token; requests with one token share the look."""
        key = sha256(token.encode()).hexdigest()
        known, now = self._known.get(key), asyncio.get_running_loop().time()
        if known is not None and time.time() < known.ends_at and now < known.checked_at + RECHECK:
            return known
        task = self._verifying.get(key)
        if task is None:
            task = self._verifying[key] = asyncio.create_task(self._look(token, known))
            task.add_done_callback(lambda done: self._looked(key, done))
        return await asyncio.shield(task)

    def _looked(self, key: str, task: asyncio.Task[Known]) -> None:
        del self._verifying[key]
        if task.cancelled() or task.exception() is not None:
            self._known.pop(key, None)
            return
        self._known[key] = task.result()
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def _forget(self, user: User) -> None:
        """Have the guard verify the token of a user anew at the next request."""
        for key, known in list(self._known.items()):
            if known.delegation is user.delegation:
                del self._known[key]

    async def _look(self, token: str, before: Known | None) -> Known:
        """Verify a token; keep the delegation that the token has begun before."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._verify, token, loop.time())
        if before is None or time.time() >= before.ends_at:
            return found
        return replace(before, checked_at=found.checked_at)

    def _verify(self, token: str, now: float) -> Known:
        """Have the guard verify a token, and begin the delegation of its user.

        What is read here without a signature only refuses: the guard verifies the same text.
        """
        claims = _claims(token)
        issuer, audiences = claims.get("iss"), claims.get("aud")
        if not isinstance(issuer, str) or issuer not in self._oauth.issuers:
            raise _NotOursError("the token is of another issuer", code="jwt.issuer")
        if self._place.url not in (audiences if isinstance(audiences, list) else [audiences]):
            raise _NotOursError("the token is for another audience", code="jwt.audience")
        ends_at, granted = _ends_at(claims), self._granted(claims)
        delegation = self._guard.delegate(
            subject_token=token,
            scope=self._oauth.issuers[issuer],
            task_id=self._settings.task_id,
            expires_in=max(1, int(min(ends_at - time.time(), _LONGEST_DELEGATION))),
        )
        ends_at = min(ends_at, delegation.expires_at.timestamp())
        own = agent_scope(self._agent)
        most = frozenset(delegation.scope if own is None else own.intersection(delegation.scope))
        if granted is not None:
            delegation = delegation.narrowed(scope=most & granted)
        client = claims.get("client_id", claims.get("azp"))
        user = encoded([issuer, claims.get("sub"), delegation.principal]).decode()
        owner = Owner(user, encoded(client).decode())
        return Known(owner, delegation, most, granted, ends_at, now)

    def _granted(self, claims: Mapping[str, Any]) -> frozenset[str] | None:
        """Return the scopes that a token says (RFC 8693, 4.2), None where they do not count.

        A token without the claim has none. Raises ``AgentguardError`` (``jwt.malformed``) for a
        claim that is neither a text nor a list of texts.
        """
        if self._oauth.scope_claim is None:
            return None
        said = claims.get(self._oauth.scope_claim, [])
        names = said.split(" ") if isinstance(said, str) else said
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            message = f"the token's {self._oauth.scope_claim} is no text and no list of texts"
            raise _NotOursError(message, code="jwt.malformed")
        return frozenset(names) - {""}

    # --- refusals ---------------------------------------------------------------------------------

    def refusal_of(
        self, answer: Message, context: RequestContext, _admitted: Admitted
    ) -> Refusal | None:
        """Return the status for a call that another token would mend (RFC 6750, 3.1).

        The status is 401 for a user who has logged out, and 403 for a token with too little scope:
        the scope to ask for is what the tool requires, and what the token has already.
        """
        user, code = context.user, code_of(answer)
        if user is not None and code == _LOGGED_OUT:
            self._forget(user)
            text = f"the user has logged out [{code}]"
            challenge = self._challenge("invalid_token", text, self._oauth.scopes)
            return Refusal(401, {"www-authenticate": challenge})
        if user is None or user.granted is None or code != "scope.exceeded":
            return None
        missing = set(context.requires) - user.granted
        if not missing or not user.most.issuperset(context.requires):
            return None
        wanted = sorted({*context.requires, *(user.granted & user.most)})
        text = "the call needs a token with more scope"
        challenge = self._challenge("insufficient_scope", text, wanted)
        return Refusal(403, {"www-authenticate": challenge})

    def _of_error(self, error: AgentguardError) -> HttpRefusalError:
        """Return how a token is refused that the guard does not take."""
        _LOGGER.warning("a token is refused: %s [%s]", error, error.code)
        if error.code.startswith(_SPOILED):
            return self._refused(f"the token does not count [{error.code}]", "invalid_token")
        if error.code.startswith(_LATER):
            text, later = f"tokens can't be verified now [{error.code}]", {"retry-after": "10"}
            return HttpRefusalError(503, text, code=ERROR, headers=later)
        return HttpRefusalError(403, f"the user may not act here [{error.code}]", code=ERROR)

    def _refused(self, text: str, problem: str | None) -> HttpRefusalError:
        challenge = self._challenge(problem, text, self._oauth.scopes)
        return HttpRefusalError(401, text, code=ERROR, headers={"www-authenticate": challenge})

    def _challenge(self, problem: str | None, text: str, scopes: Any) -> str:
        """Return ``WWW-Authenticate`` with the place of the metadata (RFC 9728, 5.1)."""
        members = {"resource_metadata": self._place.metadata_url}
        if problem is not None:
            members |= {"error": problem, "error_description": text.replace('"', "'")}
        if scopes:
            members["scope"] = " ".join(scopes)
        return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in members.items())


class _NotOursError(AgentguardError):
    """A token that is not for this gateway, whoever has signed it."""


def _claims(token: str) -> dict[str, Any]:
    """Return what a token says, unverified; raises ``AgentguardError`` (``jwt.*``, ``json.*``)."""
    try:
        part = token.split(".")[1]
        claims = loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (IndexError, Base64Error, ValueError) as error:
        raise _NotOursError("not a token of an issuer", code="jwt.malformed") from error
    if not isinstance(claims, dict):
        raise _NotOursError("not a token of an issuer", code="jwt.malformed")
    return claims


def _ends_at(claims: Mapping[str, Any]) -> float:
    """Return the end of a token; the guard refuses what is no time."""
    ends_at = claims.get("exp")
    return float(ends_at) if isinstance(ends_at, int | float) else time.time()
