"""Masks: whatever stands around a secret, none of its spellings is left, and all else is kept."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote, quote_plus

from hypothesis import example, given
from hypothesis import strategies as st

from agentguard.call.arguments import encode_result
from agentguard.call.masking import Masks
from agentguard.signing.keys import Secret

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SECRET = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=6, max_size=40).filter(
    lambda text: len(text.strip().encode()) >= 6
)
SPELLINGS = [
    lambda text: text,
    json.dumps,
    lambda text: json.dumps(text, ensure_ascii=False),
    lambda text: text.encode().hex(),
    lambda text: text.encode().hex().upper(),
    lambda text: quote(text, safe=""),
    quote_plus,
    *(
        lambda text, pad=pad, encode=encode: encode(b"=" * pad + text.encode() + b"end").decode()
        for pad in range(3)
        for encode in (base64.b64encode, base64.urlsafe_b64encode)
    ),
]
LEAF = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT


def nested(leaf: Any) -> Any:
    return st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(TEXT, inner, max_size=3)
            | st.tuples(inner, inner)
        ),
        max_leaves=6,
    )


@given(secret=SECRET, spell=st.sampled_from(SPELLINGS), before=TEXT, after=TEXT, data=st.data())
@example(secret="abc def/ghi", spell=quote_plus, before="", after="", data=None)
@example(secret='a"b\\c/d', spell=SPELLINGS[1], before="", after="", data=None)
def test_no_spelling_of_a_secret_is_left(secret, spell, before, after, data):
    spelled = spell(secret)
    holding = st.just(f"{before}{spelled}{after}")
    value = data.draw(nested(holding)) if data is not None else [spelled]
    encoded = encode_result(value)
    assert encoded is not None
    masks = Masks([Secret(secret.encode())])
    masked = masks.masked(encoded)
    holds = spelled in json.dumps(value, ensure_ascii=False) or _texts(value, spelled)
    assert (b"$redacted" in masked) is bool(holds)
    assert not masks.find(masked)
    assert masks.find_in(encoded) is bool(holds)
    assert not any(text for text in _texts(json.loads(masked), spelled))


def _texts(value: Any, spelled: str) -> list[str]:
    """Return the texts in a value, keys among them, in which a spelling stands."""
    match value:
        case str():
            return [value] if spelled in value else []
        case dict():
            return [text for pair in value.items() for text in _texts(list(pair), spelled)]
        case list() | tuple():
            return [text for item in value for text in _texts(item, spelled)]
    return []


@given(value=nested(LEAF), secret=SECRET)
def test_data_without_the_secret_are_kept_as_they_are(value, secret):
    unlike = f"\U0001f511{secret}\U0001f511"  # what no drawn text has
    encoded = encode_result(value)
    assert encoded is not None
    masks = Masks([Secret(unlike.encode())])
    assert masks.masked(encoded) == encoded
    assert not masks.find_in(encoded)
    assert "\U0001f511" not in repr(masks)


@given(secrets=st.lists(SECRET, min_size=2, max_size=4, unique=True))
def test_each_of_several_secrets_is_masked(secrets):
    masks = Masks([Secret(one.encode()) for one in secrets])
    encoded = encode_result({"all": secrets, "one": secrets[-1], "clear": 1})
    assert encoded is not None
    mark = {"$redacted": True}
    assert json.loads(masks.masked(encoded)) == {
        "all": [mark] * len(secrets),
        "one": mark,
        "clear": 1,
    }
