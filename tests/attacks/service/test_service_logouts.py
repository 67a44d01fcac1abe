"""Forged, misused and repeated log-out tokens at a token service, each beside an honest one.

Whoever reaches the service may send what he likes to ``/backchannel-logout``: the provider's
signature alone counts. OpenID Connect Back-Channel Logout 1.0, 2.6 and 4.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest
from login_provider import ISSUER, Provider
from logout_scene import PARTNER, Scene, attempt, lent, problems, said, sent
from token_issuer import fresh
from token_service import error_of

from agentguard import AgentguardError
from agentguard.audit.kinds import parse_entry
from agentguard.identity import credential
from agentguard.identity.logout_token import EVENT
from agentguard.service.answers import RefusedError
from agentguard.service.callers import instance_of
from agentguard.service.reading import Request
from agentguard.signing.canonical import b64url_encode, dumps


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def guard(scene):
    with scene.open() as guard:
        yield guard


@pytest.fixture(scope="module")
def parts(scene, guard):
    return scene.parts(guard)


def logouts(guard) -> int:
    """Return the number of log-outs in the log."""
    reader = guard.reader()
    entries = (body for _index, body in reader.entries())
    return [parse_entry(body).kind for body in entries].count("logout")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "for another program": ({"aud": "mail"}, "jwt.audience"),
    "for the audience of users' tokens": ({"aud": "agentguard"}, "jwt.audience"),
    "of an issuer that nobody has named": ({"iss": "https://evil.example"}, "jwt.issuer"),
    "without events": ({"events": None}, "jwt.type"),
    "with another event": ({"events": {"https://x.example/event": {}}}, "jwt.type"),
    "with an event that is no object": ({"events": {EVENT: True}}, "jwt.type"),
    "with events that are a list": ({"events": [EVENT]}, "jwt.type"),
    "with a nonce": ({"nonce": "n"}, "jwt.type"),
    "an access token with events": ({"typ": "Bearer"}, "jwt.type"),
    "an ID token with events": ({"typ": "ID"}, "jwt.type"),
    "of the type at+jwt": ({"header": "at+jwt"}, "jwt.type"),
    "without jti": ({"jti": None}, "jwt.malformed"),
    "without iat": ({"iat": None}, "jwt.malformed"),
    "without sub and sid": ({"sub": None, "sid": None}, "jwt.subject"),
    "with a sid that is a number": ({"sid": 5}, "jwt.malformed"),
    "with a sid of control characters": ({"sid": "a\n"}, "jwt.malformed"),
    "without an end": ({"exp": None}, "jwt.lifetime"),
    "bound to a key": ({"cnf": {"jkt": "x"}}, "jwt.bound"),
}


@pytest.mark.parametrize(("change", "code"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_log_out_token_ends_nothing(scene, guard, parts, change, code):
    user = scene.log_in()
    delegation, before = lent(guard, user.token()), logouts(guard)
    assert said(sent(parts, user.logout_token(**change))) == (400, code)
    assert attempt(guard, delegation) == "ok"
    assert logouts(guard) == before
    assert said(sent(parts, user.logout_token(header="JWT"))) == (200, "")  # the twin
    assert attempt(guard, delegation) == "delegation.logged_out"


def test_an_old_log_out_token_ends_nothing(scene, guard, parts):
    user, now = scene.log_in(), int(time.time())
    delegation = lent(guard, user.token())
    for times in (
        {"exp": now - 60, "iat": now - 180},
        {"exp": now + 60, "iat": now - 2 * 3600},
        {"exp": now + 600, "iat": now + 300},
    ):
        assert said(sent(parts, user.logout_token(**times)))[0] == 400
    assert attempt(guard, delegation) == "ok"
    late = user.logout_token(exp=now + 60, iat=now - 60)  # the twin
    assert said(sent(parts, late)) == (200, "")
    assert attempt(guard, delegation) == "delegation.logged_out"


def test_a_signature_of_anybody_else_ends_nothing(scene, guard, parts, tmp_path):
    user = scene.log_in()
    delegation, good = lent(guard, user.token()), user.logout_token()
    thief = Provider(tmp_path, "thief")
    head, claims, signature = good.split(".")
    plain = jwt.encode(jwt.decode(good, options={"verify_signature": False}), "", "none")
    for forged in (
        thief.logout_token(sub=user.sub, sid=user.sid, aud="chat"),
        f"{head}.{claims}.{thief.logout_token().split('.')[2]}",
        f"{head}.{user.logout_token(sid='x').split('.')[1]}.{signature}",
        plain,
        f"{head}.{claims}.",
        "x",
    ):
        assert said(sent(parts, forged))[0] == 400
        assert attempt(guard, delegation) == "ok"
    assert said(sent(parts, good)) == (200, "")  # the twin
    assert attempt(guard, delegation) == "delegation.logged_out"


def test_a_provider_ends_log_ins_of_its_own_users_alone(scene, guard, parts):
    """The partner's provider names the subject and the session of a user of acme."""
    user = scene.log_in()
    ours = lent(guard, user.token())
    theirs = lent(guard, scene.partner_token(sub=user.sub, sid=user.sid))
    claims = {"sub": user.sub, "sid": user.sid, "jti": "1", "events": {EVENT: {}}, **fresh(60)}
    for issuer, status in ((ISSUER, 400), (PARTNER, 200)):
        assert (
            sent(parts, scene.partner.token({"typ": "logout+jwt"}, iss=issuer, **claims)).status
            == status
        )
        assert attempt(guard, ours) == "ok"
    assert attempt(guard, theirs) == "delegation.logged_out"  # the twin
    assert said(sent(parts, user.logout_token())) == (200, "")
    assert attempt(guard, ours) == "delegation.logged_out"


