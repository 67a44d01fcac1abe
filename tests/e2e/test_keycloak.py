"""Users and their tokens of a real identity provider, Keycloak: alice logs in with a browser.

What a provider says that misbehaves is in ``test_users.py``, which signs the tokens itself.
"""

from __future__ import annotations

import os
import runpy
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from keycloak import AUDIENCE, Realm
from login_provider import acme
from ports import free_port
from served_place import founded_place

from agentguard import AgentguardError, Guard, verify_evidence
from agentguard.call.client import Client as CallClient
from agentguard.delegation.context import running_call
from agentguard.domain import config, domain
from agentguard.signing import jws

pytestmark = pytest.mark.slow("starts a real Keycloak, and logs in there")

EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_evidence" / "verify_evidence.py"
INDEPENDENT: Callable[[bytes, bytes], Any] = runpy.run_path(str(EXAMPLE))["verify"]

CONFIG = """
trust_domain = "acme.example"
state = "state"
anchor = ""

[policy]
path = "authz.rego"

[agents.clerk]
roles = ["reader"]

[roles.reader]
scope = ["read"]

[principals]
assurance = "oidc"

{acme}roles = "realm_access.roles"
"""

POLICY = """package agent.authz
allow if input.delegation.subject_token.iss == "{issuer}"
"""

PASSPHRASE = b"correct horse battery staple"


def acme_of(realm: Realm) -> str:
    """Return the table of the realm as an issuer, up to the claim of its users."""
    return acme(AUDIENCE, issuer=realm.issuer, keys=f'jwks_url = "{realm.jwks_url}"')


@pytest.fixture(scope="module")
def realm(keycloak):
    return keycloak.realm()


@pytest.fixture(scope="module")
def tokens(realm):
    return realm.log_in()


@pytest.fixture
def folder(realm, tmp_path):
    text = CONFIG.format(acme=acme_of(realm))
    (tmp_path / "agentguard.toml").write_text(text, encoding="utf-8")
    (tmp_path / "authz.rego").write_text(POLICY.format(issuer=realm.issuer), encoding="utf-8")
    settings = config.load(tmp_path / "agentguard.toml")
    domain.found(settings, PASSPHRASE, now=datetime.now(UTC))
    return tmp_path


@pytest.fixture
def guard(folder):
    with Guard.open(folder / "agentguard.toml", passphrase=PASSPHRASE) as guard:
        yield guard


def code_of(guard, token: str) -> str:
    with pytest.raises(AgentguardError) as caught:
        guard.delegate(subject_token=token)
    return caught.value.code


def test_an_agent_acts_for_a_user_who_has_logged_in(guard, tokens, realm):
    agent, tool = guard.new_agent("clerk"), guard.tool(name="read", requires=["read"])(lambda: "x")
    with guard.delegate(subject_token=tokens["access_token"]) as lent:
        assert agent.call(tool) == "x"
    root = lent.chain.root
    claims: dict[str, Any] = jws.parse(tokens["access_token"]).claims()
    assert (root.principal, root.scope, root.assurance) == ("user:alice", ("read",), "oidc")
    login = root.subject_token
    assert (login.iss, login.sub) == (realm.issuer, claims["sub"])
    assert (login.jti, login.sid) == (claims["jti"], claims["sid"])
    assert login.auth_time == pytest.approx(time.time(), abs=600)
    assert login.roles == ("reader",)
    assert lent.expires_at.timestamp() <= claims["exp"] + 30
    assert guard.verify().problems == ()


def test_evidence_of_the_call_names_the_token(guard, tokens, realm):
    """To agentguard's verifier, and to the one of the examples, which shares no code with it."""
    calls: list[Any] = []
    agent, tool = guard.new_agent("clerk"), guard.tool(name="read")
    with guard.delegate(subject_token=tokens["access_token"]):
        agent.call(tool(lambda: calls.append(running_call())))
    guard.flush()
    file = guard.prove(calls[0].invocation_id)
    chain: Any = verify_evidence(file, guard.trust).chain
    assert chain.root.subject_token.iss == realm.issuer
    INDEPENDENT(file, guard.trust.dumps())
    changed = file.replace(b'"decision\\":\\"allow', b'"decision\\":\\"deny')
    assert changed != file
    for verify, trust in ((verify_evidence, guard.trust), (INDEPENDENT, guard.trust.dumps())):
        with pytest.raises((AgentguardError, ValueError)):  # the tampered twin
            verify(changed, trust)


