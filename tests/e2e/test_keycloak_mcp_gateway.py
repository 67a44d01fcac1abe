"""An MCP gateway over HTTP whose users log in at a real Keycloak.

``test_serve_tokens.py`` of the adapter for MCP has tokens of a provider without a server.
"""

from __future__ import annotations

import json
import sys
import time
from copy import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from gateway_process import ask, challenge_of, gateway_process
from keycloak import Forge, Realm
from login_provider import acme
from ports import free_port
from token_issuer import private_key

from agentguard import Guard, verify_evidence
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.domain import config, domain
from agentguard.store.reader import StoredLog

pytestmark = pytest.mark.slow("starts a real Keycloak, and logs in there")

ROOT = Path(__file__).parents[2]
SCRIPTED = ROOT / "integrations" / "agentguard-mcp" / "tests" / "support" / "scripted_server.py"
COMMAND = json.dumps([sys.executable, "-I", "-S", str(SCRIPTED)])
PASSPHRASE = b"correct horse battery staple"
READ, WRITE = "files:read", "files:write"

CONFIG = """
trust_domain = "acme.example"
state = "state"
anchor = ""

[keys]
passphrase_file = "passphrase"

[policy]
path = "authz.rego"

[agents.assistant]
max_scope = ["{read}", "{write}"]

[tools]
echo = {{ requires = ["{read}"] }}
fail = {{ requires = ["{write}"] }}

[roles.reader]
scope = ["{read}", "{write}"]

[principals]
assurance = "oidc"

{acme}roles = "realm_access.roles"

[mcp.files]
command = {command}
agent = "assistant"

[mcp.files.serve]
listen = "127.0.0.1:{port}"
url = "{url}"

[mcp.files.oauth]
issuers = ["acme"]
scopes = ["{read}"]
"""

POLICY = """package agent.authz
default allow := false
allow if input.delegation.subject_token.iss == "{issuer}"
"""


class Scene(NamedTuple):
    """A gateway at ``url``, with the realm of its users and the folder of its trust domain."""

    url: str
    realm: Realm
    folder: Path

    def call(self, tool: str, token: str | None = None) -> httpx.Response:
        """Call a tool."""
        return ask(self.url, token, "tools/call", name=tool, arguments={"text": "a"})

    def calls(self) -> list[CallEntry]:
        """Return the calls that the log has."""
        reader = StoredLog.of(self.folder / "state")
        try:
            bodies = [body for _index, body in reader.entries()]
        finally:
            reader.close()
        entries = [parse_entry(body) for body in bodies]
        return [one for one in entries if isinstance(one, CallEntry)]


@pytest.fixture(scope="module")
def scene(keycloak, programs, tmp_path_factory):
    port = free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    realm = keycloak.realm()
    for scope in (READ, WRITE):
        realm.offer(scope, url)
    table = acme(url, issuer=realm.issuer, keys=f'jwks_url = "{realm.jwks_url}"')
    given = {"acme": table, "command": COMMAND}
    folder = tmp_path_factory.mktemp("gateway")
    text = CONFIG.format(url=url, port=port, read=READ, write=WRITE, **given)
    (folder / "agentguard.toml").write_text(text, encoding="utf-8")
    (folder / "authz.rego").write_text(POLICY.format(issuer=realm.issuer), encoding="utf-8")
    (folder / "passphrase").write_bytes(PASSPHRASE)
    (folder / "passphrase").chmod(0o600)
    settings = config.load(folder / "agentguard.toml")
    domain.found(settings, PASSPHRASE, now=datetime.now(UTC))
    with gateway_process(programs, folder, "files") as served:
        assert served == url
        yield Scene(url, realm, folder)


@pytest.fixture(scope="module")
def forge(scene):
    """Alice, who has logged in with the scope that the gateway names first."""
    return Forge(scene.realm, scope=f"openid {READ}")


def test_a_client_learns_from_the_refusal_where_a_user_logs_in(scene):
    refused = scene.call("echo")
    assert refused.status_code == 401
    said = challenge_of(refused)
    metadata = httpx.get(said["resource_metadata"]).raise_for_status().json()
    assert metadata["resource"] == scene.url
    (issuer,) = metadata["authorization_servers"]
    at_issuer = httpx.get(f"{issuer}/.well-known/openid-configuration").raise_for_status().json()
    assert at_issuer["issuer"] == issuer
    assert at_issuer["token_endpoint"] == scene.realm.token_url
    token = scene.realm.log_in(scope=f"openid {said['scope']}")["access_token"]
    assert scene.call("echo", token).json()["result"]["isError"] is False


