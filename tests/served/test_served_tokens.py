"""Clients on other machines that show a token of an issuer in place of a certificate."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from served_place import founded_place
from served_tokens import WEB, Tokens, handle_of
from token_issuer import fresh

from agentguard import AgentguardError, ConfigError, Denied, ServerError
from agentguard.call.client import Client as CallClient
from agentguard.signing.canonical import b64_encode


@pytest.fixture(scope="module")
def server(programs) -> Iterator[Tokens]:
    """The server that most tests of this module share."""
    with founded_place(programs) as place:
        made = Tokens(place)
        yield made
        made.close()


@pytest.fixture
def shared(server) -> Tokens:
    """The server of this module; of the log, what is new."""
    server.place.since += len(server.place.entries())
    server.http.requests.clear()
    return server


@pytest.fixture
def tokens(founded) -> Iterator[Tokens]:
    """A server for one test."""
    made = Tokens(founded)
    yield made
    made.close()


def note(guard, does=lambda: "ok"):
    return guard.tool(name="note", requires=["read"])(does)


def test_a_service_account_of_kubernetes_makes_calls(shared):
    guard = shared.with_token(shared.account())
    agent, tool = guard.new_agent("clerk"), note(guard)
    with guard.delegate("user:alice", scope=["read"]):
        assert agent.call(tool) == "ok"
    with pytest.raises(ConfigError) as caught:
        guard.new_agent("helper")
    assert caught.value.code == "agent.refused"
    guard.close()
    (call,) = shared.place.calls()
    assert call.client == CallClient(name="billing", isolation="remote")
    assert shared.place.verify().ok


async def test_a_workload_of_spire_makes_calls(shared):
    guard = shared.with_token(shared.svid())

    async def does() -> str:
        return "ok"

    tool = note(guard, does)
    with guard.delegate("user:alice", scope=["read"]):
        assert await guard.new_agent("helper").acall(tool) == "ok"
    # as spiffe-helper writes the keys of the Workload API, which do not say their use
    keys = [{**jwk, "use": None} for jwk in shared.spire.keys]
    data = json.dumps({"keys": [{k: v for k, v in jwk.items() if v} for jwk in keys]})
    sets = {"acme.example": b64_encode(data.encode())}
    (shared.folder / "bundle.json").write_text(json.dumps(sets))
    assert shared.with_token(shared.svid(), "again").new_agent("helper").name == "helper"
    shared.publish()
    guard.close()
    (call,) = shared.place.calls()
    assert call.client == CallClient(name="svid", isolation="remote")


def test_a_client_of_an_oauth_provider_makes_calls(shared):
    guard = shared.with_oauth()
    agent, tool = guard.new_agent("clerk"), note(guard)
    assert agent.call(tool) == "ok"
    assert shared.http.requests.count("/token") == 1
    assert shared.http.requests.count("/jwks") <= 1  # the server may have the keys already


def test_a_client_with_a_certificate_comes_beside_those_with_tokens(shared):
    certificate, key = shared.authority.issue("web", WEB)
    guard = shared.open("web", f'certificate = "{certificate}"\nkey = "{key}"')
    assert guard.new_agent("clerk").call(note(guard)) == "ok"
    assert shared.with_token(shared.account()).new_agent("clerk").name == "clerk"
    stranger = shared.authority.issue("stranger", "spiffe://acme.example/other")
    with pytest.raises(ServerError) as caught:
        shared.open("stranger", f'certificate = "{stranger[0]}"\nkey = "{stranger[1]}"')
    assert caught.value.code == "server.unreachable"


def test_a_token_is_in_no_log_and_in_no_error(tokens):
    token, late = tokens.account(), tokens.account(-60)
    guard = tokens.with_token(token)
    guard.new_agent("clerk").call(note(guard))
    with pytest.raises(ServerError) as caught:
        tokens.with_token(late, "late")
    guard.close()
    tokens.place.stop()
    texts = [str(caught.value), repr(caught.value.__cause__), repr(guard)]
    texts += [
        path.read_bytes().decode("latin-1")
        for path in (tokens.folder / "state").rglob("*")
        if path.is_file()
    ]
    for secret in (token, late):
        for part in secret.split(".")[1:]:
            assert not [text for text in texts if part in text]


def test_a_connection_is_renewed_before_its_token_ends(tokens):
    """The token's end comes while a tool runs, and the client sends nothing."""
    guard = tokens.with_token(tokens.account(0.8))
    agent, session = guard.new_agent("clerk"), handle_of(guard)
    connections: list[int] = []

    def works() -> str:
        if not connections:
            tokens.write(tokens.account(600))
            time.sleep(1.2)
        connections.append(tokens.place.status()["connections"])
        return "done"

    tool = note(guard, works)
    assert agent.call(tool) == "done"
    assert agent.call(tool) == "done"
    assert handle_of(guard) == session
    assert connections[0] == 1
    guard.close()
    assert len(tokens.place.outcomes()) == 2
    assert tokens.place.verify().ok


