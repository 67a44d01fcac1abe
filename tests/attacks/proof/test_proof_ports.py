"""A receiver's store, revocations, log and clock of the application's own that answer wrongly.

The methods come from the protocols, so that a new one is asked as well. Each wrong answer refuses
the request: nobody has said that the proof is new, that nobody is revoked, or that the request is
on record.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

import pytest
from call_scene import AUDIENCE, CallScene
from call_scene import check as check_call
from proof_scene import URL, ProofScene, Sent, check, header, with_header
from wrong_answers import WRONG, coroutine_functions

from agentguard.delegation.access_token import CHAIN_CLAIM
from agentguard.errors import AgentguardError, ConfigError, ProofError
from agentguard.identity.revocation import Revocations
from agentguard.proof import CallReceiver, ProofStore, Receiver
from agentguard.proof.headers import decode_chain
from agentguard.proof.receiver import ReceiverStore, RequestLog
from agentguard.signing import jws

PORTS = {"store": ReceiverStore, "revocations": Revocations, "log": RequestLog}
RIGHT = {
    "store.use": {"none"},
    "store.keep_chain": {"none"},
    "store.chain": {
        "none",
        "bytes",
    },  # none asks for the chain, and bytes that are none are refused
    "revocations.refusal": {"none"},
    "log.received": {"none"},
    "clock": {"zero", "number"},  # times at which no token counts
}
"""The answers that are none of another type, by the method."""

UNHEARD = {"log.refused"}
"""A refusal stands, whatever the log says of it."""


def methods() -> list[str]:
    found = [
        f"{port}.{name}"
        for port, protocol in PORTS.items()
        for name, _method in inspect.getmembers(protocol, inspect.isfunction)
        if not name.startswith("_")
    ]
    return [*found, "clock"]


CASES = [
    (method, wrong)
    for method in methods()
    if method not in UNHEARD
    for wrong in WRONG
    if wrong not in RIGHT[method]
]


class Log:
    def __init__(self) -> None:
        self.said: list[str] = []

    def received(self, _request: Any) -> None:
        self.said.append("received")

    def refused(self, _code: str, _request: Any) -> None:
        self.said.append("refused")


class Nobody:
    def refusal(self, _names: Any) -> None:
        return None


class Parts:
    """What an application gives to a receiver, with one method replaced."""

    def __init__(self, folder: Any, method: str = "", replaced: Any = None) -> None:
        self.store: Any = ProofStore(folder / "proofs.sqlite")
        self.log, self.revocations = Log(), Nobody()
        self.clock: Callable[[], float] = time.time
        if method == "clock":
            self.clock = replaced
        elif method:
            part, name = method.split(".")
            setattr(getattr(self, part), name, replaced)

    def receiver(self, scene: ProofScene) -> Receiver:
        more: Any = {"revocations": self.revocations, "log": self.log, "clock": self.clock}
        return Receiver(URL, scene.guard.trust, self.store, **more)

    def call_receiver(self, scene: CallScene) -> CallReceiver:
        more: Any = {"revocations": self.revocations, "log": self.log, "clock": self.clock}
        return CallReceiver(AUDIENCE, scene.guard.trust, self.store, **more)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    http = ProofScene(tmp_path_factory.mktemp("http"))
    mcp = CallScene(tmp_path_factory.mktemp("mcp"), http.guard)
    with http.guard:
        yield http, mcp


def code_of(request: Callable[[], object]) -> str | None:
    """Make a request; return the code of its refusal, None where it is accepted."""
    try:
        request()
    except ProofError as error:
        return error.code
    return None


def chain_of(sent: Sent) -> str:
    """Return the digest of the chain that the access token of a request names."""
    token = header(sent, "Authorization").partition(" ")[2]
    return str(jws.parse(token).claims()[CHAIN_CLAIM])


def requests(parts: Parts, scenes: Any, method: str) -> dict[str, Callable[[], object]]:
    """Return the requests that use a method of the application, for each kind of receiver."""
    http, mcp = scenes
    receiver = parts.receiver(http)
    sent = http.request()
    chain = decode_chain(header(sent, "Agentguard-Chain"))
    named = chain_of(sent)
    if method == "store.keep_chain":
        return {"http": lambda: receiver.keep_chain(named, chain)}
    if method == "store.chain":
        return {"http": lambda: check(receiver, with_header(sent, "Agentguard-Chain", None))}
    params = mcp.prove()
    called = parts.call_receiver(mcp)
    return {"http": lambda: check(receiver, sent), "mcp": lambda: check_call(called, params)}


@pytest.mark.parametrize(("method", "wrong"), CASES)
def test_a_wrong_answer_refuses_the_request_each_time(scenes, tmp_path, method, wrong):
    expected = "proof.unrecorded" if method.startswith("log.") else "proof.unavailable"
    parts = Parts(tmp_path, method, lambda *_given, **_more: WRONG[wrong]())
    for request in requests(parts, scenes, method).values():
        assert code_of(request) == expected
        assert None not in (code_of(request), code_of(request))
    assert "received" not in parts.log.said


@pytest.mark.parametrize("method", [one for one in methods() if one not in UNHEARD])
def test_an_exception_refuses_the_request_and_is_recorded(scenes, tmp_path, method):
    def fails(*_given: Any, **_more: Any) -> None:
        raise RuntimeError("the disk is full of secrets")

    parts = Parts(tmp_path, method, fails)
    for request in requests(parts, scenes, method).values():
        with pytest.raises(AgentguardError) as refused:
            request()
        assert refused.value.code in ("proof.unavailable", "proof.unrecorded")
        assert "secrets" not in str(refused.value)
    if method in ("store.use", "revocations.refusal"):
        assert parts.log.said == ["refused", "refused"]


@pytest.mark.parametrize("method", methods())
def test_a_coroutine_function_is_refused_before_the_first_request(scenes, tmp_path, method):
    for function in coroutine_functions(lambda *_given, **_more: None).values():
        parts = Parts(tmp_path, method, function)
        with pytest.raises(ConfigError, match="expected a function, no coroutine function"):
            parts.receiver(scenes[0])
        with pytest.raises(ConfigError, match="expected a function, no coroutine function"):
            parts.call_receiver(scenes[1])


def test_parts_that_answer_rightly_take_a_proof_once(scenes, tmp_path):
    parts = Parts(tmp_path)
    for request in requests(parts, scenes, "store.use").values():
        assert [code_of(request) for _ in range(3)] == [None, "proof.used", "proof.used"]
    assert parts.log.said.count("received") == 2
    assert code_of(requests(parts, scenes, "store.keep_chain")["http"]) is None
    http = scenes[0]
    sent = http.request()
    receiver, short = parts.receiver(http), with_header(sent, "Agentguard-Chain", None)
    receiver.keep_chain(chain_of(sent), decode_chain(header(sent, "Agentguard-Chain")))
    assert code_of(lambda: check(receiver, short)) is None


@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_a_refusal_stands_whatever_the_log_says_of_it(scenes, tmp_path, wrong):
    parts = Parts(tmp_path, "log.refused", lambda _request: WRONG[wrong]())
    receiver = parts.receiver(scenes[0])
    sent = scenes[0].request()
    assert code_of(lambda: check(receiver, sent._replace(body=b"other"))) == "proof.request"
    assert code_of(lambda: check(receiver, sent)) is None  # the twin
