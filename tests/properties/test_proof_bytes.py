"""No byte of a proved request can be another: whatever is changed, the request is refused."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from proof_scene import BODY, URL, ProofScene, Sent, check, refused
from tool_servers import listed

from agentguard.errors import ProofError
from agentguard.proof.headers import decode_chain, encode_chain
from agentguard.proof.target import Target

PRINTABLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)


@pytest.fixture(scope="module")
def proved(tmp_path_factory):
    """A receiver whose clock stands, and a request; the receiver refuses nothing as used."""
    scene = ProofScene(tmp_path_factory.mktemp("proof"))
    sent = Sent(listed(scene.prove()))
    at = time.time()
    scene.clock = lambda: at
    receiver = scene.new_receiver()
    forgetful: Any = Forgetful()
    receiver._known = receiver._known._replace(used=forgetful, chains=forgetful)
    with scene.guard:
        assert check(receiver, sent).principal == "user:alice"
        yield receiver, sent


class Forgetful:
    """A store that finds no proof used, so that one request can be verified again and again."""

    def use(self, _jkt, _jti, **_times):
        """Accept every proof."""

    def chain(self, _sha256):
        return None


@given(data=st.data())
def test_another_character_of_a_token_is_refused(proved, data):
    receiver, sent = proved
    place = data.draw(st.integers(0, 2))
    name, value = sent.headers[place]
    assert name != "Agentguard-Chain"  # whose packing has more than one form; see below
    index = data.draw(st.integers(0, len(value) - 1))
    character = data.draw(PRINTABLE)
    assume(value[index] != character)
    changed = value[:index] + character + value[index + 1 :]
    assume(changed.lower() != value.lower() or index > len("Bearer"))
    headers = [*sent.headers]
    headers[place] = (name, changed)
    refused(receiver, sent._replace(headers=headers))
    check(receiver, sent)


@given(index=st.integers(0, len(BODY) - 1), byte=st.integers(0, 255))
def test_another_byte_of_the_body_is_refused(proved, index, byte):
    receiver, sent = proved
    assume(BODY[index] != byte)
    changed = BODY[:index] + bytes([byte]) + BODY[index + 1 :]
    assert refused(receiver, sent._replace(body=changed)) == "proof.request"


@given(text=st.text(PRINTABLE, max_size=20))
def test_another_path_or_query_is_refused(proved, text):
    receiver, sent = proved
    if text != sent.query:
        refused(receiver, sent._replace(query=text))
    path = f"/{text}"
    if path != sent.path:
        refused(receiver, sent._replace(path=path))


@given(data=st.data())
def test_a_chain_that_was_changed_is_refused_or_is_the_same_chain(proved, data):
    receiver, sent = proved
    named = dict(sent.headers)
    packed = named["Agentguard-Chain"]
    index = data.draw(st.integers(0, len(packed) - 1))
    character = data.draw(PRINTABLE)
    named["Agentguard-Chain"] = packed[:index] + character + packed[index + 1 :]
    try:
        caller = check(receiver, sent._replace(headers=[*named.items()]))
    except ProofError:
        return
    assert caller == check(receiver, sent)


@given(chain=st.binary(max_size=5000))
def test_a_packed_chain_is_unpacked_as_it_was(chain):
    assert decode_chain(encode_chain(chain)) == chain


@given(text=st.text(st.characters(max_codepoint=0x17F), max_size=40))
def test_a_url_has_one_reading(text):
    """What the parser accepts is written again as it was, but for the host's letters and port."""
    for url in (text, f"https://payments.example/{text}", f"{URL}{text}"):
        try:
            target = Target.parse(url)
        except ProofError:
            continue
        again = target.uri + (f"?{target.query}" if target.query else "")
        assert Target.parse(again) == target
        assert target.path.startswith("/")
        assert not set(target.uri) & set("\\ #@?") - {"@"}
        assert "/../" not in f"{target.path}/"
