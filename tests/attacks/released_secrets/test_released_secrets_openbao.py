"""A secret in a real OpenBao: what a running call gets, and what the error says where it gets none.

``test_released_secrets_vault.py`` has the servers that mean harm. A machine that has no OpenBao
skips this, and CI, where CI=true, fails it.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from openbao import OpenBao, OwnOpenBao, token_file
from secret_calls import NAME

from agentguard import Decision, Guard, SecretError, secret

VALUE = 'hunter2-<&>"\\\u2028-4711-\u20ac'
OLD = "the value before: 0815"


@dataclass
class Kept:
    """A secret in a store of its own, and a token that may read this secret alone."""

    server: OpenBao
    path: str
    token: str
    folder: Path
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "url": self.server.url,
            "path": self.path,
            "field": "token",
            "token_file": str(token_file(self.folder, self.token)),
            **self.more,
        }


def keep(server, folder, namespace=""):
    """Put the secret into a new store."""
    path = f"{server.mount(namespace)}/data/team/deploy"
    server.put(path, token=VALUE, number=5)
    return Kept(server, path, server.token_for(path), folder)


@pytest.fixture
def kept(openbao, tmp_path) -> Kept:
    folder = tmp_path / "vault-client"
    folder.mkdir()
    return keep(openbao, folder)


def opened(settings):
    tables = {"secrets": {NAME: {"vault": settings, "tools": ["deploy"]}}}
    return Guard.ephemeral(lambda _: Decision.allow(), config=tables)


def fetched(settings):
    with opened(settings) as guard:
        return guard.new_agent("a").call(guard.tool(name="deploy")(lambda: secret(NAME)))


def failed(settings, match, *tokens):
    """The tool gets an error that names the remedy and holds neither a value nor a token."""
    with pytest.raises(SecretError, match=match) as caught:
        fetched(settings)
    assert caught.value.code == "secret.failed"
    error, frames = caught.value, caught.value.__traceback__
    assert frames is not None
    below = frames.tb_next  # the frame of this function has the tokens
    report = traceback.TracebackException(type(error), error, below, capture_locals=True)
    text = "".join(report.format())
    assert "SecretError" in text
    kept_from_it = (VALUE, json.dumps(VALUE)[1:-1], OLD, *tokens)
    assert not any(form in text for form in kept_from_it)


def test_a_field_is_read_with_a_token_of_a_file_or_of_the_environment(kept, monkeypatch):
    assert fetched(kept.settings) == VALUE
    monkeypatch.setenv("AGENTGUARD_TEST_VAULT_TOKEN", kept.token)
    told = {name: value for name, value in kept.settings.items() if name != "token_file"}
    assert fetched({**told, "token_env": "AGENTGUARD_TEST_VAULT_TOKEN"}) == VALUE


def test_the_longest_secret_comes_whole_and_no_longer_one_comes(kept):
    longest = "line\n\u20ac" * (64 * 1024 // 8)
    kept.server.put(kept.path, token=longest)
    assert fetched(kept.settings) == longest
    kept.server.put(kept.path, token=f"{longest}.")
    failed(kept.settings, "more than 65536 bytes: keep only the secret there", kept.token)
    kept.server.put(kept.path, token=VALUE, others="." * (1 << 18))
    failed(kept.settings, "answers with more than 262144 bytes", kept.token)


def test_one_lookup_is_one_use_of_the_token(kept):
    kept.token = kept.server.token_for(kept.path, uses=1)
    settings = kept.settings
    assert fetched(settings) == VALUE
    failed(settings, r"403.*renew the token", kept.token)


@pytest.mark.parametrize(
    ("name", "match"),
    [("none", "without a field none: correct field"), ("number", "field number that is no text")],
)
def test_a_field_that_is_no_secret_is_named(kept, name, match):
    failed({**kept.settings, "field": name}, match, kept.token)


def test_a_token_reads_what_its_policy_allows_and_nothing_else(kept):
    other = kept.path.replace("deploy", "other")
    kept.server.put(other, token=OLD)
    assert fetched(kept.settings) == VALUE
    failed({**kept.settings, "path": other}, r"403.*a policy with read on path", kept.token)
    kept.token = kept.server.token_for(other)
    assert fetched({**kept.settings, "path": other}) == OLD
    failed(kept.settings, "403", kept.token)


def test_a_secret_that_is_not_there_is_named(kept):
    missing = kept.path.replace("deploy", "none")
    kept.token = kept.server.token_for(missing, kept.path)
    failed({**kept.settings, "path": missing}, r"has no such secret.*404.*check path", kept.token)
    assert fetched(kept.settings) == VALUE


def test_a_store_of_version_1_is_named(kept):
    path = f"{kept.server.mount(version=1)}/data/deploy"
    kept.server.ask("POST", path, {"token": VALUE})
    kept.token = kept.server.token_for(path)
    match = "does not answer as a key-value store of version 2 does: check path"
    failed({**kept.settings, "path": path}, match, kept.token)


def test_a_token_that_is_none_or_was_revoked_reads_nothing(kept):
    settings, token = kept.settings, kept.token
    token_file(kept.folder, "s.of-nobody")
    failed(settings, r"403.*renew the token", "s.of-nobody")
    token_file(kept.folder, token)
    assert fetched(settings) == VALUE
    kept.server.revoke(token)
    failed(settings, r"403.*renew the token", token)


@pytest.mark.parametrize("how", ["deleted", "destroyed"])
def test_a_newest_version_that_is_gone_is_no_secret(kept, how):
    """An older version is still there, and is not taken in its place."""
    kept.server.put(kept.path, token=OLD)
    if how == "deleted":
        kept.server.ask("DELETE", kept.path)
    else:
        destroyed = kept.path.replace("/data/", "/destroy/")
        kept.server.ask("PUT", destroyed, {"versions": [2]})
    failed(kept.settings, r"its newest version is deleted.*404", kept.token)
    kept.server.put(kept.path, token=VALUE)
    assert fetched(kept.settings) == VALUE


@pytest.mark.parametrize("token_is_of", ["the namespace", "the root"])
def test_a_namespace_stands_in_front_of_the_mount(openbao, tmp_path, token_is_of):
    team = openbao.namespace()
    kept = keep(openbao, tmp_path, team)
    within = kept.path.removeprefix(team)
    if token_is_of == "the namespace":  # the policy there names the path as seen from there
        kept.token = openbao.token_for(within, namespace=team)
    assert fetched(kept.settings) == VALUE
    failed({**kept.settings, "path": within}, "40[34]", kept.token)
    other = openbao.namespace()
    failed({**kept.settings, "path": f"{other}{within}"}, "40[34]", kept.token)


def test_a_changed_value_and_a_changed_token_are_taken_at_the_next_call(kept):
    with opened(kept.settings) as guard:
        agent, tool = guard.new_agent("a"), guard.tool(name="deploy")(lambda: secret(NAME))
        assert agent.call(tool) == VALUE
        kept.server.put(kept.path, token=OLD)
        assert agent.call(tool) == OLD
        kept.server.revoke(kept.token)
        with pytest.raises(SecretError, match="403"):
            agent.call(tool)
        token_file(kept.folder, kept.server.token_for(kept.path))
        assert agent.call(tool) == OLD


@pytest.fixture
def own(openbao_program, tmp_path) -> Iterator[OwnOpenBao]:
    folder = tmp_path / "openbao"
    folder.mkdir()
    server = OwnOpenBao(openbao_program, folder)
    yield server
    server.stop()


def test_a_server_that_is_sealed_or_down_releases_nothing(own, tmp_path):
    """The server of this test alone, over TLS."""
    kept = keep(own, tmp_path)
    told = kept.settings
    assert fetched({**told, "ca": str(own.ca)}) == VALUE
    failed(told, r"not trusted \(TLS\): let ca name", kept.token)
    own.ask("PUT", "sys/seal")
    failed({**told, "ca": str(own.ca)}, r"503.*unseal the server", kept.token)
    ca = tmp_path / "ca.pem"
    ca.write_bytes(own.ca.read_bytes())
    own.stop()
    failed({**told, "ca": str(ca)}, "can't be reached: start the server", kept.token)


def test_a_released_value_is_on_record_and_not_in_the_log(scene, kept):
    scene.file.unlink()
    scene.more = {"secrets": {NAME: {"vault": kept.settings, "tools": ["deploy"]}}}
    with scene.open() as guard:
        agent, other = guard.new_agent("reader"), guard.tool(name="other")(lambda: secret(NAME))
        assert agent.call(guard.tool(name="deploy")(lambda: f"with {secret(NAME)}")) == (
            f"with {VALUE}"
        )
        with pytest.raises(SecretError) as caught:
            agent.call(other)
        assert caught.value.code == "secret.refused"
    (release,) = scene.entries()
    assert release.members["name"] == NAME
    assert scene.holds(VALUE) == []
    assert scene.holds(kept.token) == [Path(kept.settings["token_file"]).name]
    assert scene.verify().ok
