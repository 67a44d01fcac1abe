"""No private key anywhere: what prints, copies, serialises, logs or stores never holds one.

Each needle is the seed of a real key of a real guard, in every spelling that it could take; or the
passphrase of such keys, which no frame of a traceback holds.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import logging
import pickle
import shutil
import traceback
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    ssh,
)

from agentguard import AgentguardError, Denied, Guard
from agentguard.domain import administration, config, rotation
from agentguard.errors import KeyMaterialError
from agentguard.signing.keys import Ed25519Signer, Secret


def spellings(signer: Ed25519Signer) -> list[bytes]:
    """The private part of a key, as any encoding would write it."""
    key: Ed25519PrivateKey = signer._Ed25519Signer__key  # type: ignore[attr-defined]
    seed = key.private_bytes_raw()
    spelt = [
        seed,
        seed[::-1],
        seed.hex().encode(),
        seed.hex().upper().encode(),
        repr(seed).encode()[2:-1],
        str(list(seed)).encode()[1:-1],
        str(int.from_bytes(seed, "big")).encode(),
        str(int.from_bytes(seed, "little")).encode(),
    ]
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        # wherever it lies in a longer text, such as a PEM file
        spelt += [encode(bytes(shift) + seed)[4:40] for shift in range(3)]
    return spelt


@pytest.fixture
def signers(guard):
    """All keys of a guard with an agent, and the objects that hold them."""
    agent = guard.new_agent("a")
    home = guard._parts.runtime.domain
    return agent, [
        agent._caller.instance().actor.signer,
        home.issuer,
        guard._parts.runtime._ports.log._store._signer,
    ]


def clean(text: bytes | str, keys: list[Ed25519Signer]) -> bool:
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    unwrapped = data.replace(b"\n", b"")
    needles = [needle for key in keys for needle in spellings(key)]
    return not any(needle in data or needle in unwrapped for needle in needles)


def test_the_search_finds_a_key_in_every_spelling(signers):
    _agent, keys = signers
    assert clean(b"nothing here", keys)
    for key in keys:
        for needle in spellings(key):
            assert not clean(b"before " + needle + b" after", keys)
    key = keys[0]._Ed25519Signer__key
    for form in (PrivateFormat.PKCS8, PrivateFormat.OpenSSH):
        assert not clean(key.private_bytes(Encoding.PEM, form, NoEncryption()), keys)


def test_no_object_prints_its_key(guard, signers):
    agent, keys = signers
    values = [
        guard,
        agent,
        agent._caller.instance().actor,
        agent._caller.instance(),
        guard._parts.runtime._ports,
        guard._parts.runtime.domain,
        guard._parts.runtime._ports.log,
        *keys,
    ]
    for value in values:
        assert clean(repr(value) + str(value) + f"{value}" + format(value), keys)
        assert clean(repr(getattr(value, "__dict__", {})), keys)


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy, dataclasses.asdict])
def test_no_object_gives_its_key_to_a_copy_or_a_serialiser(guard, signers, take):
    agent, keys = signers
    for value in (*keys, agent, agent._caller.instance().actor, guard, guard._parts.runtime.domain):
        try:
            taken = take(value)
        except (TypeError, AgentguardError, AttributeError, pickle.PicklingError) as error:
            refusal = str(error)
            assert clean(refusal, keys)
        else:
            assert clean(taken if isinstance(taken, bytes) else repr(taken), keys)


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_signer_refuses_to_be_copied_and_a_public_key_does_not(signers, take):
    _agent, keys = signers
    for key in keys:
        with pytest.raises(KeyMaterialError) as caught:
            take(key)
        assert caught.value.code == "key.private"
        take(key.public_key)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(KeyMaterialError):
            pickle.dumps(keys[0], protocol)


def test_a_signer_is_no_json(signers):
    _agent, keys = signers
    with pytest.raises(TypeError):
        json.dumps(keys[0])
    assert clean(json.dumps(keys[0], default=repr), keys)
    assert clean(json.dumps(keys[0], default=str), keys)


def test_no_traceback_with_locals_shows_a_key(guard, signers, ran):
    agent, keys = signers

    @guard.tool
    def fail():
        raise RuntimeError("inside the tool")

    tool = guard.tool(ran.append)
    errors: list[BaseException] = []
    for call in (
        lambda: agent.call(fail),
        lambda: agent.call(tool, unknown=1),
        lambda: pickle.dumps(agent._caller.instance().actor.signer),
        lambda: Ed25519Signer.from_openssh(b"no key", b"passphrase"),
        lambda: (guard.close(), agent.call(tool, 1)),
    ):
        try:
            call()
        except (RuntimeError, AgentguardError) as error:
            errors.append(error)
    assert len(errors) == 5
    for raised in errors:
        lines = traceback.TracebackException.from_exception(raised, capture_locals=True).format()
        assert clean("".join(lines), keys)


def test_a_broken_start_does_not_show_the_new_key_in_its_traceback(guard, signers, monkeypatch):
    """An agent whose credential can't be had: its key exists by then."""
    _agent, keys = signers
    drawn = []
    good = guard._parts.runtime._ports.entropy

    def entropy(size):
        drawn.append(good(size))
        return drawn[-1]

    guard._parts.runtime._ports = dataclasses.replace(guard._parts.runtime._ports, entropy=entropy)
    monkeypatch.setattr("agentguard.identity.credential.issue", _broken)
    with pytest.raises(RuntimeError) as caught:
        guard.new_agent("b")
    lines = traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    new = [Ed25519Signer.from_seed(seed) for seed in drawn if len(seed) == 32]
    text = "".join(line for line in lines if __file__ not in line)  # this test holds it itself
    assert new
    assert clean(text, [*keys, *new])


