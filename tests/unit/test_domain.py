"""Founding a trust domain and taking it up: all or nothing, and nothing that exists is touched."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from agentguard import ConfigError, StorageError
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.announcements import ConfigEntry
from agentguard.call.invocation import timestamp
from agentguard.domain import config, domain, keystore, memory
from agentguard.domain.config.settings import KeysConfig
from agentguard.domain.keystore import PASSPHRASE_VARIABLE
from agentguard.domain.passphrase import passphrase_of
from agentguard.domain.verify import examine
from agentguard.errors import KeyMaterialError
from agentguard.storage import files
from agentguard.store.anchor import Anchor
from agentguard.store.reader import StoredLog

PASSPHRASE = b"correct horse"
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def settings_in(folder):
    tables = {"trust_domain": "acme.example", "state": "state", "anchor": "anchor"}
    return config.parse(tables, source="agentguard.toml", base=folder)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with a domain that was founded."""
    folder = tmp_path_factory.mktemp("original")
    domain.found(settings_in(folder), PASSPHRASE, now=NOW)
    return folder


@pytest.fixture
def settings(tmp_path, original):
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return settings_in(tmp_path)


def report(settings, trust=None, anchor=...):
    reader = StoredLog.of(settings.state)
    try:
        trust = trust or keystore.load_trust(settings.state)
        return examine(reader, trust, anchor=settings.anchor if anchor is ... else anchor)
    finally:
        reader.close()


def test_a_new_domain_is_whole_private_and_verifies(settings):
    names = {str(path.relative_to(settings.state)) for path in settings.state.rglob("*")}
    assert {"keys/issuer", "keys/log", "keys/admin", "trust.json", "log.sqlite"} <= names
    assert settings.state.stat().st_mode & 0o777 == 0o700
    trust = keystore.load_trust(settings.state)
    assert trust.trust_domain == "acme.example"
    assert sorted(key.use for key in trust.keys) == ["admin", "issuer", "log"]
    assert len({key.key.raw for key in trust.keys}) == 3
    reader = StoredLog.of(settings.state)
    kinds = [parse_entry(body).kind for _index, body in reader.entries()]
    reader.close()
    assert kinds == ["key", "key", "key"]
    found = report(settings)
    assert (found.ok, found.anchored, found.entries) == (True, True, 3)


def test_the_trust_document_is_also_kept_with_the_anchor(settings):
    (kept,) = settings.anchor.glob("*/trust.json")
    assert kept.read_bytes() == (settings.state / "trust.json").read_bytes()


