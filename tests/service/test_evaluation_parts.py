"""Evaluations of the token service in this process, where a test holds its parts in its hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from login_provider import Provider
from served_place import PASSPHRASE, founded_place
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
TABLES = """
[paths]
path = "files"

[tools.balance]
facts = "evaluation_facts:WHICH"
origin = "bank.tools:balance"
schema = "SCHEMA"
"""


class Scene:
    """The parts of a service in this process, and an instance that asks."""

    def __init__(self, parts: ServiceParts, provider: Provider) -> None:
        self.parts, self.key = parts, Key()
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

    def ask(self, tool: str = "balance", **arguments: Any) -> dict[str, Any]:
        """Ask for an evaluation with the access token; return the answer."""
        body = {
            "subject": {"type": "agent", "id": self.uri},
            "action": {"name": tool},
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


@pytest.fixture
def opened(programs, monkeypatch) -> Iterator[Any]:
    """Open a service whose tool has the look-up of facts with a name."""
    guards: list[Any] = []
    with founded_place(programs, CONFIG.replace("URL", URL).replace("LISTEN", "127.0.0.1:1")) as at:
        (at.folder / "evaluation_facts.py").write_text(FACTS, encoding="utf-8")
        (at.folder / "files").mkdir()
        monkeypatch.syspath_prepend(str(at.folder))
        toml = at.folder / "agentguard.toml"
        text = toml.read_text(encoding="utf-8")

        def open_scene(which: str = "now", more: str = "") -> Scene:
            tables = TABLES.replace("WHICH", which).replace("SCHEMA", "0" * 64)
            toml.write_text(text + tables + more, encoding="utf-8")
            guard = open_embedded(at.settings, lambda: PASSPHRASE)
            guards.append(guard)
            return Scene(open_parts(at.settings, guard), Provider(at.folder))

        yield SimpleNamespace(scene=open_scene, place=at)
        for guard in guards:
            guard.close()


@pytest.mark.parametrize("which", ["now", "later"])
def test_the_facts_of_the_configuration_count(opened, which):
    scene = opened.scene(which)
    assert scene.ask(amount=500)["decision"] is True
    assert scene.ask(amount=5)["decision"] is False


def test_a_look_up_that_fails_is_no_decision_and_says_nothing_of_itself(opened):
    with pytest.raises(RefusedError) as caught:
        opened.scene("broken").ask(amount=500)
    assert (caught.value.status, caught.value.error) == (503, "temporarily_unavailable")
    assert "hunter2" not in str(caught.value)
    assert "facts.failed" in str(caught.value)


def test_a_log_that_can_t_be_written_gives_no_decision(opened, monkeypatch):
    scene = opened.scene()
    log = scene.parts.ports.log

    def fail(_record: object) -> None:
        raise StorageError(f"the log {opened.place.folder} is full", code="storage.full")

    monkeypatch.setattr(type(log), "append", lambda _log, record: fail(record))
    with pytest.raises(RefusedError) as caught:
        scene.ask(amount=500)
    assert caught.value.status == 503
    assert str(opened.place.folder) not in str(caught.value)
    monkeypatch.undo()
    assert scene.ask(amount=500)["decision"] is True


def test_a_tool_is_known_by_its_table_alone(opened):
    tools = opened.scene().parts.guard.tools
    spec = tools.described("balance", ["amount", "path"])
    assert (spec.origin, spec.pin_mismatch) == ("bank.tools:balance", None)
    assert tools.described("nothing", []) is None
    drop = tools.described("drop", ["path"])
    assert (drop.origin, drop.schema) == ("tools.drop", {})
    assert drop.facts is not None  # the place of a path
    assert tools.described("drop", []).facts is None


def test_a_token_that_ends_during_the_request_is_denied_on_record(opened, monkeypatch):
    scene = opened.scene()
    ports = scene.parts.ports
    late = datetime.fromtimestamp(time.time(), ports.clock().tzinfo) + timedelta(minutes=6)
    slow = replace(ports, clock=lambda: late)
    monkeypatch.setattr(type(scene.parts.guard.runtime), "current_ports", lambda _runtime: slow)
    monkeypatch.setattr(type(scene.parts), "now", lambda _parts: ports.clock())
    said = scene.ask(amount=500)
    assert (said["decision"], said["context"]["code"]) == (False, "delegation.expired")
    assert opened.place.verify().problems == ()


def test_a_resource_that_names_a_redacted_argument_is_refused(opened):
    tools = opened.scene(more='[redact]\nslow = ["/args/text"]\n').parts.guard.tools
    assert tools.described("drop", ["text"]) is not None
    with pytest.raises(ConfigError):
        tools.described("slow", ["text"])