@pytest.mark.slow("waits until the server would have forgotten a client that is lost")
def test_a_session_outlives_its_tokens(founded):
    toml = founded.folder / "agentguard.toml"
    toml.write_text(toml.read_text("utf-8").replace("reconnect = 2", "reconnect = 1"), "utf-8")
    tokens = Tokens(founded)
    guard = tokens.with_token(tokens.account(0.8))
    agent, session = guard.new_agent("clerk"), handle_of(guard)

    def works() -> str:
        until = time.monotonic() + 2.7
        while time.monotonic() < until:
            tokens.write(tokens.account(0.8))
            time.sleep(0.1)
        return "done"

    tool = note(guard, works)
    assert agent.call(tool) == "done"
    assert handle_of(guard) == session
    guard.close()
    assert [one.status for one in tokens.place.outcomes()] == ["ok"]
    tokens.close()


def test_a_token_that_is_not_replaced_ends_the_connection(tokens):
    guard = tokens.with_token(tokens.account(0.8))
    agent, tool = guard.new_agent("clerk"), note(guard)
    assert agent.call(tool) == "ok"
    tokens.place.wait_for(lambda: tokens.place.status()["connections"] == 0)
    with pytest.raises(Denied) as caught:
        agent.call(tool)
    assert caught.value.decision.code == "server.token"
    tokens.write(tokens.account())
    assert agent.call(tool) == "ok"


def test_a_key_that_is_rotated_is_known_at_once(shared):
    shared.with_token(shared.account())
    shared.cluster.rotate("second")
    with pytest.raises(ServerError) as caught:
        shared.with_token(shared.account(), "new")
    assert "jwt.key" in str(caught.value)
    shared.publish()
    assert shared.with_token(shared.account(), "new").new_agent("clerk").name == "clerk"


def test_while_a_provider_is_down_its_last_keys_count(tokens):
    token = tokens.http.issuer.token(sub="x", azp="billing", **fresh())
    tokens.http.answers["/jwks"] = (500, {}, b"{}")
    with pytest.raises(ServerError) as caught:
        tokens.with_token(token)
    assert caught.value.code == "issuer.unreachable"
    assert "127.0.0.1" not in str(caught.value)  # its address is the server's matter
    tokens.place.wait_for(lambda: "sso can't be fetched" in tokens.place.said())
    assert tokens.with_token(tokens.account(), "other").new_agent("clerk").name == "clerk"
    del tokens.http.answers["/jwks"]
    tokens.place.stop()
    tokens.place.start()
    guard = tokens.with_token(token)
    tokens.http.close()
    assert tokens.with_token(token, "again").new_agent("clerk").name == "clerk"
    assert guard.new_agent("clerk").call(note(guard)) == "ok"


def test_a_wrong_secret_gets_no_connection(shared):
    with pytest.raises(AgentguardError) as caught:
        shared.with_oauth("wrong")
    assert caught.value.code == "server.token"
    assert shared.with_oauth().new_agent("clerk").name == "clerk"


def test_a_token_that_the_server_refuses_is_got_anew(tokens):
    """As after the provider has withdrawn its key: the token that is kept is of no use."""
    guard = tokens.with_oauth()
    agent, tool = guard.new_agent("clerk"), note(guard)
    tokens.http.issuer.rotate("second")
    tokens.http.issuer.keys[:1] = []
    tokens.place.stop()
    tokens.place.start()
    assert guard.new_agent("clerk").call(tool) == "ok"
    assert agent.name == "clerk"
    assert tokens.http.requests.count("/token") == 2


def test_a_client_whose_claims_have_changed_in_the_configuration_loses_its_rights(tokens):
    token = tokens.http.issuer.token(azp="batch", gty="m2m", **fresh())
    guard = tokens.with_token(token)
    agent, tool = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "ok")
    path = tokens.folder / "agentguard.toml"

    def load(old: str, new: str) -> None:
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
        words = ("-m", "agentguard.cli", "server", "reload")
        assert "clients" in tokens.place.programs.run(*words, cwd=tokens.folder).stdout

    assert agent.call(tool) == "ok"
    load('gty = "m2m"', 'gty = "other"')
    with pytest.raises(Denied) as denied:
        agent.call(tool)
    assert denied.value.code == "server.stranger"
    load('gty = "other"', 'gty = "m2m"')
    assert agent.call(tool) == "ok"  # the twin
