"""No private key anywhere: what prints, copies, serialises, logs or stores never holds one.

Each needle is the seed of a real key of a real guard, in every spelling that it could take.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import logging
import pickle
import traceback

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agentguard import AgentguardError, Denied, KeyMaterialError
from agentguard.keys import Ed25519Signer


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
    home = guard._home
    return agent, [agent._instance.actor.signer, home.issuer, guard._line.log._signer]


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
        agent._instance.actor,
        agent._instance,
        guard._line,
        guard._home,
        guard._line.log,
        *keys,
    ]
    for value in values:
        assert clean(repr(value) + str(value) + f"{value}" + format(value), keys)
        assert clean(repr(getattr(value, "__dict__", {})), keys)


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy, dataclasses.asdict])
def test_no_object_gives_its_key_to_a_copy_or_a_serialiser(guard, signers, take):
    agent, keys = signers
    for value in (*keys, agent, agent._instance.actor, guard, guard._home):
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
        lambda: pickle.dumps(agent._instance.actor.signer),
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
    good = guard._line.entropy

    def entropy(size):
        drawn.append(good(size))
        return drawn[-1]

    guard._line = dataclasses.replace(guard._line, entropy=entropy)
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
    guard._line.log.close()  # the next outcome can't be recorded, which is logged
    with pytest.raises(Denied):
        agent.call(tool, 2)
    logging.getLogger("agentguard").error("with %r", agent._instance.actor)
    assert caplog.text
    assert clean(caplog.text, keys)


def test_no_entry_and_no_attachment_holds_a_key(guard, signers, ran):
    agent, keys = signers
    agent.call(guard.tool(ran.append), {"some": "argument"})
    reader = guard.reader()
    entries = list(reader.stored(0))
    assert len(entries) > 5
    for stored in entries:
        assert clean(stored.body, keys)
        for attachment in stored.attachments:
            assert clean(b"".join([attachment.salt, attachment.data]), keys)
    for note in reader.checkpoints(0):
        assert clean(note, keys)
    assert clean(guard.trust.dumps(), keys)


def test_no_file_of_a_domain_holds_a_key_in_the_clear(place, ran):
    guard = place.open()
    agent = guard.new_agent("reader")
    agent.call(guard.tool(ran.append), "x")
    home = guard._home
    keys = [agent._instance.actor.signer, home.issuer, guard._line.log._signer]

    def files():
        return [path for path in place.config.base.rglob("*") if path.is_file()]

    assert all(clean(path.read_bytes(), keys) for path in files())  # while it is open
    guard.close()
    names = {path.name for path in files()}
    assert {"issuer", "log", "admin", "trust.json", "0.sqlite", "registry.json"} <= names
    assert all(clean(path.read_bytes(), keys) for path in files())
    for name in ("issuer", "log", "admin"):
        data = (place.config.state / "keys" / name).read_bytes()
        assert data.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
        with pytest.raises(KeyMaterialError) as caught:
            Ed25519Signer.from_openssh(data, b"not the passphrase")
        assert caught.value.code == "key.passphrase"


def test_arguments_in_an_error_are_not_what_a_stranger_reads(guard, ran):
    """A refusal goes to a model and into the log: values of arguments stay out of it."""
    tool = guard.tool(ran.append)
    with pytest.raises(Denied) as caught:
        guard.new_agent("a").call(tool, {"password": object(), "other": "hunter2"})
    assert "hunter2" not in str(caught.value)
