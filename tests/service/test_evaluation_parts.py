"""Evaluations of the token service in this process, where a test holds its parts in its hand."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from login_provider import Provider
from served_place import PASSPHRASE, Place, founded_place
from token_service import CONFIG, TYPES, Key, claims

from agentguard.errors import ConfigError, StorageError
from agentguard.guard.embedded import open_embedded
from agentguard.service.answers import RefusedError
from agentguard.service.evaluations import evaluate
from agentguard.service.exchange import exchange
from agentguard.service.identities import register
from agentguard.service.parts import ServiceParts, open_parts
from agentguard.service.reading import Request
from agentguard.signing.canonical import dumps, loads_object

URL = "https://agents.example"
ONE = "/access/v1/evaluation"
FACTS = """
async def later(values):
    return {"balance": values["amount"]}

def now(values):
    return {"balance": values["amount"]}

def broken(values):
    raise RuntimeError("hunter2")
"""
MODULE = "facts_of_evaluations"
TABLES = f"""
[paths]
path = "files"

[redact]
slow = ["/args/text"]

[tools.balance]
facts = {{ look_up = "{MODULE}:now", gives = ["balance"] }}
origin = "bank.tools:balance"
schema = "{"0" * 64}"
"""


class Scene:
    """The parts of a service in this process, and an instance that asks."""

    def __init__(self, place: Place, parts: ServiceParts) -> None:
        self.place, self.parts, self.key = place, parts, Key()
        provider = Provider(place.folder)
        workload = provider.token(aud="workloads", sub="web-1")
        bearer = {"authorization": f"Bearer {workload}", "content-type": "application/json"}
        proof = {"dpop": self.key.proof(f"{URL}/identities", workload)}
        body = dumps({"agent": "clerk", "jwk": {**self.key.jwk}})
        registered = register(parts, Request("POST", "/identities", {**bearer, **proof}, body))
        self.credential = str(loads_object(registered.body)["credential"])
        self.uri = str(claims(self.credential)["sub"])
        form = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token": provider.token(),
            "subject_token_type": f"{TYPES}access_token",
        }
        headers = {
            "workload-identity-token": self.credential,
            "content-type": "application/x-www-form-urlencoded",
            "dpop": self.key.proof(f"{URL}/token"),
        }
        sent = "&".join(f"{name}={value}" for name, value in form.items()).encode()
        token = exchange(parts, Request("POST", "/token", headers, sent))
        self.token = str(loads_object(token.body)["access_token"])

    def ask(self, **arguments: Any) -> dict[str, Any]:
        """Ask for an evaluation with the access token; return the answer."""
        body = {
            "subject": {"type": "agent", "id": self.uri},
            "action": {"name": "balance"},
            "resource": {"type": "account", "id": "1"},
            "context": {"arguments": arguments},
        }
        headers = {
            "authorization": f"DPoP {self.token}",
            "dpop": self.key.proof(f"{URL}{ONE}", self.token),
            "content-type": "application/json",
        }
        answer = evaluate(self.parts, Request("POST", ONE, headers, dumps(body)))
        return dict(loads_object(answer.body))


@contextmanager
def opened(programs: Any, edit: Callable[[str], str] = str) -> Iterator[Scene]:
    config = CONFIG.replace("URL", URL).replace("LISTEN", "127.0.0.1:1")
    with founded_place(programs, config + TABLES) as place:
        (place.folder / f"{MODULE}.py").write_text(FACTS, encoding="utf-8")
        (place.folder / "files").mkdir()
        file = place.folder / "agentguard.toml"
        file.write_text(edit(file.read_text()))
        sys.path.insert(0, str(place.folder))
        guard = open_embedded(place.settings, lambda: PASSPHRASE)
        try:
            yield Scene(place, open_parts(place.settings, guard))
        finally:
            guard.close()
            sys.path.remove(str(place.folder))
            sys.modules.pop(MODULE, None)


@pytest.fixture(scope="module")
def scene(programs) -> Iterator[Scene]:
    with opened(programs) as scene:
        yield scene


@pytest.mark.parametrize("which", ["now", "later"])
def test_the_facts_of_the_configuration_count(scene, monkeypatch, which):
    module = importlib.import_module(MODULE)
    monkeypatch.setattr(module, "now", getattr(module, which))
    assert scene.ask(amount=500)["decision"] is True
    assert scene.ask(amount=5)["decision"] is False


def test_a_look_up_that_fails_is_no_decision_and_says_nothing_of_itself(scene, monkeypatch):
    module = importlib.import_module(MODULE)
    monkeypatch.setattr(module, "now", module.broken)
    with pytest.raises(RefusedError) as caught:
        scene.ask(amount=500)
    assert (caught.value.status, caught.value.error) == (503, "temporarily_unavailable")
    assert "hunter2" not in str(caught.value)
    assert "facts.failed" in str(caught.value)


def test_a_log_that_can_t_be_written_gives_no_decision(scene, monkeypatch):
    log = scene.parts.ports.log

    def fail(_log: object, _record: object) -> None:
        raise StorageError(f"the log {scene.place.folder} is full", code="storage.full")

    monkeypatch.setattr(type(log), "append", fail)
    with pytest.raises(RefusedError) as caught:
        scene.ask(amount=500)
    assert caught.value.status == 503
    assert str(scene.place.folder) not in str(caught.value)
    monkeypatch.undo()
    assert scene.ask(amount=500)["decision"] is True


def test_a_tool_is_known_by_its_table_alone(scene):
    tools = scene.parts.guard.tools
    spec = tools.described("balance")
    assert (spec.origin, spec.pin_mismatch) == ("bank.tools:balance", None)
    assert tools.described("nothing") is None
    drop = tools.described("drop")
    assert (drop.origin, drop.schema, drop.facts) == ("tools.drop", {}, None)


def test_a_resource_that_names_a_redacted_argument_is_refused(scene):
    tools = scene.parts.guard.tools
    assert tools.described("drop") is not None
    with pytest.raises(ConfigError):
        tools.described("slow")


def test_a_token_that_ends_during_the_request_is_denied_on_record(programs, monkeypatch):
    with opened(programs) as scene:  # of its own: the log's time goes ahead
        ports = scene.parts.ports
        late = datetime.fromtimestamp(time.time(), ports.clock().tzinfo) + timedelta(minutes=6)
        slow = replace(ports, clock=lambda: late)
        runtime = type(scene.parts.guard.runtime)
        monkeypatch.setattr(runtime, "current_ports", lambda _runtime: slow)
        monkeypatch.setattr(type(scene.parts), "now", lambda _parts: ports.clock())
        said = scene.ask(amount=500)
        assert (said["decision"], said["context"]["code"]) == (False, "delegation.expired")
        assert scene.place.verify().problems == ()
        monkeypatch.undo()


def without_principals(text: str) -> str:
    return text.replace('[principals."user:alice"]\nroles = ["customer"]', "")


def test_an_exchange_without_roles_asks_for_the_scope_by_name(programs):
    with pytest.raises(RefusedError) as caught, opened(programs, without_principals):
        pytest.fail("the exchange names no scope, and nothing says what alice may lend")
    assert (caught.value.status, caught.value.error) == (400, "invalid_scope")
    assert "name the scopes in the request" in str(caught.value)
