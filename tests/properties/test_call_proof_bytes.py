"""Nothing that a call proof is bound to can be another: the receiver refuses every change."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
from call_scene import AUDIENCE, METHOD, PARAMS, CallScene, check, refused
from hypothesis import assume, given
from hypothesis import strategies as st

from agentguard.errors import ProofError
from agentguard.proof.call_proof import MEMBERS, UNBOUND, params_digest
from agentguard.signing import canonical

TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def proved(tmp_path_factory):
    """A receiver whose clock stands, and a request; the receiver refuses nothing as used."""
    scene = CallScene(tmp_path_factory.mktemp("calls"))
    at = time.time()
    with scene.guard:
        params = scene.prove()
        scene.clock = lambda: at
        receiver = scene.new_receiver()
        forgetful: Any = Forgetful()
        receiver._known = receiver._known._replace(used=forgetful, chains=forgetful)
        check(receiver, params)
        yield receiver, params


class Forgetful:
    """A store that finds no proof used, so that one request can be verified again and again."""

    def use(self, _jkt, _jti, **_times):
        """Accept every proof."""


@given(name=st.sampled_from(["name", "arguments", "requestState", "new"]) | TEXTS, value=VALUES)
def test_another_parameter_is_refused(proved, name, value):
    receiver, params = proved
    assume(name != "_meta")
    assume(name not in params or canonical.dumps(params[name]) != canonical.dumps(value))
    refused(receiver, {**params, name: value})


@given(name=st.sampled_from(sorted(PARAMS["arguments"])) | TEXTS, value=VALUES)
def test_another_argument_is_refused(proved, name, value):
    receiver, params = proved
    old = params["arguments"]
    assume(name not in old or canonical.dumps(old[name]) != canonical.dumps(value))
    changed = {**params, "arguments": {**old, name: value}}
    assert refused(receiver, changed) == "proof.request"


@given(name=st.sampled_from(["fastmcp", *sorted(UNBOUND)]) | TEXTS, value=VALUES)
def test_another_member_of_meta_is_refused_unless_the_member_is_unbound(proved, name, value):
    receiver, params = proved
    old = params["_meta"]
    assume(name not in old or canonical.dumps(old[name]) != canonical.dumps(value))
    changed = {**params, "_meta": {**old, name: value}}
    if name in UNBOUND - MEMBERS:
        check(receiver, changed)
    else:
        refused(receiver, changed)


@given(data=st.data())
def test_another_character_of_a_member_is_refused(proved, data):
    receiver, params = proved
    name = data.draw(st.sampled_from(sorted(MEMBERS)))
    value = params["_meta"][name]
    index = data.draw(st.integers(0, len(value) - 1))
    character = data.draw(st.characters(min_codepoint=0x21, max_codepoint=0x7E))
    assume(value[index] != character)
    changed = copy.deepcopy(params)
    changed["_meta"][name] = value[:index] + character + value[index + 1 :]
    try:
        caller = check(receiver, changed)
    except ProofError:
        return
    # the packing of a chain has more than one form; the chain is the same
    assert name == "dev.agentguard/chain"
    assert caller == check(receiver, params)


@given(method=TEXTS)
def test_another_method_is_refused(proved, method):
    receiver, params = proved
    assume(method != METHOD)
    refused(receiver, params, method)


@given(params=st.dictionaries(TEXTS, VALUES, max_size=4))
def test_the_digest_is_that_of_the_value_and_not_of_its_spelling(params):
    assume("_meta" not in params)
    again = dict(reversed(params.items()))
    assert params_digest(again) == params_digest(params)
    assert params_digest({**params, "_meta": {"traceparent": AUDIENCE}}) == params_digest(params)
    assert params_digest({**params, "_meta": {"other": 1}}) != params_digest(params)
