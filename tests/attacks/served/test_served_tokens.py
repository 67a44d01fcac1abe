"""Hostile clients on other machines, without a certificate: forged, stolen and foreign tokens.

The tests of this module share a server; ``tests/attacks/test_issuer_tokens.py`` has every forgery.
"""

from __future__ import annotations

import resource
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import pytest
from served_place import founded_place
from served_tokens import CLUSTER, PROVIDER, WEB, WORKLOAD, Tokens, handle_of
from token_issuer import ISSUER, TokenIssuer, fresh

from agentguard.server import tls
from agentguard.server.share import MOST_CONNECTIONS
from agentguard.wire.frame import Frame
from agentguard.wire.stream import Stream


@pytest.fixture(scope="module")
def tokens(programs) -> Iterator[Tokens]:
    with founded_place(programs) as place:
        made = Tokens(place)
        yield made
        assert "failed in the server" not in place.said()
        assert "Exception in thread" not in place.said()
        made.close()


def refusal(tokens: Tokens, token: Any, **options: Any) -> tuple[str, str]:
    """Return the code and the message; the client's own token is greeted right after."""
    error = tokens.greet(token, **options)["error"]
    assert tokens.greet(tokens.account())["client"] == "billing"
    return error["code"], error["message"]


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"iss": f"{CLUSTER}/"}, "jwt.issuer"),
        ({"iss": CLUSTER.removesuffix(".local")}, "jwt.issuer"),
        ({"iss": PROVIDER}, "jwt.algorithm"),  # another issuer of the same server
        ({"iss": ISSUER}, "jwt.issuer"),
        ({"iss": None, "sub": WORKLOAD}, "jwt.algorithm"),
        ({"aud": [CLUSTER]}, "jwt.audience"),
        ({"aud": "agentguard2"}, "jwt.audience"),
        ({"exp": 1_700_000_000}, "jwt.expired"),
        ({"exp": None}, "jwt.lifetime"),
        ({"nbf": 4_000_000_000}, "jwt.not_yet_valid"),
        ({"cnf": {"jkt": "x"}}, "jwt.bound"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_token_that_does_not_count_is_refused(tokens, claims, code):
    got, message = refusal(tokens, tokens.account(**claims))
    assert got == "server.token"
    assert f"[{code}]" in message


def test_a_token_of_somebody_else_is_refused(tokens):
    mallory = TokenIssuer("mallory", alg="RS256", issuer=CLUSTER)
    code, message = refusal(tokens, mallory.token(**fresh()))
    assert code == "server.token"
    assert "[jwt.signature]" in message


@pytest.mark.parametrize("typ", ["ID", "logout+jwt", "dpop+jwt"])
def test_a_token_for_something_else_is_refused(tokens, typ):
    token = tokens.cluster.token({"typ": typ}, **fresh())
    assert "[jwt.type]" in refusal(tokens, token)[1]


def test_no_token_and_what_is_no_token_are_refused(tokens):
    assert refusal(tokens, None)[0] == "server.token"
    for value in ("", "a.b.c", "x" * 20_000, 7, [tokens.account()], {"token": "x"}, True):
        assert refusal(tokens, value)[0] == "server.token"


@pytest.mark.parametrize(
    "subject",
    ["system:serviceaccount:prod:billing2", "system:serviceaccount:dev:billing", "billing", WEB],
)
def test_a_subject_that_is_no_client_is_a_stranger(tokens, subject):
    code, message = refusal(tokens, tokens.account(sub=subject))
    assert code == "server.stranger"
    assert subject in message


def test_a_subject_counts_with_its_own_issuer_alone(tokens):
    """The provider may have a user whose name is that of a service account, or of a workload."""
    names = ("system:serviceaccount:prod:billing", WORKLOAD)
    for name in names:
        token = tokens.http.issuer.token(azp=name, **fresh())
        assert refusal(tokens, token)[0] == "server.stranger"
    assert tokens.greet(tokens.http.issuer.token(azp="billing", **fresh()))["client"] == "oauth"


@pytest.mark.parametrize("mark", ["sid", "session_state", "auth_time", "nonce", "at_hash", "amr"])
def test_a_user_of_a_program_is_not_the_program(tokens, mark):
    """The claim azp names the program in a user's token as well."""
    issued = tokens.http.issuer.token
    marked: dict[str, Any] = {mark: int(time.time()) if mark == "auth_time" else "x"}
    got, message = refusal(tokens, issued(azp="billing", **marked, **fresh()))
    assert got == "server.token"
    assert mark in message
    assert tokens.greet(issued(azp="billing", **fresh()))["client"] == "oauth"  # the twin
    kept = issued(azp="billing", sub="billing", **marked, **fresh())  # the program by its sub
    assert tokens.greet(kept)["client"] == "oauth"


@pytest.mark.parametrize("mark", ["act", "events"])
def test_a_token_with_which_another_party_acts_or_of_an_event_is_not_the_clients_own(tokens, mark):
    got, message = refusal(tokens, tokens.account(**{mark: {"sub": "mallory"}}))
    assert got == "server.token"
    assert mark in message
    assert "client" in tokens.greet(tokens.account())  # the twin


def test_a_token_of_a_client_has_the_claims_in_the_configuration(tokens):
    issued = tokens.http.issuer.token
    wrong: list[Any] = [{}, {"gty": "password"}, {"gty": ["m2m"]}, {"gty": "M2M"}, {"gty": "m2m "}]
    for claims in wrong:
        assert refusal(tokens, issued(azp="batch", **claims, **fresh()))[0] == "server.token"
    assert tokens.greet(issued(azp="batch", gty="m2m", **fresh()))["client"] == "batch"  # the twin


def test_a_stolen_session_is_of_no_use_to_another_client(tokens):
    handle = handle_of(tokens.with_token(tokens.account()))
    assert refusal(tokens, tokens.svid(), session=handle)[0] == "server.restarted"
    assert refusal(tokens, None, session=handle)[0] == "server.token"
    assert refusal(tokens, tokens.account(exp=1), session=handle)[0] == "server.token"
    files = tokens.authority.issue("web", WEB)
    assert refusal(tokens, None, session=handle, files=files)[0] == "server.restarted"
    assert tokens.greet(tokens.account(), session=handle)["session"] == handle  # the twin


def test_a_client_is_known_by_one_proof_alone(tokens):
    """A certificate and a token could name two clients."""
    files = tokens.authority.issue("web", WEB)
    assert refusal(tokens, tokens.account(), files=files)[0] == "server.token"
    assert tokens.greet(None, files=files)["client"] == "web"


def test_a_client_of_the_socket_shows_no_token(tokens):
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(str(tokens.folder / "s"))
        stream = Stream(connected)
        stream.read()
        stream.write(Frame({"op": "hello", "protocol": 1, "token": tokens.account()}))
        assert stream.read().header["error"]["code"] == "server.token"


def test_a_client_with_a_token_starts_no_programs(tokens):
    with tokens.socket() as connected:
        stream = Stream(connected)
        stream.read()
        launch = {"op": "launch", "agent": "clerk", "uid": 0, "token": tokens.account()}
        stream.write(Frame(launch))
        assert stream.read().header["error"]["code"] == "server.launch"


def test_nothing_is_done_after_the_end_of_a_token(tokens):
    """A frame that has begun in time and ends too late is not carried out."""
    with tokens.socket() as connected:
        stream = Stream(connected)
        stream.read()
        stream.write(Frame({"op": "hello", "protocol": 1, "token": tokens.account(1)}))
        ends_in = stream.read().header["ends_in"]
        assert 0 < ends_in <= 1
        begun = (20).to_bytes(4, "big") + (16).to_bytes(4, "big") + b'{"op":'
        rest = b'"flush"}  '
        connected.sendall(begun + rest)
        assert stream.read().header == {}  # the twin
        connected.sendall(begun)
        time.sleep(1.1)
        connected.sendall(rest)
        with pytest.raises(OSError):  # noqa: PT011  it is closed, in one way or the other
            stream.read()


def test_a_token_that_is_in_a_request_is_not_answered(tokens):
    token = tokens.account()
    with tokens.socket() as connected:
        stream = Stream(connected)
        stream.read()
        stream.write(Frame({"op": "hello", "protocol": 1, "token": token}))
        assert token not in str(stream.read().header)
    assert token not in tokens.place.said()


def test_connections_without_a_token_shut_nobody_out():
    """The one that began first is ended, and those whose clients are known are not counted."""
    handshakes, ends = tls.Handshakes(2), [socket.socketpair() for _ in range(4)]
    accepted = [socket.socket() for _ in ends]
    for index in (0, 1):
        handshakes.begin(accepted[index], ends[index][0])
    handshakes.end(accepted[0])  # its client is known
    handshakes.begin(accepted[2], ends[2][0])
    handshakes.begin(accepted[3], ends[3][0])
    states: list[bytes | None] = []
    for mine, other in ends:
        other.setblocking(False)
        try:
            states.append(other.recv(1))
        except BlockingIOError:
            states.append(None)
        mine.close()
        other.close()
    for one in accepted:
        one.close()
    assert states == [None, b"", None, None]


@pytest.mark.slow("makes six hundred connections with TLS")
def test_many_connections_without_a_token_shut_nobody_out(tokens):
    """They get through the handshake, and count as long as their clients are not known."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[1], 4096), limits[1]))
    context = ssl.create_default_context(cafile=str(tokens.authority.file))
    held = []
    try:
        for _ in range(MOST_CONNECTIONS // 2 + 100):
            plain = socket.create_connection(("127.0.0.1", tokens.port), timeout=30)
            held.append(context.wrap_socket(plain, server_hostname="127.0.0.1"))
        assert tokens.greet(tokens.account())["client"] == "billing"
        assert tokens.greet(tokens.svid())["client"] == "svid"
        files = tokens.authority.issue("web", WEB)
        assert tokens.greet(None, files=files)["client"] == "web"
        with pytest.raises(OSError):  # noqa: PT011  it is closed, in one way or the other
            read_to_the_end(held[0])
    finally:
        for one in held:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def read_to_the_end(connected: ssl.SSLSocket) -> None:
    stream = Stream(connected)
    while True:
        stream.read()