def test_the_log_and_the_evidence_name_the_user_who_has_logged_in(scene, forge):
    before = len(scene.calls())
    assert scene.call("echo", forge.tokens["access_token"]).status_code == 200
    (call,) = scene.calls()[before:]
    assert (call.principal, call.tool, call.decision) == ("user:alice", "echo", "allow")
    with Guard.open(scene.folder / "agentguard.toml", passphrase=PASSPHRASE) as guard:
        chain: Any = verify_evidence(guard.prove(str(call.invocation_id)), guard.trust).chain
        assert guard.verify().problems == ()
    root = chain.root
    assert (root.principal, root.scope, root.assurance) == ("user:alice", (READ, WRITE), "oidc")
    login = root.subject_token
    assert (login.iss, login.sub) == (scene.realm.issuer, forge.claims["sub"])
    assert (login.jti, login.sid) == (forge.claims["jti"], forge.claims["sid"])


def test_a_token_for_another_audience_opens_nothing(scene, forge):
    elsewhere = scene.realm.log_in()["access_token"]  # for agentguard, and not for the gateway
    before = len(scene.calls())
    refused = scene.call("echo", elsewhere)
    said = challenge_of(refused)
    assert (refused.status_code, said["error"]) == (401, "invalid_token")
    assert said["resource_metadata"].endswith("/.well-known/oauth-protected-resource/mcp")
    assert len(scene.calls()) == before
    assert scene.call("echo", forge.tokens["access_token"]).status_code == 200  # the twin


def test_a_call_that_needs_more_scope_names_the_scope_for_a_new_login(scene, forge):
    refused = scene.call("fail", forge.tokens["access_token"])
    said = challenge_of(refused)
    assert (refused.status_code, said["error"]) == (403, "insufficient_scope")
    assert said["scope"].split() == [READ, WRITE]
    assert said["resource_metadata"].endswith("/.well-known/oauth-protected-resource/mcp")
    more = scene.realm.log_in(scope=f"openid {said['scope']}")["access_token"]
    allowed = scene.call("fail", more)
    assert (allowed.status_code, allowed.json()["result"]["isError"]) == (200, True)
    last = [(call.tool, call.decision, call.code) for call in scene.calls()[-2:]]
    assert last == [("fail", "deny", "scope.exceeded"), ("fail", "allow", "")]


@pytest.mark.parametrize(
    ("header", "changes", "status"),
    [
        ({}, {}, 200),
        ({}, {"exp": -60}, 401),
        ({}, {"aud": "http://127.0.0.1:9/mcp"}, 401),
        ({"alg": "none"}, {}, 401),
        ({"kid": "another key"}, {}, 401),
    ],
    ids=["as it is", "expired", "another audience", "no algorithm", "another key's name"],
)
def test_a_changed_token_that_the_key_of_keycloak_signs(scene, forge, header, changes, status):
    """Only the change counts: the realm signs with a key of the test."""
    if "exp" in changes:
        changes = {"exp": int(time.time()) + changes["exp"]}
    answer = scene.call("echo", forge.token(header, **changes))
    assert answer.status_code == status
    if status == httpx.codes.UNAUTHORIZED:
        assert challenge_of(answer)["error"] == "invalid_token"


def test_a_token_that_keycloak_has_not_signed_opens_nothing(scene, forge):
    good = forge.tokens["access_token"]
    head, claims, signature = good.split(".")
    stranger = copy(forge)
    stranger.key = private_key("RS256", "stranger")
    for token in (
        stranger.token(),
        stranger.token({"kid": "stranger"}),
        f"{head}.{claims}.{signature[::-1]}",
        f"{head}.{claims}.",
        forge.tokens["id_token"],
        forge.tokens["refresh_token"],
    ):
        refused = scene.call("echo", token)
        assert refused.status_code == 401, token
        assert "resource_metadata" in challenge_of(refused)
    assert scene.call("echo", good).status_code == 200  # the twin
