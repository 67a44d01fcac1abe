"""Each claim of a token of an outside issuer gets each type of JSON: its own alone is taken.

The claims are those that a reader in the code asks for (``jwt.READERS``), and those of the tokens
themselves. ``test_wrong_types.py`` has the tokens that agentguard itself signs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from login_provider import AUDIENCE, ISSUER, Provider

from agentguard import AgentguardError
from agentguard.domain import config
from agentguard.domain.id_jags import IdJags
from agentguard.domain.key_sources import KeySources
from agentguard.domain.logouts import LogOutTokens
from agentguard.domain.users import UserTokens
from agentguard.domain.workloads import WorkloadTokens
from agentguard.errors import ServerError
from agentguard.identity import jwt
from agentguard.issuers.trusted import Issuers, TrustedIssuer
from agentguard.server.tokens import TokenClients

SERVICE = "https://agents.acme.example"
NAME = "f3b1c2d4-0000-4000-8000-000000000001"
LOG_OUT: dict[str, Any] = {"http://schemas.openid.net/event/backchannel-logout": {}}

VALUES: dict[str, list[Any]] = {
    "null": [None],
    "boolean": [True, False],
    "number": [1, 0, -1, 1.5, 1e300],
    "text": ["x", "", "1"],
    "list": [[[]], [1], [None], ["x", False]],
    "texts": [[], ["x"], ["x", "y"]],
    "object": [{}, {"x": "x"}, {"read": False}, {"sub": 1}],
}
"""Values of each type; a list of texts is a type of its own, and so is any other list."""

TYPES: dict[Callable[..., object], set[str]] = {
    jwt.read_string: {"text"},
    jwt.read_strings: {"text", "texts"},
    jwt.read_time: {"number"},
}

USERS = ("access token", "ID token", "ID-JAG")
NAMES = (*USERS, "workload", "client", "log-out")

OTHERS: dict[str, tuple[set[str], tuple[str, ...]]] = {
    "realm_access": ({"object"}, USERS),
    "act": ({"object"}, USERS),
    "may_act": ({"object"}, USERS),
    "cnf": ({"object"}, NAMES),
    "events": ({"object"}, ("access token", "ID token", "workload", "log-out")),
    "resource": ({"text", "texts"}, ("ID-JAG",)),
    "role": ({"text"}, ("client",)),
}
"""The claims that some kinds of tokens alone are asked for, with their types and the kinds."""

PRESENT = ("nonce", "at_hash")
"""The claims of an ID token of which nothing counts but that they are there."""


class Kind(NamedTuple):
    """A kind of token: the claims of a good one, the type in its header, and its reader."""

    claims: dict[str, Any]
    typ: str
    read: Callable[[str], object]


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    return Provider(tmp_path_factory.mktemp("login"))


@pytest.fixture(scope="module")
def kinds(provider) -> dict[str, Kind]:
    def settings(**users: Any) -> config.Config:
        table = provider.table(id_jag=True, roles="realm_access.roles", **users)
        tables = {
            "issuers": {"acme": {**table, "services": {"service:ci": NAME}}},
            "roles": {"reader": {"scope": ["read"]}},
            "server": {"url": "unix:guard.sock"},
            "service": {"issuer": SERVICE},
            "clients": {"web": {"issuer": "acme", "subject": "web-1", "claims": {"role": "web"}}},
        }
        return config.parse(tables, source="agentguard.toml", base=Path("/nowhere"))

    now = int(time.time())
    access, ids = settings(), settings(token="ID")
    sources = KeySources(access)
    users, logouts = UserTokens(access, sources), LogOutTokens(access, sources)
    workloads, id_jags = WorkloadTokens(access, sources), IdJags(access, sources, lambda: users)
    clients = TokenClients(
        Issuers([TrustedIssuer(access.issuers["acme"].rule, sources.of("acme"))]),
        access.client_tables.values(),
    )
    own = {"iss": ISSUER, "exp": now + 300, "iat": now - 5, "jti": "j", "sub": NAME}
    user = {
        **own,
        "aud": AUDIENCE,
        "azp": "chat",
        "sid": "s",
        "auth_time": now - 9,
        "acr": "1",
        "preferred_username": "alice",
        "realm_access": {"roles": ["reader"]},
    }
    id_token = {**user, "typ": "ID", "nonce": "n", "at_hash": "h"}
    workload = {**own, "aud": AUDIENCE, "client_id": "ci", "scope": "openid"}
    id_jag = {**user, "aud": SERVICE, "client_id": "clerk", "scope": "read", "resource": ["x"]}
    logout = {**own, "aud": AUDIENCE, "sid": "s", "events": LOG_OUT}
    verify_id_token = UserTokens(ids, sources).verify
    return {
        "access token": Kind(
            {**user, "typ": "Bearer", "scope": "openid"},
            "JWT",
            lambda text: users.verify(text, now=now),
        ),
        "ID token": Kind(id_token, "JWT", lambda text: verify_id_token(text, now=now)),
        "ID-JAG": Kind(id_jag, "oauth-id-jag+jwt", lambda text: id_jags.verify(text, now=now)),
        "workload": Kind(workload, "JWT", workloads.verify),
        "client": Kind({**workload, "sub": "web-1", "role": "web"}, "JWT", clients.client_of),
        "log-out": Kind(logout, "logout+jwt", lambda text: logouts.verify(text, now=now)),
    }


CLAIMS = sorted({*jwt.READERS, *OTHERS})
ASKED = [(kind, name) for name in CLAIMS for kind in (OTHERS[name][1] if name in OTHERS else NAMES)]


def right(name: str) -> set[str]:
    return OTHERS[name][0] if name in OTHERS else TYPES[jwt.READERS[name]]


def token(provider: Provider, kind: Kind, **changes: Any) -> str:
    header, claims = {"alg": "RS256", "typ": kind.typ}, {**kind.claims, **changes}
    return provider.signed(json.dumps(header).encode(), json.dumps(claims).encode())


@pytest.mark.parametrize(("kind", "name"), ASKED)
def test_a_claim_of_another_type_is_refused(provider, kinds, kind, name):
    chosen = kinds[kind]
    assert chosen.read(token(provider, chosen))  # the twin
    for of_type, values in VALUES.items():
        for value in values if of_type not in right(name) else ():
            with pytest.raises(AgentguardError) as caught:
                chosen.read(token(provider, chosen, **{name: value}))
            assert caught.value.code.startswith("jwt.") or isinstance(caught.value, ServerError)


@pytest.mark.parametrize("kind", NAMES)
def test_each_claim_that_a_good_token_has_is_of_its_type(kinds, kind):
    """So each test above changes a claim that counts: the good one is taken."""
    for name, value in kinds[kind].claims.items():
        if name not in PRESENT:
            (of_type,) = {what for what, values in VALUES.items() if _is_of(value, what)}
            assert of_type in right(name), name


def _is_of(value: Any, what: str) -> bool:
    match value:
        case str():
            return what == "text"
        case int() | float():
            return what == "number"
        case list():
            return what == "texts"
    return what == "object"


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("access token", {"aud": [AUDIENCE, "other"], "scope": ["openid"], "gty": ["password"]}),
        ("access token", {"exp": 4e9, "auth_time": 1_700_000_000.5, "client_id": "chat"}),
        ("access token", {"realm_access": {"roles": []}, "groups": [1], "email_verified": "true"}),
        ("ID token", {"token_use": "id", "amr": ["pwd"]}),
        ("ID-JAG", {"resource": "x", "aud": [SERVICE]}),
        ("workload", {"scp": ["a"], "kubernetes.io": {"pod": {}}}),
        ("log-out", {"sid": "another"}),
    ],
)
def test_a_claim_of_a_type_of_its_own_is_taken(provider, kinds, kind, changes):
    assert kinds[kind].read(token(provider, kinds[kind], **changes))


def test_a_grant_without_a_scope_is_no_grant_with_the_scope_null(provider, kinds):
    """Absent is all that the user may; null was the same."""
    kind = kinds["ID-JAG"]
    without = {name: value for name, value in kind.claims.items() if name != "scope"}
    granted: Any = kind.read(token(provider, kind._replace(claims=without)))
    limited: Any = kind.read(token(provider, kind))
    assert (granted.user.limit, limited.user.limit) == (None, {"read"})
    with pytest.raises(AgentguardError, match="scope"):
        kind.read(token(provider, kind, scope=None))


def test_the_program_of_a_grant_is_named_in_a_list_as_well(provider, kinds):
    kind = kinds["access token"]
    for gty in ("client-credentials", ["client-credentials"]):
        with pytest.raises(AgentguardError, match="program"):
            kind.read(token(provider, kind, gty=gty))


def test_so_many_claims_are_tried_in_so_many_kinds_of_tokens():
    values = [(name, v) for _, name in ASKED for t in {*VALUES} - right(name) for v in VALUES[t]]
    assert (len(CLAIMS), len(NAMES), len(ASKED), len(values)) == (28, 6, 147, 2651)
