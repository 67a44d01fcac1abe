"""A gateway over HTTP that asks for access tokens: for whom it calls, and which tokens count."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
import uvicorn
from gateway_scene import LIMIT, code_of, settings, shown, until
from http_scene import HELLO, call_of, messages, served
from login_provider import ISSUER, Provider

from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway import OAuth

URL = "https://mcp.acme.example/mcp"
METADATA = "/.well-known/oauth-protected-resource"
SCOPES = ("files:read", "files:write")


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    return Provider(tmp_path_factory.mktemp("login"))


@pytest.fixture
def recorded(provider):
    made = RecordedGuard.make(
        agents={"assistant": {"max_scope": [*SCOPES, "files:delete"]}},
        issuers={"acme": provider.table(audience=[URL])},
        tools={"fail": {"requires": ["files:write"]}, "ask": {"requires": ["admin"]}},
    )
    yield made
    made.require_sound()
    made.guard.close()


def gateway(recorded, given=None, **oauth):
    asked = OAuth({ISSUER: SCOPES}, scopes=("files:read",), **oauth)
    return served(recorded, given, url=URL, oauth=asked)


def bearer(token):
    return {"authorization": f"Bearer {token}"}


async def at(running, token=None, **headers):
    """Return a client of the gateway behind a proxy, which leaves the name of the host."""
    client = running.caller(host="mcp.acme.example", **headers)
    client.url = f"http://127.0.0.1:{running.place.port}/mcp"
    if token is not None:
        client.headers |= bearer(token)
    return client


def token(provider, **claims):
    return provider.token(**{"aud": URL, "scope": "openid files:read", **claims})


async def test_the_agent_acts_for_the_user_of_the_token(recorded, provider):
    async with gateway(recorded) as running:
        client = await at(running, token(provider))
        await client.begin()
        assert shown(await client.call("echo", "a"))["text"] == "a"
        bob = await at(running, token(provider, sub="b", preferred_username="bob"))
        single = await bob.call_single("echo", "b")
        assert shown(single.json()["result"])["text"] == "b"
    assert [call.principal for call in recorded.calls()] == ["user:alice", "user:bob"]
    first = recorded.policy_inputs[0]["delegation"]
    assert (first["assurance"], first["subject_token"]["iss"]) == ("oidc", ISSUER)
    assert first["scope"] == ["files:read"]


async def test_the_metadata_say_where_tokens_come_from(recorded):
    async with gateway(recorded) as running:
        client = await at(running)
        for path in (METADATA, f"{METADATA}/mcp"):
            url = client.url.removesuffix("/mcp") + path
            found = (await client.http.get(url, headers=client.headers)).json()
            assert (found["resource"], found["authorization_servers"]) == (URL, [ISSUER])
            assert found["scopes_supported"] == ["files:read"]
        refused = await client.post(call_of("echo"))
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == (
            f'Bearer resource_metadata="https://mcp.acme.example{METADATA}/mcp", scope="files:read"'
        )


async def test_tokens_of_others_and_for_others_do_not_count(recorded, provider, tmp_path):
    other = Provider(tmp_path, "other")
    good = token(provider)
    head, body, signature = good.split(".")
    async with gateway(recorded) as running:
        for spoiled in (
            token(provider, aud="https://mcp.acme.example"),
            token(provider, aud="https://mcp.acme.example/mcp/"),
            token(provider, aud="agentguard"),
            token(provider, aud=["https://other.example/mcp"]),
            token(provider, aud=None),
            token(provider, iss="https://evil.example"),
            token(other),
            token(provider, exp=int(time.time()) - 60),
            token(provider, exp=None),
            token(provider, nbf=int(time.time()) + 600),
            provider.id_token(aud=URL),
            token(provider, typ="ID"),
            token(provider, cnf={"jkt": "x"}),
            token(provider, sub="chat"),
            f"{head}.{body}.",
            f"{head}.{body}.{signature[::-1]}",
            f"{head}.{body}",
            "x",
            "x" * 20_000,
        ):
            client = await at(running, spoiled)
            refused = await client.call_single("echo")
            assert refused.status_code == 401, (spoiled, refused.text)
            assert 'resource_metadata="' in refused.headers["www-authenticate"]
        for header in ("Basic YTpi", "DPoP x", "Bearer", f"Bearer {good} x", f"Bearer  {good}"):
            client = await at(running, authorization=header)
            assert (await client.call_single("echo")).status_code == 401, header
        client = await at(running, good)
        assert (await client.call_single("echo")).status_code == 200
    assert recorded.outcomes() == ["ok"]


async def test_a_session_belongs_to_its_user(recorded, provider):
    async with gateway(recorded) as running:
        alice = await (await at(running, token(provider))).begin()
        for thief in (
            token(provider, sub="m", preferred_username="mallory"),
            token(provider, azp="other-app"),
        ):
            stolen = {**alice.headers, **bearer(thief)}
            assert (await alice.post(call_of("echo"), **stolen)).status_code == 404
            gone = await alice.http.delete(alice.url, headers=stolen)
            assert gone.status_code == 404
            listened = await alice.http.get(alice.url, headers={**stolen, "accept": "*/*"})
            assert listened.status_code == 404
        without = {**alice.headers, "authorization": ""}
        assert (await alice.post(call_of("echo"), **without)).status_code == 401
        alice.headers |= bearer(token(provider, jti="a newer token"))
        assert shown(await alice.call("echo", "a"))["text"] == "a"


async def test_a_call_that_more_scope_would_mend_says_which_scope(recorded, provider):
    async with gateway(recorded) as running:
        client = await at(running, token(provider))
        refused = await client.call_single("fail")
        assert refused.status_code == 403
        challenge = refused.headers["www-authenticate"]
        assert 'error="insufficient_scope"' in challenge
        assert 'scope="files:read files:write"' in challenge
        assert code_of(refused.json()["result"]) == "scope.exceeded"
        beyond = await client.call_single("ask")  # no token of this user could have the scope
        assert (beyond.status_code, code_of(beyond.json()["result"])) == (200, "scope.exceeded")
        more = await at(running, token(provider, scope="files:read files:write"))
        assert (await more.call_single("fail")).json()["result"]["isError"] is True
        listed = await at(running, token(provider, scope=["files:write"]))
        assert (await listed.call_single("fail")).status_code == 200
        none = await at(running, token(provider, scope="openid"))
        assert (await none.call_single("fail")).status_code == 403
    assert recorded.outcomes() == ["error", "error"]


@pytest.mark.parametrize("name", ["scope", "rights"])
async def test_a_scope_of_another_type_is_no_scope(recorded, provider, name):
    """It was an error inside for a number, and the names of an object were granted."""
    wrong = [
        None,
        True,
        1,
        1.5,
        {},
        {"files:read": False},
        [1],
        ["files:read", None],
        [["files:read"]],
    ]
    async with gateway(recorded, scope_claim=name) as running:
        for value in wrong:
            claims = json.loads(_part(token(provider), 1)) | {name: value}
            spoiled = provider.signed(b'{"alg":"RS256","typ":"JWT"}', json.dumps(claims).encode())
            refused = await (await at(running, spoiled)).call_single("echo")
            assert refused.status_code == 401, value
            assert 'error="invalid_token"' in refused.headers["www-authenticate"]
            assert "jwt.malformed" in refused.headers["www-authenticate"]
        for value in ("files:read", ["files:read"]):  # the twin
            client = await at(running, token(provider, **{name: value}))
            assert (await client.call_single("echo")).status_code == 200
    assert recorded.outcomes() == ["ok", "ok"]


def _part(text: str, number: int) -> bytes:
    return urlsafe_b64decode(text.split(".")[number] + "==")


async def test_where_scopes_of_tokens_do_not_count_roles_decide(recorded, provider):
    async with gateway(recorded, scope_claim=None) as running:
        client = await at(running, token(provider, scope="openid"))
        assert (await client.call_single("fail")).json()["result"]["isError"] is True
    assert recorded.outcomes() == ["error"]


async def test_no_token_reaches_the_server_or_the_log(recorded, provider):
    good = token(provider)
    async with gateway(recorded) as running:
        client = await (await at(running, good)).begin()
        received = json.dumps(shown(await client.call("echo", "a")))
        assert good not in received
        assert "authorization" not in received.lower()
    entries = json.dumps([call.predicate for call in recorded.calls()])
    assert good not in entries


async def test_two_users_with_the_same_call_have_a_call_each(recorded, provider):
    given = settings(options={"extra": ["slow"], "slow": 0.1})
    async with gateway(recorded, given) as running:
        users = ("alice", "alice", "bob")
        clients = [await at(running, token(provider, sub=u, preferred_username=u)) for u in users]
        answers = await asyncio.gather(*(one.call_single("slow", "a") for one in clients))
        assert [one.json()["result"]["isError"] for one in answers] == [False] * 3
    principals = sorted(call.principal for call in recorded.calls())
    assert principals == ["user:alice", "user:alice", "user:bob"]


async def test_one_user_has_a_share_of_the_sessions(recorded, provider):
    asked = OAuth({ISSUER: SCOPES})
    async with served(recorded, url=URL, oauth=asked, sessions=4) as running:
        await (await at(running, token(provider))).begin()
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
        for claims in ({}, {"azp": "other-app"}):  # another client program gives no more
            again = await at(running, token(provider, **claims))
            assert (await again.post(hello)).status_code == 503, claims
        bob = await at(running, token(provider, sub="b", preferred_username="bob"))
        assert messages(await bob.post(hello))[-1]["id"] == 0


async def test_one_user_has_a_share_of_the_connections(recorded, provider, monkeypatch):
    monkeypatch.setattr("agentguard_mcp.gateway.http.server.CONNECTIONS", 16)
    async with gateway(recorded) as running:
        alice = await at(running, token(provider))
        bob = await at(running, token(provider, sub="b", preferred_username="bob"))
        waiting = [asyncio.create_task(alice.call_single("hang")) for _ in range(4)]
        await until(lambda: len(recorded.calls()) == 4)
        for claims in ({}, {"azp": "other-app"}):  # another client program gives no more
            more = await (await at(running, token(provider, **claims))).call_single("echo")
            assert (more.status_code, more.headers["retry-after"]) == (503, "10")
        assert (await bob.call_single("echo")).status_code == 200
        for one in waiting:
            one.cancel()
        await until(lambda: recorded.outcomes().count("unknown") == 4)
        assert (await alice.call_single("echo")).status_code == 200


async def test_a_stream_ends_with_its_token(recorded, provider):
    short = token(provider, exp=int(time.time()) + 2)
    async with gateway(recorded) as running:
        client = await (await at(running, short)).begin()
        headers = {**client.headers, "accept": "text/event-stream"}
        async with asyncio.timeout(LIMIT):
            async with client.http.stream("GET", client.url, headers=headers) as answer:
                assert answer.status_code == 200
                assert await answer.aread() is not None


async def test_a_stream_ends_once_its_token_counts_no_longer(recorded, provider, monkeypatch):
    monkeypatch.setattr("agentguard_mcp.gateway.http.bearer.RECHECK", 0.0)
    monkeypatch.setattr("agentguard_mcp.gateway.http.endpoint.RECHECK", 0.05)
    looks, delegate = [], recorded.guard.delegate
    monkeypatch.setattr(
        recorded.guard, "delegate", lambda **given: (looks.append(1), delegate(**given))[1]
    )
    async with gateway(recorded) as running:
        client = await (await at(running, token(provider))).begin()
        headers = {**client.headers, "accept": "text/event-stream"}
        async with client.http.stream("GET", client.url, headers=headers) as answer:
            reading = asyncio.create_task(answer.aread())
            seen = len(looks)
            await until(lambda: len(looks) > seen + 2)
            assert not reading.done()
            keys = provider.path.read_bytes()
            provider.path.unlink()
            try:
                async with asyncio.timeout(LIMIT):
                    await reading
            finally:
                provider.path.write_bytes(keys)


async def test_the_server_behind_gets_no_header_of_a_client(recorded, provider):
    seen = []

    async def upstream(scope, receive, send):
        body = (await receive())["body"]
        message = json.loads(body) if body else {}
        seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
        tool = {"name": "echo", "description": "Echo.", "inputSchema": {"type": "object"}}
        result = {"tools": [tool]} if message.get("method") == "tools/list" else {"content": []}
        answer = json.dumps({"jsonrpc": "2.0", "id": message.get("id"), "result": result}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    config = uvicorn.Config(upstream, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    given = settings(command=(), url=f"http://127.0.0.1:{port}/mcp")
    try:
        async with gateway(recorded, given) as running:
            good = token(provider)
            client = await at(running, good, cookie="session=1")
            allowed = await client.call_single("echo", "a", headers={"x-secret": "x"})
            assert allowed.status_code == 200
    finally:
        server.should_exit = True
        await serving
    assert len(seen) == 2
    assert not {"authorization", "cookie", "x-secret"}.intersection(
        name for one in seen for name in one
    )
    assert good not in json.dumps(seen)
    assert recorded.outcomes() == ["ok"]


async def test_a_token_is_verified_again_after_a_while(recorded, provider, monkeypatch):
    async with gateway(recorded) as running:
        client = await (await at(running, token(provider))).begin()
        keys = provider.path.read_bytes()
        provider.path.unlink()
        try:
            assert shown(await client.call("echo", "a"))["text"] == "a"  # verified a moment ago
            monkeypatch.setattr("agentguard_mcp.gateway.http.bearer.RECHECK", 0.0)
            later = await client.post(call_of("echo", "b"))
            assert (later.status_code, later.headers["retry-after"]) == (503, "10")
        finally:
            provider.path.write_bytes(keys)
        assert shown(await client.call("echo", "c"))["text"] == "c"
    assert recorded.outcomes() == ["ok", "ok"]


async def test_users_who_delegate_nothing_get_nothing(recorded, provider):
    async with served(recorded, url=URL, oauth=OAuth({ISSUER: ()})) as running:
        client = await at(running, token(provider, scope="files:read files:write"))
        refused = await client.call_single("fail")
        assert code_of(refused.json()["result"]) == "scope.exceeded"
    async with gateway(recorded) as running:  # the twin
        client = await at(running, token(provider, scope="files:read files:write"))
        assert (await client.call_single("fail")).json()["result"]["isError"] is True


async def test_a_user_without_rights_is_refused_and_another_is_not(provider):
    recorded = RecordedGuard.make(
        agents={"assistant": {"max_scope": list(SCOPES)}},
        issuers={"acme": provider.table(audience=[URL])},
        roles={"reader": {"scope": ["files:read"]}},
        principals={"user:bob": {"roles": ["reader"]}},
    )
    asked = OAuth({ISSUER: None})
    async with served(recorded, url=URL, oauth=asked) as running:
        alice = await at(running, token(provider))
        refused = await alice.call_single("echo")
        assert (refused.status_code, "www-authenticate" in refused.headers) == (403, False)
        bob = await at(running, token(provider, sub="b", preferred_username="bob"))
        assert (await bob.call_single("echo")).status_code == 200
    recorded.require_sound()
    recorded.guard.close()


async def test_claims_of_an_attacker_are_refused_and_nothing_fails_inside(recorded, provider):
    head = token(provider).partition(".")[0]
    own = {"iss": ISSUER, "aud": URL, "sub": "s", "preferred_username": "alice"}
    hostile = [
        b"",
        b"7",
        b"[]",
        b"\xff",
        b"[" * 5_000,
        json.dumps({**own, "exp": "soon"}).encode(),
        json.dumps({**own, "exp": 1e300}).encode(),
        json.dumps({**own, "exp": -1}).encode(),
        json.dumps(own).encode()[:-1] + b',"exp":1e999}',
        json.dumps({**own, "aud": {"a": URL}}).encode(),
        json.dumps({**own, "iss": [ISSUER]}).encode(),
        json.dumps({**own, "exp": time.time() + 60, "azp": {"a": []}}).encode(),
    ]
    async with gateway(recorded) as running:
        for claims in hostile:
            signed = provider.signed(b'{"alg":"RS256","typ":"JWT","kid":"login"}', claims)
            part = urlsafe_b64encode(claims).decode().rstrip("=")
            for spoiled in (signed, f"{head}.{part}.c2ln", f"{head}.{part}", f"{part}x"):
                refused = await (await at(running, spoiled)).call_single("echo")
                assert refused.status_code == 401, (claims, refused.text)
        allowed = await (await at(running, token(provider))).call_single("echo")
        assert allowed.status_code == 200


async def test_the_public_name_counts_with_the_port_of_its_scheme(recorded, provider):
    async with gateway(recorded) as running:
        for host, status in (
            ("mcp.acme.example", 200),
            ("mcp.acme.example:443", 200),
            ("mcp.acme.example:80", 403),
            ("acme.example", 403),
        ):
            client = await at(running, token(provider))
            answer = await client.call_single("echo", "a", headers={"host": host})
            assert answer.status_code == status, host
