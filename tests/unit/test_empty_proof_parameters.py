"""Each parameter of ``agentguard.proof`` that grants, limits or names somebody, left empty.

The parameters come from the signatures (``empty_parameters.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from call_scene import AUDIENCE, METHOD, CallScene
from empty_parameters import parameters, require_no_two, require_nothing
from proof_scene import URL, ProofScene, check, resigned
from tool_servers import SCOPE

from agentguard.proof import (
    CallReceiver,
    ProofError,
    ProofStore,
    Receiver,
    RequestCaller,
)
from agentguard.proof.fastapi import requires
from agentguard.proof.httpx import AsyncCallerTransport, CallerTransport
from agentguard.proof.requests import CallerAdapter
from agentguard.signing.keys import Ed25519Signer

MODULES = tuple(
    import_module(f"agentguard.proof{below}") for below in ("", ".fastapi", ".httpx", ".requests")
)
FOUND = sorted({one for module in MODULES for one in parameters(module, {"RequestCaller"})})
ELSEWHERE = "https://agents.example"
"""A token service that nobody trusts here."""


class Scene:
    """Verifies a request of each kind, with other values of what the receiver knows."""

    def __init__(self, folder: Path) -> None:
        self.http = ProofScene(folder)
        self.calls = CallScene(folder, self.http.guard)
        self.trust = self.http.guard.trust
        self.store = ProofStore(folder / "proofs.sqlite")

    def receiver(self, **given: Any) -> RequestCaller:
        receiver = Receiver(URL, given.pop("trust", self.trust), self.store, **given)
        return check(receiver, self.http.request()._replace(headers=self.headers(given)))

    def call_receiver(self, **given: Any) -> RequestCaller:
        receiver = CallReceiver(
            given.pop("audience", AUDIENCE),
            given.pop("trust", self.trust),
            self.store,
            **given,
        )
        return receiver.verify(METHOD, self.params(given))

    def headers(self, given: dict[str, Any]) -> list[tuple[str, str]]:
        sent = dict(self.http.request().headers)
        if "issuers" in given:
            kind, _, token = sent["Authorization"].partition(" ")
            sent["Authorization"] = f"{kind} {_foreign(token)}"
        return list(sent.items())

    def params(self, given: dict[str, Any]) -> dict[str, Any]:
        sent = self.calls.prove()
        if "issuers" in given:
            sent["_meta"]["dev.agentguard/token"] = _foreign(sent["_meta"]["dev.agentguard/token"])
        return sent

    def prove(self, audience: str) -> dict[str, Any]:
        return self.calls.prove(audience=audience)


def _foreign(token: str) -> str:
    """Return a token that names ``ELSEWHERE`` as its issuer."""
    return resigned(token, Ed25519Signer.from_seed(bytes(32)), {"iss": ELSEWHERE}, {})


CASES: dict[tuple[str, str], tuple[Callable[[Scene], Any], str]] = {
    ("CallReceiver", "audience"): (lambda on: on.call_receiver(audience=""), "config.invalid"),
    ("CallReceiver", "trust"): (lambda on: on.call_receiver(trust=[]), "config.invalid"),
    ("CallReceiver", "issuers"): (lambda on: on.call_receiver(issuers={}), "proof.issuer"),
    ("Receiver", "audience"): (lambda on: on.receiver(audience=""), "config.invalid"),
    ("Receiver", "trust"): (lambda on: on.receiver(trust=[]), "config.invalid"),
    ("Receiver", "issuers"): (lambda on: on.receiver(issuers={}), "proof.issuer"),
    ("RequestCaller.require", "scopes"): (lambda on: on.receiver().require(), "config.invalid"),
    ("prove_call", "audience"): (lambda on: on.prove(""), "proof.audience"),
    ("requires", "scopes"): (lambda _on: requires(), "config.invalid"),
    ("CallerTransport", "audiences"): (lambda _on: CallerTransport(), "config.invalid"),
    ("AsyncCallerTransport", "audiences"): (lambda _on: AsyncCallerTransport(), "config.invalid"),
    ("CallerAdapter", "audiences"): (lambda _on: CallerAdapter(), "config.invalid"),
}
"""A call with an empty value, and the code of its refusal."""


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


@pytest.mark.parametrize(("where", "name"), FOUND)
def test_an_empty_value_of_a_parameter_lets_nobody_in(scene, where, name):
    call, code = CASES[where, name]
    require_nothing((lambda: call(scene), code))


def test_the_twins_are_taken(scene):
    for verify in (scene.receiver, scene.call_receiver):
        verify().require(*SCOPE)
        with pytest.raises(ProofError) as caught:  # a known issuer, whose key has not signed
            verify(issuers={ELSEWHERE: scene.trust.trust_domain})
        assert caught.value.code != "proof.issuer"
    assert callable(requires(*SCOPE))
    assert all(one(URL) for one in (CallerTransport, AsyncCallerTransport, CallerAdapter))


SCOPES: dict[tuple[str, str], Callable[[Scene, str], Any]] = {
    ("RequestCaller.require", "scopes"): lambda on, name: on.receiver().require(name),
    ("requires", "scopes"): lambda _on, name: requires(name),
}


@pytest.mark.parametrize("where", SCOPES)
def test_one_name_of_a_scope_is_no_two(scene, where):
    require_no_two(lambda name: SCOPES[where](scene, name), is_held=SCOPE[0])


def test_so_many_parameters_are_asked():
    assert {*FOUND} == CASES.keys()
    assert len(CASES) == 12
    assert SCOPES.keys() == {one for one in CASES if one[1] in ("scope", "scopes")}
