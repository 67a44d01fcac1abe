"""URLs in proofs: what is within an audience, and what protects a request."""

from __future__ import annotations

import pytest

from agentguard.errors import ProofError
from agentguard.proof.bound_request import BoundRequest
from agentguard.proof.target import Target, audience_target


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://a.example", ("https://a.example", "/", "")),
        ("https://A.Example:443/x?y=1", ("https://a.example", "/x", "y=1")),
        ("http://127.0.0.1:80/", ("http://127.0.0.1", "/", "")),
        ("http://[::1]:8000/x?", ("http://[::1]:8000", "/x", "")),
        ("https://a.example/x%20y/(z)@1?q=/?[]", ("https://a.example", "/x%20y/(z)@1", "q=/?[]")),
        ("https://a.example/x%2Fy%2ez/...;..", ("https://a.example", "/x%2Fy%2ez/...;..", "")),
        ("https://a.example/x..%3b/y", ("https://a.example", "/x..%3b/y", "")),
    ],
)
def test_a_url_is_read(url, target):
    assert Target.parse(url) == target


@pytest.mark.parametrize(
    "url",
    [
        None,
        b"https://a.example",
        "",
        "a.example",
        "HTTPS://a.example",
        "ftp://a.example",
        "https://",
        "https://a.example:port/",
        "https://a.example:123456/",
        "https://user@a.example/",
        "https://a.example#x",
        "https://a.example/x y",
        "https://a.example/\u00e9",
        "https://b\u00fcro.example/",
        "https://a.example\\x",
        "https://a.example/x\\y",
        "https://a.example/./x",
        "https://a.example/x/..",
        "https://a.example/%2e%2E/x",
        "https://a.example/x/%2E",
        "https://a.example/v1/..%2Fadmin",
        "https://a.example/v1%2f..%2fadmin",
        "https://a.example/v1/..%5Cadmin",
        "https://a.example/v1/..;/admin",
        "https://a.example/v1/..%3b/admin",
        "https://a.example/v1/%2e.%3Bx=1/admin",
        "https://a.example/v1/.%2e;x=1/admin",
        "https://a.example/x%00",
        "https://a.example/%zz",
        "https://a.example/%",
        "https://a.example/\n",
        "https://a.example/x\n",
        "https://a.example/" + "x" * 8192,
    ],
)
def test_a_url_with_two_readings_is_refused(url):
    with pytest.raises(ProofError) as caught:
        Target.parse(url)
    assert caught.value.code == "proof.malformed"


@pytest.mark.parametrize(
    ("base", "url", "is_within"),
    [
        ("https://a.example", "https://a.example/x", True),
        ("https://a.example/", "https://a.example", True),
        ("https://a.example/v1", "https://a.example/v1", True),
        ("https://a.example/v1/", "https://a.example/v1/x?y", True),
        ("https://a.example/v1", "https://a.example/v10", False),
        ("https://a.example/v1", "https://a.example/v1/x%2Fy", True),
        ("https://a.example/v1", "https://a.example/v1%2Fx", False),
        ("https://a.example/v1", "https://a.example/v1;x=1/y", False),
        ("https://a.example/v1", "https://a.example/", False),
        ("https://a.example", "https://a.example:444/", False),
        ("https://a.example", "http://a.example/", False),
        ("https://a.example", "https://a.example.evil/", False),
        ("https://a.example", "https://b.a.example/", False),
    ],
)
def test_an_audience_has_the_paths_below(base, url, is_within):
    assert Target.parse(url).is_within(Target.parse(base)) is is_within


def test_only_https_and_the_loopback_protect_a_request():
    for name in ("https://a.example", "http://localhost", "http://127.8.9.1:80", "http://[::1]"):
        assert audience_target(name) == Target.parse(name)
    for name in (
        "http://a.example",
        "http://localhost.a.example",
        "http://127.0.0.1.a.example",
        "http://127.0.0.256",
        "http://127.999.0.1",
        "http://127.0.0.01",
        "http://[::2]",
        "http://0.0.0.0",
        "spiffe://acme.example",
        "payments",
        "https://a.example?x=1",
    ):
        assert audience_target(name) is None


@pytest.mark.parametrize("method", [None, "", "get", "GET ", "G\u00c4T", "GET\n", "A" * 33, 5])
def test_a_method_is_capital_letters(method):
    with pytest.raises(ProofError):
        BoundRequest.of(method, "https://a.example", b"")
    assert BoundRequest.of("GET", "https://a.example", b"").method == "GET"