def _broken(*_args, **_kwargs):
    raise RuntimeError("the issuer is away")


def test_nothing_is_logged_that_holds_a_key(guard, signers, ran, caplog):
    agent, keys = signers
    caplog.set_level(logging.DEBUG)
    tool = guard.tool(ran.append)
    agent.call(tool, 1)
    guard._parts.runtime._ports.log.close()  # the next outcome can't be recorded, which is logged
    with pytest.raises(Denied):
        agent.call(tool, 2)
    logging.getLogger("agentguard").error("with %r", agent._caller.instance().actor)
    assert caplog.text
    assert clean(caplog.text, keys)


def test_no_entry_and_no_attachment_holds_a_key(guard, signers, ran):
    agent, keys = signers
    agent.call(guard.tool(ran.append), {"some": "argument"})
    reader = guard.reader()
    entries = list(reader.stored())
    assert len(entries) > 5
    for stored in entries:
        assert clean(stored.body, keys)
        for attachment in stored.attachments:
            assert clean(b"".join([attachment.salt, attachment.data]), keys)
    assert clean(reader.head(), keys)
    assert clean(guard.trust.dumps(), keys)


def test_no_file_of_a_domain_holds_a_key_in_the_clear(place, ran):
    guard = place.open()
    agent = guard.new_agent("reader")
    agent.call(guard.tool(ran.append), "x")
    home, instance = guard._parts.runtime.domain, agent._caller.instance()
    keys = [instance.actor.signer, home.issuer, guard._parts.runtime._ports.log._store._signer]

    def files():
        return [path for path in place.config.base.rglob("*") if path.is_file()]

    assert all(clean(path.read_bytes(), keys) for path in files())  # while it is open
    guard.close()
    names = {path.name for path in files()}
    assert {"issuer", "log", "admin", "trust.json", "log.sqlite", "head"} <= names
    assert all(clean(path.read_bytes(), keys) for path in files())
    for name in ("issuer", "log", "admin"):
        data = (place.config.state / "keys" / name).read_bytes()
        assert data.startswith(b"-----BEGIN OPENSSH ")
        with pytest.raises(KeyMaterialError) as caught:
            Ed25519Signer.from_openssh(data, b"not the passphrase")
        assert caught.value.code == "key.passphrase"


# --- the passphrase -------------------------------------------------------------------------------

PASSPHRASE = b"correct horse battery staple"  # the template's
WRONG = b"correct horse battery stable"


