"""A secret in the keyring: the backend is one of the library's own kind, in memory."""

from __future__ import annotations

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.backends import fail

from agentguard import ConfigError, Decision, Guard, SecretError, secret
from agentguard.domain import config

VALUE = "hunter2-4711-\u20ac"


class Backend(KeyringBackend):
    """A keyring in memory; ``error`` is raised in the place of an answer."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()
        self.passwords: dict[tuple[str, str], str] = {}
        self.error: Exception | None = None

    def get_password(self, service: str, username: str) -> str | None:
        if self.error is not None:
            raise self.error
        return self.passwords.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.passwords[service, username] = password


@pytest.fixture
def backend():
    before, backend = keyring.get_keyring(), Backend()
    keyring.set_keyring(backend)
    yield backend
    keyring.set_keyring(before)


def fetched(reference):
    tables = {"secrets": {"T": {"keyring": reference, "tools": ["deploy"]}}}
    with Guard.ephemeral(lambda _: Decision.allow(), config=tables) as guard:
        return guard.new_agent("a").call(guard.tool(name="deploy")(lambda: secret("T")))


def test_a_password_is_read(backend):
    keyring.set_password("forge.example", "deploy", VALUE)
    keyring.set_password("https://forge.example/team", "deploy", "another")
    assert fetched("forge.example/deploy") == VALUE
    assert fetched("https://forge.example/team/deploy") == "another"


def test_a_password_that_is_not_there_is_named(backend):
    with pytest.raises(SecretError, match=r"run keyring set forge\.example deploy") as caught:
        fetched("forge.example/deploy")
    assert caught.value.code == "secret.failed"
    keyring.set_password("forge.example", "deploy", "")
    with pytest.raises(SecretError, match="is empty"):
        fetched("forge.example/deploy")


def test_the_error_of_a_backend_is_not_quoted(backend):
    backend.error = RuntimeError(f"locked, and holds {VALUE}")
    with pytest.raises(SecretError, match=r"the keyring failed \(RuntimeError\)") as caught:
        fetched("forge.example/deploy")
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_machine_without_a_keyring_is_named(backend):
    keyring.set_keyring(fail.Keyring())
    with pytest.raises(SecretError, match=r"NoKeyringError\): unlock it, or set one up"):
        fetched("forge.example/deploy")


@pytest.mark.parametrize("reference", ["", "forge", "/", "/deploy", "forge/", 5])
def test_a_reference_has_a_service_and_a_user(reference, tmp_path):
    tables = {"secrets": {"T": {"keyring": reference, "tools": ["deploy"]}}}
    with pytest.raises(ConfigError, match=r"secrets\.T\.keyring: expected"):
        config.parse(tables, source="agentguard.toml", base=tmp_path)
    tables["secrets"]["T"]["keyring"] = "forge.example/deploy"
    parsed = config.parse(tables, source="agentguard.toml", base=tmp_path)
    assert parsed.secrets["T"].keyring == ("forge.example", "deploy")