def test_a_token_of_another_kind_is_refused(guard, tokens):
    assert code_of(guard, tokens["id_token"]) == "jwt.audience"
    assert code_of(guard, tokens["refresh_token"]) in ("jwt.key", "jwt.algorithm")
    guard.delegate(subject_token=tokens["access_token"])  # the twin


TABLES = """
[server.tls]
listen = "127.0.0.1:{port}"
certificate = "{certificate}"
key = "{key}"
ca = "{ca}"

[issuers.acme]
issuer = "{issuer}"
jwks_url = "{jwks_url}"
audience = ["{audience}"]
algorithms = ["RS256"]
subject_claim = "azp"

[clients.worker]
issuer = "acme"
subject = "worker"
agents = ["clerk"]
claims = {{ client_id = "worker" }}
"""

CLIENT = """
[server]
url = "tls://127.0.0.1:{port}"
ca = "{ca}"

[server.oauth]
token_url = "{token_url}"
client_id = "worker"
client_secret_file = "secret"
"""


def test_a_program_on_another_machine_shows_a_token_of_the_provider(realm, programs, tmp_path):
    """The client credentials grant (RFC 6749, 4.4) gives the program its tokens."""
    authority = Authority(tmp_path, "acme")
    certificate, key = authority.issue("server")
    port = free_port()
    given = {"port": port, "ca": authority.file, "audience": AUDIENCE, "issuer": realm.issuer}
    files = {"certificate": certificate, "key": key, "jwks_url": realm.jwks_url}
    (tmp_path / "secret").write_text(realm.secret, encoding="ascii")
    (tmp_path / "secret").chmod(0o600)
    client = CLIENT.format(token_url=realm.token_url, **given)
    (tmp_path / "agentguard.toml").write_text(client, encoding="utf-8")
    with founded_place(programs, TABLES.format(**given, **files)) as place:
        place.start()
        with Guard.open(tmp_path / "agentguard.toml") as guard:
            agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "noted")
            assert agent.call(tool) == "noted"
            with pytest.raises(AgentguardError) as caught:
                guard.new_agent("helper")
            assert caught.value.code == "agent.refused"
        (call,) = place.calls()
        assert call.client == CallClient(name="worker", isolation="remote")
        (tmp_path / "secret").write_text("another", encoding="ascii")
        with pytest.raises(AgentguardError) as caught:
            Guard.open(tmp_path / "agentguard.toml")
        assert caught.value.code == "server.token"


def test_a_token_of_another_realm_is_refused(guard, keycloak, tokens):
    other = keycloak.realm().log_in()["access_token"]
    assert code_of(guard, other) == "jwt.issuer"
    head, claims, _signature = tokens["access_token"].split(".")
    assert code_of(guard, f"{head}.{claims}.{other.split('.')[2]}") == "jwt.signature"
    guard.delegate(subject_token=tokens["access_token"])  # the twin


SERVICE = """
[service]
issuer = "http://127.0.0.1:{port}"
listen = "127.0.0.1:{port}"

{acme}longest = 3600
logout_audience = ["chat"]

[principals."user:bob"]
roles = ["customer"]

[clients.program]
uid = {uid}
agents = ["clerk"]
"""


def test_a_log_out_at_the_provider_ends_what_the_agent_does_for_the_user(keycloak, programs):
    port = free_port()
    realm = keycloak.realm(f"http://127.0.0.1:{port}/backchannel-logout")
    alice, bob = realm.log_in(), realm.log_in(user="bob")

    def code(call: Callable[[], object]) -> str:
        with pytest.raises(AgentguardError) as caught:
            call()
        return caught.value.code

    with founded_place(
        programs, SERVICE.format(port=port, uid=os.getuid(), acme=acme_of(realm))
    ) as place:
        place.start()
        guard = place.connect()
        agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "noted")

        def lent(tokens: dict[str, Any]) -> Any:
            return agent.under(guard.delegate(subject_token=tokens["access_token"], scope=["read"]))

        for_alice, for_bob = lent(alice), lent(bob)
        assert [for_alice.call(tool), for_bob.call(tool)] == ["noted", "noted"]
        realm.log_out(alice)
        assert code(lambda: for_alice.call(tool)) == "delegation.logged_out"
        assert code(lambda: lent(alice)) == "delegation.logged_out"
        assert for_bob.call(tool) == "noted"  # the twin
        assert lent(realm.log_in()).call(tool) == "noted"  # a new log-in
        guard.flush()
        assert [one.kind for one in place.entries()].count("logout") == 1
        assert place.verify().problems == ()