@pytest.fixture
def durable(tmp_path, template):
    """A founded domain with its configuration, whose keys open with the passphrase."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    text = f"""
        trust_domain = "acme.example"
        state = "{tmp_path}/state"
        anchor = "{tmp_path}/anchor"
        [keys]
        passphrase_file = "{tmp_path}/passphrase"
        [policy]
        engine = "function"
        path = "operator:not_"
        """
    (tmp_path / "agentguard.toml").write_text(text)
    (tmp_path / "passphrase").write_bytes(PASSPHRASE + b"\n")
    (tmp_path / "passphrase").chmod(0o600)
    return tmp_path


def open_with_bytes(folder, passphrase):
    return Guard.open(folder / "agentguard.toml", passphrase=passphrase)


def open_with_a_function(folder, passphrase):
    return Guard.open(folder / "agentguard.toml", passphrase=lambda: passphrase)


def open_with_a_file(folder, passphrase):
    (folder / "passphrase").write_bytes(passphrase)
    return Guard.open(folder / "agentguard.toml")


def open_with_the_environment(folder, passphrase):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTGUARD_PASSPHRASE", passphrase.decode())
        return Guard.open(folder / "agentguard.toml")


def rotate(folder, passphrase):
    settings = config.load(folder / "agentguard.toml")
    done = rotation.rotate(settings, passphrase, "admin", now=datetime.now(UTC))
    if done.unfinished is not None:
        raise done.unfinished


def resolve(folder, passphrase):
    settings, now = config.load(folder / "agentguard.toml"), datetime.now(UTC)
    return administration.resolve(settings, passphrase, "0" * 32, ran=True, note="n", now=now)


WAYS = [
    open_with_bytes,
    open_with_a_function,
    open_with_a_file,
    open_with_the_environment,
    rotate,
    resolve,
]


def held_in_frames(error: BaseException, needle: bytes) -> list[str]:
    """Where the frames of an error, and of what it came of, hold the passphrase."""
    found: list[str] = []
    known: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in known:
            continue
        known.add(id(one))
        waiting += [one.__cause__, one.__context__]
        if needle.decode() in f"{one!r} {one}":
            found.append(f"the error {one!r}")
        for frame, line in traceback.walk_tb(one.__traceback__):
            code = frame.f_code
            if code.co_filename == __file__:
                continue  # this test knows it
            for name, value in frame.f_locals.items():
                if needle.decode() in repr(value):
                    found.append(f"{code.co_filename}:{line} {code.co_name}: {name}")
    return found


def damaged_trust(folder):
    (folder / "state" / "trust.json").write_bytes(b"{")


def other_trust(folder):
    (anchored,) = (folder / "anchor").rglob("trust.json")
    anchored.write_bytes(anchored.read_bytes().replace(b"acme.example", b"acme.invalid"))


def damaged_key(folder):
    path = folder / "state" / "keys" / "log"
    path.write_bytes(path.read_bytes()[:120])


def another_key(folder):
    keys = folder / "state" / "keys"
    (keys / "log").write_bytes((keys / "issuer").read_bytes())


def damaged_log(folder):
    path = folder / "state" / "log.sqlite"
    path.write_bytes(path.read_bytes()[:100] + bytes(1000))


def no_keys(folder):
    shutil.rmtree(folder / "state" / "keys")


DAMAGES = [damaged_trust, other_trust, damaged_key, another_key, damaged_log, no_keys]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_frame_of_an_error_holds_the_right_passphrase(durable, damage, way):
    damage(durable)
    with pytest.raises(AgentguardError) as caught:
        way(durable, PASSPHRASE)
    assert held_in_frames(caught.value, PASSPHRASE) == []


@pytest.mark.parametrize("way", WAYS)
def test_no_frame_of_an_error_holds_a_wrong_passphrase(durable, way):
    with pytest.raises(KeyMaterialError) as caught:
        way(durable, WRONG)
    assert caught.value.code == "key.passphrase"
    assert held_in_frames(caught.value, WRONG) == []


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_while_a_key_is_decrypted_holds_none_either(durable, monkeypatch, way):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ssh, "_init_cipher", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        way(durable, PASSPHRASE)
    assert held_in_frames(caught.value, PASSPHRASE) == []


@pytest.mark.parametrize("way", WAYS[:4])
def test_with_the_right_passphrase_and_nothing_amiss_it_opens(durable, way):
    way(durable, PASSPHRASE).close()


def test_the_search_finds_a_passphrase_in_a_frame_and_in_what_the_error_came_of():
    with pytest.raises(ValueError, match="Not OpenSSH") as caught:
        ssh.load_ssh_private_key(b"bad", PASSPHRASE)  # cryptography's own, not stripped
    (where,) = held_in_frames(caught.value, PASSPHRASE)
    assert where.endswith("load_ssh_private_key: password")
    outer = RuntimeError("outer")
    outer.__context__ = caught.value
    assert held_in_frames(outer, PASSPHRASE) == [where]


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_passphrase_is_not_printed_copied_or_serialised(take):
    secret = Secret(PASSPHRASE)
    assert PASSPHRASE.decode() not in f"{secret} {secret!r} {vars(type(secret))}"
    with pytest.raises(KeyMaterialError) as caught:
        take(secret)
    assert caught.value.code == "key.private"
    with pytest.raises(TypeError):
        json.dumps(secret)
    assert secret.reveal() == PASSPHRASE


def test_a_function_that_answers_with_no_bytes_is_said_without_its_answer(durable):
    with pytest.raises(KeyMaterialError, match="must be bytes") as caught:
        open_with_a_function(durable, PASSPHRASE.decode())
    assert held_in_frames(caught.value, PASSPHRASE) == []


def test_arguments_in_an_error_are_not_what_a_stranger_reads(guard, ran):
    """A refusal goes to a model and into the log: values of arguments stay out of it."""
    tool = guard.tool(ran.append)
    with pytest.raises(Denied) as caught:
        guard.new_agent("a").call(tool, {"password": object(), "other": "hunter2"})
    assert "hunter2" not in str(caught.value)
