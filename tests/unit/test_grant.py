"""One hop of a delegation by itself: what it may say, who has signed it, and how it is read."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from agentguard.delegation import grant
from agentguard.delegation.grant import MAX_CALLS, MAX_DEPTH, TYPE, Grant
from agentguard.errors import DecodeError, DelegationError, VerificationError
from agentguard.identity.principal import require_principal
from agentguard.signing import canonical, jws

NOW = 1_800_000_000
LATEST = 253_402_300_799


@pytest.fixture
def good(world, signer):
    """A first hop, as an issuer grants it."""
    return replace(
        world.begin("repo:read", "pr:write", task_id="task-1", max_calls=5).root,
        key_id=signer.key_id,
    )


def signed(claims: Any, signer, **header):
    return jws.sign(claims, signer, typ=TYPE, header={"kid": signer.key_id, **header})


def refused(token, key, kind=DecodeError):
    with pytest.raises(kind) as caught:
        grant.verify(token, key)
    return caught.value.code


# --- a grant and its signature --------------------------------------------------------------------


def test_what_was_signed_verifies_to_the_same_value(good, signer):
    hop = grant.sign(good, signer)
    verified = grant.verify(hop.token, signer.public_key)
    assert verified == hop
    assert verified.grant == good == grant.read(hop.token)
    assert grant.key_id(hop.token) == signer.key_id
    assert verified.signing_input == hop.token.rpartition(".")[0].encode()
    assert verified.digest == hashlib.sha256(verified.signing_input).hexdigest()


@pytest.mark.parametrize(("scopes", "is_kept"), [(10, True), (1000, False)])
def test_what_takes_much_memory_is_not_kept(good, signer, scopes, is_kept):
    """A grant is kept for the next look; whoever signs hops decides how long their claims are."""
    long = replace(good, scope=tuple(sorted(f"s{number}" for number in range(scopes))))
    token = grant.sign(long, signer).token
    first, second = (grant.verify(token, signer.public_key).grant for _ in range(2))
    assert (first is second) is is_kept
    assert first == second == long


def test_a_kept_grant_does_not_stand_for_its_signature(good, signer, stranger):
    token = grant.sign(good, signer).token
    assert grant.read(token) == grant.verify(token, signer.public_key).grant
    forged = f"{token.rpartition('.')[0]}.{grant.sign(good, stranger).token.rpartition('.')[2]}"
    assert grant.read(forged) == good
    assert refused(forged, signer.public_key, VerificationError) == "signature.invalid"


def test_its_claims_have_the_names_of_the_standards(good, signer):
    parsed = jws.parse(grant.sign(good, signer).token)
    assert parsed.header == {"alg": "EdDSA", "typ": "ag-hop+jwt", "kid": signer.key_id}
    assert parsed.claims() == {
        "iss": "spiffe://acme.example",
        "sub": "user:alice",
        "client_id": "service:ci",
        "cnf": {"jkt": signer.key_id},
        "scope": "pr:write repo:read",
        "aud": ["spiffe://acme.example"],
        "iat": NOW,
        "exp": NOW + 3600,
        "jti": good.jti,
        "txn": "task-1",
        "depth": 1,
        "max_depth": 8,
        "max_calls": 5,
        "par": None,
        "assurance": "application",
        "asserted_by": "issuer",
    }


def test_an_empty_scope_is_written_and_read_as_nothing(good, signer):
    hop = grant.sign(replace(good, scope=()), signer)
    assert jws.parse(hop.token).claims()["scope"] == ""
    assert grant.verify(hop.token, signer.public_key).grant.scope == ()


@pytest.mark.parametrize("header", [{"kid": "another"}, {"kid": 5}, {"kid": None}, {"kid": ["x"]}])
def test_its_header_names_the_key_that_signed_it(good, signer, header):
    token = jws.sign(good.claims(), signer, typ=TYPE, header=header)
    assert refused(token, signer.public_key, VerificationError) == "hop.key"
    without = jws.sign(good.claims(), signer, typ=TYPE)
    assert refused(without, signer.public_key, VerificationError) == "hop.key"


def test_the_key_id_of_a_token_without_one(good, signer):
    for token in (
        jws.sign(good.claims(), signer, typ=TYPE),
        jws.sign(good.claims(), signer, typ=TYPE, header={"kid": 5}),
    ):
        with pytest.raises(DecodeError) as caught:
            grant.key_id(token)
        assert caught.value.code == "hop.malformed"


def test_another_key_and_another_type_are_refused(good, signer, stranger):
    token = grant.sign(good, signer).token
    assert refused(token, stranger.public_key, VerificationError) == "signature.invalid"
    for typ in ("at+jwt", "wit+jwt", "JWT", None):
        other = jws.sign(good.claims(), signer, typ=typ, header={"kid": signer.key_id})
        assert refused(other, signer.public_key, VerificationError) == "jws.type"
        assert grant.read(other) == good  # reading looks at nothing but the claims


# --- what it may say ------------------------------------------------------------------------------

SUBJECT_TOKEN: dict[str, Any] = {
    "iss": "https://login.example",
    "sub": "f3b1",
    "sha256": "0" * 64,
    "jti": "t-1",
    "sid": None,
    "auth_time": NOW - 60,
    "acr": "1",
    "roles": ["reader", "writer"],
}

MALFORMED: dict[str, dict[str, Any]] = {
    "iss is no text": {"iss": 5},
    "iss is empty": {"iss": ""},
    "iss with a space": {"iss": "spiffe://acme.example x"},
    "sub is null": {"sub": None},
    "sub is empty": {"sub": ""},
    "sub with NUL": {"sub": "user:alice\0"},
    "sub with a line feed": {"sub": "user:alice\n"},
    "sub in another alphabet": {"sub": "user:\u0430lice"},
    "sub in full width": {"sub": "user:\uff41lice"},
    "sub with a joiner": {"sub": "user:al\u200dice"},
    "sub is an agent's name": {"sub": "agent:reviewer"},
    "sub is an agent's name in capitals": {"sub": "AGENT:reviewer"},
    "sub is a URI": {"sub": "spiffe://acme.example/agent/x/y"},
    "sub is too long": {"sub": "user:" + "u" * 256},
    "sub has no kind": {"sub": "alice"},
    "sub has a capital": {"sub": "user:Alice"},
    "client_id is a list": {"client_id": ["service:ci"]},
    "client_id with a quote of another kind": {"client_id": "service:\u201dci"},
    "cnf is a thumbprint": {"cnf": "x" * 43},
    "cnf is empty": {"cnf": {}},
    "cnf has more": {"cnf": {"jkt": "x" * 43, "jwk": {}}},
    "cnf.jkt is short": {"cnf": {"jkt": "x" * 42}},
    "cnf.jkt is long": {"cnf": {"jkt": "x" * 44}},
    "cnf.jkt in another alphabet": {"cnf": {"jkt": "+" * 43}},
    "scope is a list": {"scope": ["a"]},
    "scope is null": {"scope": None},
    "scope is not sorted": {"scope": "b a"},
    "scope twice": {"scope": "a a"},
    "scope with two spaces": {"scope": "a  b"},
    "scope begins with a space": {"scope": " a"},
    "scope ends with a space": {"scope": "a "},
    "scope with a tab": {"scope": "a\tb"},
    "scope with a quotation mark": {"scope": '"a"'},
    "scope with a backslash": {"scope": "a\\b"},
    "scope with NUL": {"scope": "a\0"},
    "scope in another alphabet": {"scope": "rep\u043e:read"},
    "scope is too long": {"scope": "a" * 257},
    "aud is a text": {"aud": "spiffe://acme.example"},
    "aud is empty": {"aud": []},
    "aud holds a number": {"aud": ["a", 5]},
    "aud is not sorted": {"aud": ["b", "a"]},
    "aud twice": {"aud": ["a", "a"]},
    "aud with a space": {"aud": ["a b"]},
    "aud holds nothing": {"aud": [""]},
    "iat is true": {"iat": True},
    "iat is a fraction": {"iat": NOW + 0.5},
    "iat is text": {"iat": str(NOW)},
    "iat is negative": {"iat": -1},
    "iat is huge": {"iat": 1e300},
    "exp is true": {"exp": True},
    "exp is null": {"exp": None},
    "exp is a fraction": {"exp": NOW + 3600.5},
    "exp is iat": {"exp": NOW},
    "exp is before iat": {"exp": NOW - 1},
    "exp is past all time": {"exp": LATEST + 1},
    "exp is huge": {"exp": 1e300},
    "jti is a number": {"jti": 12345678},
    "jti is short": {"jti": "1234567"},
    "jti is long": {"jti": "1" * 129},
    "jti is a path": {"jti": "../../etc/passwd"},
    "jti with NUL": {"jti": "12345678\0"},
    "txn is a number": {"txn": 5},
    "txn is a list": {"txn": []},
    "depth is true": {"depth": True},
    "depth is a fraction": {"depth": 1.5},
    "depth is text": {"depth": "1"},
    "max_depth is null": {"max_depth": None},
    "max_calls is none": {"max_calls": 0},
    "max_calls is negative": {"max_calls": -1},
    "max_calls is true": {"max_calls": True},
    "max_calls is a fraction": {"max_calls": 1.5},
    "max_calls is huge": {"max_calls": 1e300},
    "max_calls is text": {"max_calls": "5"},
    "par is no digest": {"par": "x"},
    "par in capitals": {"par": "A" * 64},
    "par is a number": {"par": 5},
    "assurance is of another kind": {"assurance": "saml"},
    "assurance without the token": {"assurance": "oidc"},
    "a token without the assurance": {"subject_token": SUBJECT_TOKEN},
    "assurance is true": {"assurance": True},
    "asserted by somebody else": {"asserted_by": "me"},
    "asserted by true": {"asserted_by": True},
    "a claim more": {"admin": True},
    "act": {"act": {"sub": "x"}},
    "nbf": {"nbf": NOW},
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_hop_that_says_it_otherwise_is_refused_whoever_has_signed_it(good, signer, change):
    claims = good.claims()
    grant.verify(signed(claims, signer), signer.public_key)  # the twin
    token = signed({**claims, **change}, signer)
    assert refused(token, signer.public_key) == "hop.malformed"
    with pytest.raises(DecodeError) as caught:
        grant.read(token)
    assert caught.value.code == "hop.malformed"


BY_A_TOKEN: dict[str, dict[str, Any]] = {
    "as most providers say it": {},
    "without an id": {"jti": None},
    "with its session": {"sid": "b1946ac9"},
    "without the time of the log-in": {"auth_time": None},
    "logged in at the earliest time": {"auth_time": 0},
    "logged in at the latest time": {"auth_time": LATEST},
    "without a context": {"acr": None},
    "without roles": {"roles": []},
    "with the longest subject": {"sub": "s" * 1024},
    "as an ID-JAG": {"kind": "id-jag"},
}

MALFORMED_TOKENS: dict[str, Any] = {
    "no object": "x",
    "none": None,
    "empty": {},
    **{
        f"{name} is a list": {**SUBJECT_TOKEN, name: ["x"]}
        for name in SUBJECT_TOKEN
        if name != "roles"
    },
    **{f"{name} is true": {**SUBJECT_TOKEN, name: True} for name in SUBJECT_TOKEN},
    "an issuer that is none": {**SUBJECT_TOKEN, "iss": None},
    "an empty issuer": {**SUBJECT_TOKEN, "iss": ""},
    "a subject that is too long": {**SUBJECT_TOKEN, "sub": "s" * 1025},
    "a subject with a line feed": {**SUBJECT_TOKEN, "sub": "s\n"},
    "a subject in another alphabet": {**SUBJECT_TOKEN, "sub": "\u0430lice"},
    "a digest in capitals": {**SUBJECT_TOKEN, "sha256": "A" * 64},
    "a short digest": {**SUBJECT_TOKEN, "sha256": "0" * 63},
    "a log-in in a fraction of a second": {**SUBJECT_TOKEN, "auth_time": 1.5},
    "a log-in before 1970": {**SUBJECT_TOKEN, "auth_time": -1},
    "a log-in past all time": {**SUBJECT_TOKEN, "auth_time": LATEST + 1},
    "roles out of order": {**SUBJECT_TOKEN, "roles": ["writer", "reader"]},
    "a role twice": {**SUBJECT_TOKEN, "roles": ["reader", "reader"]},
    "a role that is a number": {**SUBJECT_TOKEN, "roles": [5]},
    "a member more": {**SUBJECT_TOKEN, "email": "a@acme.example"},
    "another kind": {**SUBJECT_TOKEN, "kind": "access"},
    "a kind that is null": {**SUBJECT_TOKEN, "kind": None},
    "a kind and a member more": {**SUBJECT_TOKEN, "kind": "id-jag", "email": "x"},
}


@pytest.mark.parametrize("change", BY_A_TOKEN.values(), ids=BY_A_TOKEN)
def test_a_first_hop_says_which_token_was_verified(good, signer, change):
    said = {**SUBJECT_TOKEN, **change}
    claims = {**good.claims(), "assurance": "oidc", "subject_token": said}
    read = grant.verify(signed(claims, signer), signer.public_key).grant
    assert read.subject_token is not None
    assert read.subject_token.as_json() == said
    assert read.claims() == claims


@pytest.mark.parametrize("said", MALFORMED_TOKENS.values(), ids=MALFORMED_TOKENS)
def test_a_hop_that_says_otherwise_which_token_was_verified_is_refused(good, signer, said):
    claims = {**good.claims(), "assurance": "oidc", "subject_token": SUBJECT_TOKEN}
    grant.verify(signed(claims, signer), signer.public_key)  # the twin
    token = signed({**claims, "subject_token": said}, signer)
    assert refused(token, signer.public_key) == "hop.malformed"


def test_a_token_of_the_principal_lacks_no_member(good, signer):
    for name in SUBJECT_TOKEN:
        said = {key: value for key, value in SUBJECT_TOKEN.items() if key != name}
        claims = {**good.claims(), "assurance": "oidc", "subject_token": said}
        assert refused(signed(claims, signer), signer.public_key) == "hop.malformed"


def test_a_hop_that_says_less_is_refused(good, signer):
    for claim in good.claims():
        claims = good.claims()
        del claims[claim]
        assert refused(signed(claims, signer), signer.public_key) == "hop.malformed"


def test_claims_that_are_no_object_are_refused(signer):
    for payload in (b"[]", b"null", b"5", b'"x"'):
        token = jws.sign(payload, signer, typ=TYPE, header={"kid": signer.key_id})
        assert refused(token, signer.public_key) == "json.not_object"


AT_THE_LIMITS: dict[str, dict[str, Any]] = {
    "the longest names": {"sub": "user:" + "u" * 255, "client_id": "service:" + "s" * 255},
    "any printable ASCII in a subject": {"sub": "https://idp.example#0|a~!$&'()*+,;=@[]{}\"\\"},
    "a subject that is named like an agent": {"sub": "https://idp.example#agent:all"},
    "the longest scope": {"scope": "a" * 256},
    "all that a scope may hold": {"scope": "!#$%&'()*+,-./0:;<=>?@A[]^_`a{|}~"},
    "the earliest time": {"iat": 0, "exp": 1},
    "the latest time": {"exp": LATEST},
    "the shortest id": {"jti": "A-_45678"},
    "the longest id": {"jti": "1" * 128},
    "the last of all hops": {"depth": MAX_DEPTH, "max_depth": MAX_DEPTH},
    "one call": {"max_calls": 1},
    "the most calls": {"max_calls": MAX_CALLS},
    "any number of calls": {"max_calls": None},
    "no task": {"txn": None},
    "any text as a task": {"txn": "\u65e5\u672c \0"},
    "a parent": {"par": "0" * 64},
    "several that may accept it": {"aud": ["a", "b", "c"]},
}


@pytest.mark.parametrize("change", AT_THE_LIMITS.values(), ids=AT_THE_LIMITS)
def test_what_is_just_within_the_limits(good, signer, change):
    claims: Any = {**good.claims(), **change}
    assert grant.verify(signed(claims, signer), signer.public_key).grant.claims() == claims


@pytest.mark.parametrize(
    ("depth", "max_depth"), [(0, 1), (-1, 1), (2, 1), (1, MAX_DEPTH + 1), (17, 17), (1, 0)]
)
def test_a_depth_past_its_limits(good, signer, depth, max_depth):
    token = signed({**good.claims(), "depth": depth, "max_depth": max_depth}, signer)
    assert refused(token, signer.public_key, VerificationError) == "hop.depth"


# --- scopes and names -----------------------------------------------------------------------------


def test_scopes_are_put_in_order_each_once():
    assert grant.parse_scopes(["b", "a", "b"]) == ("a", "b")
    assert grant.parse_scopes({"x:y"}) == ("x:y",)
    assert grant.parse_scopes(()) == ()


BAD_SCOPES: list[Any] = [
    "repo:read",
    [""],
    ["a b"],
    ["a\t"],
    ["a\n"],
    ["a\0"],
    ['"'],
    ["\\"],
    ["\u043e"],
    ["\ud800"],
    ["a" * 257],
    [5],
    [None],
    [b"a"],
    [["a"]],
    [{}],
    [True],
]


@pytest.mark.parametrize("asked", BAD_SCOPES, ids=ascii)
def test_what_is_no_scope_is_refused(asked):
    with pytest.raises(DelegationError) as caught:
        grant.parse_scopes(asked)
    assert caught.value.code == "scope.malformed"
    assert "repo:read" in str(caught.value)  # it says what one looks like


def test_a_principal_is_a_user_or_a_service():
    for name in ("user:alice", "service:ci", "crew:news", "https://idp.example#42"):
        assert require_principal(name, "principal", DelegationError) == name


BAD_NAMES: list[Any] = [
    "",
    "user alice",
    "user:alice\n",
    "user:alice\0",
    "user:\u0430lice",
    "user:\u212aelvin",
    "\ud800",
    "user:" + "u" * 256,
    "a",
    "agents:all",
    5,
    None,
    b"user:alice",
    ["user:alice"],
    "agent:reviewer",
    "Agent:reviewer",
    "spiffe://acme.example/agent/x/y",
    "SPIFFE://acme.example",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_what_is_no_name_of_a_principal(name):
    with pytest.raises(DelegationError) as caught:
        require_principal(name, "service", DelegationError)
    assert caught.value.code == "principal.malformed"
    assert "service" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "agent"),
    [
        ("spiffe://acme.example/agent/x/y", True),
        ("spiffe://acme.example/agent/x", False),
        ("spiffe://acme.example/agent/x/y/z", False),
        ("spiffe://acme.example/agent//y", False),
        ("spiffe://acme.example", False),
        ("https://acme.example/agent/x/y", False),
        ("agent:x", False),
        ("service:ci", False),
    ],
)
def test_an_agent_is_known_by_the_form_of_its_uri(name, agent):
    assert grant.is_agent(name) is agent


def test_a_grant_can_not_be_changed(good):
    assert isinstance(good, Grant)
    with pytest.raises(AttributeError):
        good.scope = ("root",)  # type: ignore[misc]
    assert canonical.dumps(good.claims())  # it has a canonical form as it is