@pytest.mark.parametrize("existing", ["file in it", "is a file", "another domain"])
def test_what_exists_is_never_overwritten(settings, tmp_path, existing):
    state = settings.state
    if existing != "another domain":
        shutil.rmtree(state)
        if existing == "is a file":
            state.write_text("mine", encoding="utf-8")
        else:
            state.mkdir()
            (state / "mine").write_text("mine", encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(StorageError) as caught:
        domain.found(settings, PASSPHRASE, now=NOW)
    assert caught.value.code == "storage.exists"
    assert contents(tmp_path) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_empty_state_is_taken(tmp_path):
    (tmp_path / "state").mkdir(mode=0o777)
    domain.found(settings_in(tmp_path), PASSPHRASE, now=NOW)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_two_who_found_one_domain_leave_one_whole_domain(tmp_path, monkeypatch):
    """The second must not tidy away what the first has made."""
    settings = settings_in(tmp_path)
    settle = Anchor.settle
    inner: list[Any] = []

    def meanwhile(anchor):
        if not inner:
            inner.append(None)
            monkeypatch.setattr(Anchor, "settle", settle)
            try:
                inner.append(domain.found(settings, PASSPHRASE, now=NOW))
            except StorageError as error:
                inner.append(error)
        settle(anchor)

    monkeypatch.setattr(Anchor, "settle", meanwhile)
    outcomes: list[Any] = []
    try:
        outcomes.append(domain.found(settings, PASSPHRASE, now=NOW))
    except StorageError as error:
        outcomes.append(error)
    outcomes.append(inner[1])
    errors = [outcome for outcome in outcomes if isinstance(outcome, StorageError)]
    assert [error.code for error in errors] == ["storage.exists"]
    (trust,) = [outcome for outcome in outcomes if not isinstance(outcome, StorageError)]
    assert keystore.load_trust(settings.state) == trust
    domain.take_up(settings, PASSPHRASE).open_log(NOW).close()
    assert report(settings).ok


@pytest.mark.parametrize("broken", ["anchor", "interrupt"])
def test_a_founding_that_fails_leaves_nothing_in_the_way(tmp_path, monkeypatch, broken):
    settings = settings_in(tmp_path)
    if broken == "anchor":
        (tmp_path / "file").write_text("x", encoding="utf-8")
        failing = dataclasses.replace(settings, anchor=tmp_path / "file" / "anchor")
        expected: type[BaseException] = StorageError
    else:
        failing = settings
        expected = KeyboardInterrupt

        def interrupted(*_args):
            raise KeyboardInterrupt

        monkeypatch.setattr(files, "write_new", interrupted)
    with pytest.raises(expected):
        domain.found(failing, PASSPHRASE, now=NOW)
    monkeypatch.undo()
    domain.found(settings, PASSPHRASE, now=NOW)
    assert report(settings).ok


def test_a_domain_is_not_founded_without_a_passphrase(tmp_path):
    with pytest.raises(KeyMaterialError) as caught:
        domain.found(settings_in(tmp_path), b"", now=NOW)
    assert caught.value.code == "key.passphrase"
    assert not (tmp_path / "state" / "log.sqlite").exists()


# --- taking it up ---------------------------------------------------------------------------------


def test_a_domain_is_taken_up_and_given_back(settings):
    for _ in range(2):
        home = domain.take_up(settings, PASSPHRASE)
        assert home.trust.trust_domain == "acme.example"
        home.open_log(NOW).close()
    found = report(settings)
    assert (found.ok, found.anchored, found.entries) == (True, True, 3)


def test_who_comes_second_writes_the_same_log(settings):
    home = domain.take_up(settings, PASSPHRASE)
    with closing(home.open_log(NOW)) as first, closing(home.open_log(NOW)) as second:
        at = timestamp(datetime.now(UTC))
        places = [log.append(ConfigEntry.new(b"{}", at=at)) for log in (first, second, first)]
    assert [place.index for place in places] == [3, 4, 5]
    found = report(settings)
    assert (found.ok, found.anchored, found.entries) == (True, True, 6)


def test_another_domains_configuration_is_a_mistake(settings):
    other = dataclasses.replace(settings, trust_domain="evil.example")
    with pytest.raises(ConfigError, match=r"trust_domain: expected 'acme\.example'"):
        domain.take_up(other, PASSPHRASE)
    other = dataclasses.replace(settings, trust_domain=config.NO_DOMAIN)
    with pytest.raises(ConfigError, match=r"was founded, got none$"):
        domain.take_up(other, PASSPHRASE)


@pytest.mark.parametrize("use", ["issuer", "log"])
def test_a_key_that_the_trust_document_does_not_name_is_refused(settings, tmp_path, use):
    """Somebody puts a key of his own, under the same passphrase, in the place of ours."""
    other = settings_in(tmp_path / "other")
    domain.found(other, PASSPHRASE, now=NOW)
    shutil.copy(other.state / "keys" / use, settings.state / "keys" / use)
    with pytest.raises((KeyMaterialError, StorageError)):
        domain.take_up(settings, PASSPHRASE)


@pytest.mark.parametrize("name", ["keys/issuer", "keys/log"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_key_that_others_can_read_is_refused(settings, name, mode):
    (settings.state / name).chmod(mode)
    with pytest.raises(KeyMaterialError, match="chmod 600") as caught:
        domain.take_up(settings, PASSPHRASE)
    assert caught.value.code == "key.exposed"


def test_a_state_that_does_not_exist_says_what_to_do(tmp_path):
    with pytest.raises(StorageError, match="agentguard init") as caught:
        domain.take_up(settings_in(tmp_path), PASSPHRASE)
    assert caught.value.code == "storage.missing"


# --- the passphrase -------------------------------------------------------------------------------


def test_the_environment_comes_before_the_file(settings, tmp_path, monkeypatch):
    secret = tmp_path / "passphrase"
    secret.write_bytes(b" from the file \n")
    secret.chmod(0o600)
    settings = dataclasses.replace(settings, keys=KeysConfig(secret))
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    assert passphrase_of(settings).reveal() == b"from the file"
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "from the environment")
    assert passphrase_of(settings).reveal() == b"from the environment"


@pytest.mark.parametrize("kind", ["missing", "empty", "blank", "directory", "exposed", "none"])
def test_a_passphrase_file_that_is_none_is_an_error_of_ours(settings, tmp_path, monkeypatch, kind):
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    path = tmp_path / "passphrase"
    match kind:
        case "empty" | "blank" | "exposed":
            path.write_bytes({"empty": b"", "blank": b" \n", "exposed": b"x"}[kind])
            path.chmod(0o644 if kind == "exposed" else 0o600)
        case "directory":
            path.mkdir(mode=0o700)
    settings = dataclasses.replace(settings, keys=KeysConfig(None if kind == "none" else path))
    with pytest.raises(KeyMaterialError) as caught:
        passphrase_of(settings)
    assert caught.value.code in {"key.passphrase", "key.exposed", "key.unreadable"}
    assert "AGENTGUARD_PASSPHRASE" in str(caught.value) or str(path) in str(caught.value)
    if kind == "missing":
        assert "restore it, correct [keys] passphrase_file in " in str(caught.value)


# --- examining ------------------------------------------------------------------------------------


def test_without_an_anchor_a_log_is_consistent_and_not_anchored(settings):
    found = report(settings, anchor=None)
    assert (found.ok, found.anchored) == (True, False)


def test_an_anchor_folder_without_this_log_anchors_nothing(settings, tmp_path):
    found = report(settings, anchor=tmp_path / "elsewhere")
    assert (found.ok, found.anchored) == (True, False)


def test_another_trust_document_believes_nothing(settings, tmp_path):
    other = settings_in(tmp_path / "other")
    trust = domain.found(other, PASSPHRASE, now=NOW)
    found = report(settings, trust)
    assert not found.ok
    assert not found.anchored


def test_progress_is_told(settings):
    reader = StoredLog.of(settings.state)
    told: list[int] = []
    examine(reader, keystore.load_trust(settings.state), progress=told.append)
    reader.close()
    assert told == [1, 2, 3]


def test_an_ephemeral_domain_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = memory.new_domain("acme.example", now=NOW)
    log = home.open_log(NOW)
    assert examine(home.read(), home.trust).ok
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_an_ephemeral_log_is_opened_once(tmp_path):
    """As for a fork, which has its own copy of the memory: two histories would begin in one."""
    home = memory.new_domain("acme.example", now=NOW)
    home.open_log(NOW)
    with pytest.raises(StorageError, match="does not outlive a fork") as caught:
        home.open_log(NOW)
    assert caught.value.code == "storage.closed"
