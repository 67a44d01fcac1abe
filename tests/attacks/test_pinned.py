"""A state says which log it is, and by which keys: it is not believed, where there is an anchor.

Whoever writes into the state alone would otherwise begin another log in its place, of which no
anchor knows anything, and bring keys of his own into the anchor directory with the next rotation.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agentguard import Decision, Denied, VerificationError
from agentguard.domain import config, domain, keystore, rotation, trust_pin
from agentguard.domain.config import Config
from agentguard.domain.verify import examine
from agentguard.guard.embedded import Embedded
from agentguard.guard.guard import Guard
from agentguard.identity.trust import TrustDocument, TrustedKey
from agentguard.policy.function import FunctionEngine
from agentguard.storage import anchor
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import path_in

PASSPHRASE = b"correct horse"


def settings_in(folder: Path, *, state: str = "state", anchored: str = "anchor") -> Config:
    tables = {
        "trust_domain": "acme.example",
        "state": state,
        "anchor": anchored,
        "policy": {"engine": "function", "path": "unused:unused"},
        "agents": {"reader": {"authority": "own"}},
    }
    return config.parse(tables, source="agentguard.toml", base=folder)


def found(settings: Config) -> TrustDocument:
    return domain.found(settings, PASSPHRASE, now=datetime.now(UTC))


def opened(settings: Config) -> Guard:
    home = domain.take_up(settings, PASSPHRASE)
    return Guard(Embedded(settings, FunctionEngine(lambda _d: Decision.allow()), home))


def call(settings: Config) -> None:
    with opened(settings) as guard:
        guard.new_agent("reader").call(guard.tool(name="say")(lambda what: what), "x")


def good(settings: Config, trust: TrustDocument) -> None:
    with_trust = examine(StoredLog.of(settings.state), trust, anchor=settings.anchor)
    assert (with_trust.problems, with_trust.anchored) == ((), settings.anchor is not None)


@pytest.fixture
def settings(tmp_path) -> Config:
    """A domain with a call in its log."""
    made = settings_in(tmp_path)
    found(made)
    call(made)
    return made


def edit(state: Path, **members: object) -> None:
    path = state / "trust.json"
    document = {**json.loads(path.read_bytes()), **members}
    path.write_bytes(json.dumps(document, separators=(",", ":"), sort_keys=True).encode())


def begin_anew(state: Path) -> None:
    """Remove what the log holds: nothing that is signed needs to be made for it."""
    path_in(state).unlink()


def kept(folder: Path | None) -> dict[Path, bytes]:
    assert folder is not None
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("copied", [False, True], ids=["in its place", "a copy elsewhere"])
@pytest.mark.parametrize("strangers", [False, True], ids=["a name", "a name and keys"])
def test_another_name_for_the_log_does_not_switch_the_anchor_off(
    settings, stranger, tmp_path, strangers, copied
):
    if copied:  # with its anchor, which then knows nothing of the place
        elsewhere = tmp_path / "copy"
        for folder in ("state", "anchor"):
            shutil.copytree(tmp_path / folder, elsewhere / folder)
        settings = settings_in(elsewhere)
    trust, before = keystore.load_trust(settings.state), kept(settings.anchor)
    keys = [key.as_json() for key in trust.keys]
    if strangers:
        keys += [TrustedKey(key.use, stranger.public_key, 0).as_json() for key in trust.keys]
    edit(settings.state, log=f"acme.example/log/{'0' * 32}", keys=keys)
    begin_anew(settings.state)
    for attempt in (
        lambda: call(settings),
        lambda: rotation.rotate(settings, PASSPHRASE, "log", now=datetime.now(UTC)),
    ):
        with pytest.raises(VerificationError, match=r"[Rr]estore") as caught:
            attempt()
        assert caught.value.code == "trust.changed"
    assert kept(settings.anchor) == before
    assert not path_in(settings.state).exists()


def test_the_name_that_it_had_opens_it(settings):
    """The twin."""
    trust = keystore.load_trust(settings.state)
    edit(settings.state, log=trust.log)
    call(settings)
    rotation.rotate(settings, PASSPHRASE, "log", now=datetime.now(UTC))
    call(settings)
    good(settings, keystore.load_trust(settings.state))


NAMES = ["LOG", "evil.example/log/LOG", "acme.example/log/../LOG", "x", ""]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_to_the_same_folder_does_not_do(settings, name):
    """Nor one that leads nowhere."""
    log = keystore.load_trust(settings.state).log.rpartition("/")[2]
    edit(settings.state, log=name.replace("LOG", log))
    with pytest.raises(VerificationError) as caught:
        call(settings)
    assert caught.value.code == "trust.changed"


@pytest.mark.parametrize("due", ["keys/log.next", "trust.next"])
def test_what_is_next_is_not_finished_under_another_name(settings, stranger, due):
    trust, before = keystore.load_trust(settings.state), kept(settings.anchor)
    edit(settings.state, log=f"acme.example/log/{'0' * 32}")
    mine = dataclasses.replace(trust.keys[0], key=stranger.public_key)
    next_trust = dataclasses.replace(keystore.load_trust(settings.state), keys=(mine, *trust.keys))
    data = next_trust.dumps() if due == "trust.next" else stranger.to_openssh(PASSPHRASE)
    (settings.state / due).write_bytes(data)
    (settings.state / due).chmod(0o600)
    with pytest.raises(VerificationError) as caught:
        call(settings)
    assert caught.value.code == "trust.changed"
    assert kept(settings.anchor) == before


def test_a_guard_that_runs_denies_as_soon_as_it_looks(settings, clock):
    with opened(settings) as guard:
        agent = guard.new_agent("reader")
        tool = guard.tool(name="say")(lambda what: what)
        trust = keystore.load_trust(settings.state)
        edit(settings.state, log=f"acme.example/log/{'0' * 32}")
        clock.advance(minutes=56)
        with pytest.raises(Denied) as caught:
            agent.call(tool, "x")
        assert caught.value.code == "trust.changed"
        edit(settings.state, log=trust.log)
        agent.call(tool, "x")
    good(settings, trust)


# --- several states -------------------------------------------------------------------------------


def test_several_states_of_one_domain_share_an_anchor(settings, tmp_path):
    second = settings_in(tmp_path, state="second")
    found(second)
    for _ in range(2):
        for each in (settings, second):
            call(each)
            rotation.rotate(each, PASSPHRASE, "log", now=datetime.now(UTC))
    for each in (settings, second):
        good(each, keystore.load_trust(each.state))


def test_another_state_of_the_domain_is_not_taken_for_this_one(settings, tmp_path):
    """It is whole, known to the anchor, and under the same passphrase: it has another place."""
    second = settings_in(tmp_path, state="second")
    found(second)
    call(second)
    shutil.move(settings.state, tmp_path / "aside")
    shutil.copytree(second.state, settings.state)
    with pytest.raises(VerificationError, match="agentguard trust pin") as caught:
        call(settings)
    assert caught.value.code == "trust.changed"
    assert settings.anchor is not None
    trust_pin.keep(settings.anchor, settings.state, keystore.load_trust(settings.state))
    call(settings)  # who has put it there says so
    shutil.rmtree(settings.state)
    shutil.move(tmp_path / "aside", settings.state)
    call(settings)  # and the first one still belongs there


def test_a_state_that_another_one_follows_in_its_place(settings):
    """Founding is explicit: two hosts whose paths are the same may share an anchor directory."""
    first = settings.state.rename(settings.base / "first")
    found(settings)
    call(settings)
    good(settings, keystore.load_trust(settings.state))
    call(dataclasses.replace(settings, state=first))
    settings.state.rename(settings.base / "second")
    first.rename(settings.state)
    call(settings)


# --- on purpose -----------------------------------------------------------------------------------


def test_state_and_anchor_may_be_moved(settings):
    trust = keystore.load_trust(settings.state)
    moved = settings_in(settings.base, state="elsewhere", anchored="witness")
    settings.state.rename(moved.state)
    settings.anchor.rename(moved.anchor)
    call(moved)
    good(moved, trust)


def test_a_new_anchor_is_not_believed_until_somebody_says_so(settings):
    trust = keystore.load_trust(settings.state)
    anew = settings_in(settings.base, anchored="witness")
    assert anew.anchor is not None
    for lost in ("everything", "trust.json"):
        if lost == "trust.json":
            shutil.copytree(settings.anchor, anew.anchor)
            anchor.trust_path(anew.anchor, trust.log).unlink()
        with pytest.raises(VerificationError, match="agentguard trust pin") as caught:
            call(anew)
        assert caught.value.code == "trust.changed"
    trust_pin.keep(anew.anchor, anew.state, trust)
    call(anew)
    good(anew, trust)


def test_what_is_pinned_is_not_replaced(settings, stranger):
    trust, before = keystore.load_trust(settings.state), kept(settings.anchor)
    mine = TrustedKey("log", stranger.public_key, 0)
    changed = dataclasses.replace(trust, keys=(*trust.keys, mine))
    with pytest.raises(VerificationError) as caught:
        trust_pin.keep(settings.anchor, settings.state, changed)
    assert caught.value.code == "trust.changed"
    assert kept(settings.anchor) == before


def test_a_state_without_an_anchor_goes_on_and_gets_one_later(tmp_path):
    alone = settings_in(tmp_path, anchored="")
    trust = found(alone)
    call(alone)
    rotation.rotate(alone, PASSPHRASE, "log", now=datetime.now(UTC))
    call(alone)
    trust = keystore.load_trust(alone.state)
    good(alone, trust)
    later = settings_in(tmp_path)
    with pytest.raises(VerificationError):
        call(later)
    assert later.anchor is not None
    trust_pin.keep(later.anchor, later.state, trust)
    call(later)
    good(later, trust)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_folders_of_other_users_in_the_anchor_directory_are_passed_over(settings):
    (settings.anchor / "theirs").mkdir(mode=0)
    settings = dataclasses.replace(settings, state=settings.state.rename(settings.base / "moved"))
    call(settings)