def test_a_log_out_of_one_kind_of_name_ends_nothing_of_another(scene, guard, parts):
    """A session may be called like a subject of somebody else."""
    user = scene.log_in()
    delegation = lent(guard, user.token())
    for claims in (
        {"sub": user.sid, "sid": None},
        {"sub": None, "sid": user.sub},
        {"sid": "other"},
    ):
        assert said(sent(parts, user.logout_token(**claims))) == (200, "")
        assert attempt(guard, delegation) == "ok"
    assert said(sent(parts, user.logout_token(sub=None))) == (200, "")  # the twin
    assert attempt(guard, delegation) == "delegation.logged_out"


def test_a_repeated_log_out_token_ends_no_later_log_in(scene, guard, parts):
    user, now = scene.log_in(), int(time.time())
    token = user.logout_token(sid=None, iat=now - 20)
    assert said(sent(parts, token)) == (200, "")
    before = logouts(guard)
    later: dict[str, Any] = {"iat": now - 10, "auth_time": now - 10}
    delegation = lent(guard, user.token(**later))
    for _ in range(3):
        assert said(sent(parts, token)) == (200, "")
    assert logouts(guard) == before
    assert attempt(guard, delegation) == "ok"
    assert said(sent(parts, user.logout_token(sid=None, iat=now))) == (200, "")  # the twin
    assert attempt(guard, delegation) == "delegation.logged_out"
    assert problems(guard) == []


def test_two_that_send_one_log_out_token_at_once_leave_one_entry(scene, guard, parts):
    token, before = scene.log_in().logout_token(), logouts(guard)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: said(sent(parts, token)), range(8)))
    assert answers == [(200, "")] * 8
    assert logouts(guard) == before + 1


def test_a_log_out_token_is_no_token_of_a_user(scene, guard):
    user = scene.log_in()
    for claims in ({}, {"scope": "openid", "preferred_username": "alice"}, {"typ": "Bearer"}):
        token = user.logout_token(aud="agentguard", header="JWT", **claims)
        with pytest.raises(AgentguardError) as refused:
            lent(guard, token)
        assert refused.value.code == "jwt.type"
    assert attempt(guard, lent(guard, user.token())) == "ok"  # the twin


def test_users_tokens_end_no_log_in(scene, guard, parts):
    user = scene.log_in()
    delegation = lent(guard, user.token())
    for token in (user.token(aud="chat"), scene.provider.id_token(sub=user.sub, sid=user.sid)):
        assert said(sent(parts, token)) == (400, "jwt.type")
    assert attempt(guard, delegation) == "ok"
    assert said(sent(parts, user.logout_token())) == (200, "")  # the twin


def test_a_flood_of_log_out_tokens_leaves_nothing_in_the_log(service, key, credential):
    provider = service.provider
    forged = [f"{provider.logout_token()[:-8]}{number:08d}" for number in range(20)]
    others: list[Any] = [provider.logout_token(aud="mail"), "x" * 100_000, provider.token(), ""]
    before = [one.kind for one in service.place.entries()].count("logout")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(service.log_out, (forged + others) * 5))
    assert {answer.status_code for answer in answers} == {400}
    assert [one.kind for one in service.place.entries()].count("logout") == before
    assert service.exchange(key, credential).is_success  # the twin


@pytest.mark.parametrize(
    ("sent_as", "status"),
    [
        ({"data": {"logout_token": "x", "more": "y"}}, 400),
        ({"content": b"logout_token=x&logout_token=y"}, 415),
        ({"json": {"logout_token": "x"}}, 415),
        ({"data": {}}, 415),
        ({"params": {"logout_token": "x"}}, 415),
    ],
    ids=["another parameter", "no type", "JSON", "nothing", "in the query"],
)
def test_what_is_no_form_with_a_log_out_token_is_refused(service, sent_as, status):
    answer = service.http.post("/backchannel-logout", **sent_as)
    assert error_of(answer) == (status, "invalid_request")


def test_a_browser_can_log_nobody_out(service):
    """A page of somebody else makes a browser ask for a URL."""
    token = service.provider.logout_token(sid="of the browser")
    answer = service.http.get("/backchannel-logout", params={"logout_token": token})
    assert error_of(answer) == (405, "invalid_request")
    assert service.log_out(token).is_success  # the twin


@pytest.mark.parametrize("kid", ["a key", "x\nWARNING all is well\u202e"], ids=["plain", "lines"])
def test_a_refused_credential_is_one_line_of_the_servers_log(parts, caplog, kid):
    header = {"alg": "EdDSA", "typ": credential.TYPE, "kid": kid}
    token = ".".join(b64url_encode(dumps(part)) for part in (header, {"iat": 1}, {}))
    request = Request("POST", "/revoke", {"workload-identity-token": token}, b"")
    with caplog.at_level("INFO", "agentguard"), pytest.raises(RefusedError) as refused:
        instance_of(parts, request)
    assert str(refused.value) == "the credential does not count [key.unknown]"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.isprintable()
    assert kid.split("\n")[0] in line
