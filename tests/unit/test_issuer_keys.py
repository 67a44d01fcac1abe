"""The keys of an issuer: read from a file, fetched over HTTP, cached, and fetched again."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from functools import partial

import pytest
from certificates import Authority
from token_issuer import AUDIENCE, ISSUER, NOW, SUBJECT, HttpIssuer, TokenIssuer, fresh

from agentguard.domain.config import parse, rights
from agentguard.domain.issuer_keys import open_issuers
from agentguard.domain.key_sources import KeySources
from agentguard.errors import AgentguardError, ConfigError, ServerError
from agentguard.identity.jwks import KeySet
from agentguard.issuers.http import endpoint_of
from agentguard.issuers.keys import (
    COOL_DOWN,
    FRESH,
    KEPT,
    RETRY,
    FetchedKeys,
    FileKeys,
    _Kept,
    parse_keys,
)
from agentguard.issuers.trusted import Issuers, TrustedIssuer


@pytest.fixture
def issuer() -> TokenIssuer:
    return TokenIssuer()


@pytest.fixture
def provider(issuer):
    served = HttpIssuer(issuer)
    yield served
    served.close()


class Source:
    """Keys that are fetched from an issuer in this process, at a time that the test sets."""

    def __init__(self, issuer):
        self.issuer, self.now, self.fetches, self.is_down = issuer, 0.0, 0, False
        self.source = FetchedKeys("cluster", self.fetch, lambda: self.now)
        self.issuers = Issuers([TrustedIssuer(issuer.rule(), self.source)], lambda: NOW)

    def fetch(self):
        self.fetches += 1
        if self.is_down:
            raise ServerError("it is down", code="issuer.unreachable")
        return parse_keys(self.issuer.rule(), self.issuer.jwks())


@pytest.fixture
def source(issuer):
    return Source(issuer)


def code_of(work, *arguments):
    with pytest.raises(AgentguardError) as caught:
        work(*arguments)
    return caught.value.code


def test_keys_are_fetched_once_and_again_when_they_are_old(source, issuer):
    for _ in range(3):
        assert source.issuers.verify(issuer.token()).subject == SUBJECT
    assert source.fetches == 1
    source.now = FRESH
    source.issuers.verify(issuer.token())
    assert source.fetches == 2


def test_a_new_key_is_fetched_at_once_and_then_after_a_pause(source, issuer):
    source.issuers.verify(issuer.token())
    source.now = COOL_DOWN
    issuer.rotate("second")
    assert source.issuers.verify(issuer.token()).subject == SUBJECT
    assert source.fetches == 2
    issuer.rotate("third")
    for _ in range(5):  # whoever sends unknown keys does not steer more requests
        assert code_of(source.issuers.verify, issuer.token()) == "jwt.key"
    assert source.fetches == 2
    source.now += COOL_DOWN
    assert source.issuers.verify(issuer.token()).subject == SUBJECT
    assert source.fetches == 3


@pytest.mark.parametrize("withdrawn", [b'{"keys":[]}', b"{}", b"no keys"], ids=ascii)
def test_an_issuer_that_has_withdrawn_its_only_key_is_not_one_that_is_down(
    source, issuer, monkeypatch, withdrawn
):
    """Whoever has stolen the key would have an hour more."""
    stolen = issuer.token()
    assert source.issuers.verify(stolen).subject == SUBJECT
    source.now = FRESH
    with monkeypatch.context() as answered:
        answered.setattr(issuer, "jwks", lambda: withdrawn)
        for _ in range(2):
            assert code_of(source.issuers.verify, stolen) == "issuer.unreachable"
        source.is_down, source.now = True, FRESH + RETRY
        assert code_of(source.issuers.verify, stolen) == "issuer.unreachable"
    source.is_down, source.now = False, FRESH + 2 * RETRY
    issuer.rotate("second")
    issuer.keys[:1] = []
    assert code_of(source.issuers.verify, stolen) == "jwt.key"
    assert source.issuers.verify(issuer.token()).subject == SUBJECT  # the twin


def test_a_forged_signature_fetches_nothing(source, issuer):
    source.issuers.verify(issuer.token())
    source.now = COOL_DOWN
    assert code_of(source.issuers.verify, TokenIssuer("mallory").token()) == "jwt.signature"
    assert source.fetches == 1


def test_while_the_issuer_is_down_the_last_keys_count_for_a_time(source, issuer, caplog):
    source.issuers.verify(issuer.token())
    source.is_down = True
    for source.now in (FRESH, KEPT - 1):
        with caplog.at_level(logging.WARNING):
            assert source.issuers.verify(issuer.token()).subject == SUBJECT
    assert "cluster can't be fetched: it is down" in caplog.text
    source.now = KEPT + RETRY
    assert code_of(source.issuers.verify, issuer.token()) == "issuer.unreachable"
    source.is_down = False
    source.now += RETRY - 1
    assert code_of(source.issuers.verify, issuer.token()) == "issuer.unreachable"
    source.now += 1
    assert source.issuers.verify(issuer.token()).subject == SUBJECT


def test_a_key_that_the_issuer_has_withdrawn_counts_no_more_after_a_time(source, issuer):
    token = issuer.token()
    source.issuers.verify(token)
    issuer.rotate("second")
    issuer.keys[:1] = []
    source.now = FRESH
    assert code_of(source.issuers.verify, token) == "jwt.key"
    assert source.issuers.verify(issuer.token()).subject == SUBJECT


def test_many_threads_fetch_once(source, issuer):
    held, token = threading.Event(), issuer.token()
    fetch = source.fetch

    def slow():
        held.wait(30)
        return fetch()

    source.source._fetch = slow
    subjects: list[str] = []
    threads = [
        threading.Thread(target=lambda: subjects.append(source.issuers.verify(token).subject))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    held.set()
    for thread in threads:
        thread.join(30)
    assert subjects == [SUBJECT] * 8
    assert source.fetches == 1


@pytest.mark.parametrize("has_keys", [True, False])
def test_while_an_issuer_is_slow_one_thread_waits_and_no_other(source, issuer, has_keys):
    """Else somebody with tokens of unknown keys would have all threads of a server wait."""
    token = issuer.token()
    if has_keys:
        assert source.issuers.verify(token).subject == SUBJECT
    source.is_down, source.now = True, COOL_DOWN
    unknown = issuer.token({"kid": "unknown"}) if has_keys else token
    refusal = "jwt.key" if has_keys else "issuer.unreachable"
    assert code_of(source.issuers.verify, unknown) == refusal
    source.now += RETRY
    fetch, fetching, release = source.fetch, threading.Event(), threading.Event()

    def slow():
        fetching.set()
        release.wait(30)
        return fetch()

    source.source._fetch = slow
    codes: list[str] = []
    waiting = threading.Thread(
        target=lambda: codes.append(code_of(source.issuers.verify, unknown)), daemon=True
    )
    waiting.start()
    assert fetching.wait(30)
    other = threading.Thread(
        target=lambda: codes.append(code_of(source.issuers.verify, unknown)), daemon=True
    )
    other.start()
    other.join(5)
    assert codes == [refusal]
    if has_keys:  # the twin: a known key counts meanwhile
        assert source.issuers.verify(token).subject == SUBJECT
    release.set()
    waiting.join(30)
    assert codes == [refusal] * 2


def test_old_keys_do_not_count_because_another_thread_has_just_fetched_new_ones(source, issuer):
    """The age is that of the keys that were looked at, and not that of the new ones."""
    stolen = issuer.token()
    assert source.issuers.verify(stolen).subject == SUBJECT
    issuer.rotate("second")
    issuer.keys[:1] = []
    source.is_down, source.now = True, KEPT  # no thread has fetched keys for an hour

    def fetched_meanwhile(frame, _event, _argument):
        """Replace the keys once ``FetchedKeys.keys`` has looked at them."""
        if frame.f_code is FetchedKeys.keys.__code__:
            if "kept" in frame.f_locals and source.source._kept.at != KEPT:
                source.source._kept = _Kept(source_of_new.keys(), KEPT)
            return fetched_meanwhile
        return None

    source_of_new = FetchedKeys("cluster", lambda: parse_keys(issuer.rule(), issuer.jwks()))
    before = sys.gettrace()
    sys.settrace(fetched_meanwhile)
    try:
        code = code_of(source.issuers.verify, stolen)
    finally:
        sys.settrace(before)
    assert code == "issuer.unreachable"
    assert code_of(source.issuers.verify, stolen) == "jwt.key"
    assert source.issuers.verify(issuer.token()).subject == SUBJECT  # the twin


def test_a_forked_process_waits_for_no_fetch_of_its_parent(issuer):
    """A thread of the parent was fetching keys when another one forked."""
    parent, held, release = os.getpid(), threading.Event(), threading.Event()

    def fetch():
        if os.getpid() == parent:
            held.set()
            release.wait(30)
        return parse_keys(issuer.rule(), issuer.jwks())

    keys = FetchedKeys("acme", fetch)
    thread = threading.Thread(target=keys.keys)
    thread.start()
    held.wait(30)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)  # ends a child that waits
        os._exit(len(keys.keys().keys))
    release.set()
    thread.join(30)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert len(keys.keys().keys) == 1  # the twin


def test_a_signal_handler_may_need_keys_within_a_fetch(issuer):
    fetches: list[KeySet] = []

    def fetch():
        fetches.append(parse_keys(issuer.rule(), issuer.jwks()))
        if len(fetches) == 1:  # as where a signal interrupts this thread, and its handler delegates
            assert keys.keys() is fetches[1]
        return fetches[-1]

    keys = FetchedKeys("acme", fetch)
    thread = threading.Thread(target=keys.keys, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def test_a_file_is_read_for_each_token(issuer, tmp_path):
    path = tmp_path / "bundle.json"
    issuers = Issuers(
        [TrustedIssuer(issuer.rule(), FileKeys(issuer.rule(), path, rights.read))], lambda: NOW
    )
    with pytest.raises(ServerError, match="issuer can't be had") as caught:
        issuers.verify(issuer.token())
    assert caught.value.code == "issuer.unreachable"
    path.write_bytes(issuer.jwks())
    issuers.verify(issuer.token())
    issuer.rotate("second")
    assert code_of(issuers.verify, issuer.token()) == "jwt.key"
    path.write_bytes(issuer.jwks())
    assert issuers.verify(issuer.token()).subject == SUBJECT


@pytest.mark.parametrize("text", ["", "{}", '{"keys": []}', '{"keys": [{"k": "AA"}]}'])
def test_a_file_without_keys_is_an_error_of_the_issuer(issuer, tmp_path, text):
    path = tmp_path / "bundle.json"
    path.write_text(text)
    assert code_of(FileKeys(issuer.rule(), path, rights.read).keys) == "issuer.keys"


def test_nobody_waits_for_a_pipe_in_the_place_of_a_file(issuer, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "pipe"
    assert code_of(FileKeys(issuer.rule(), path, rights.read).keys) == "issuer.unreachable"
    with pytest.raises(ConfigError, match="pipe can't be used"):
        endpoint_of("https://issuer.example/jwks", "jwks_url", path)


def test_an_issuer_with_a_url_comes_before_the_trust_domain_of_its_subjects(tmp_path):
    """Its subjects may be SPIFFE IDs; a JWT-SVID may have an ``iss``, too."""
    subject = "spiffe://acme.example/a"
    sso, spire = (
        TokenIssuer("sso"),
        TokenIssuer("spire", issuer="https://s.example", use="jwt-svid"),
    )
    trusted = []
    for issuer, rule in (
        (spire, spire.rule(issuer=None, trust_domain="acme.example")),
        (sso, sso.rule()),
    ):
        path = tmp_path / issuer.name
        path.write_bytes(issuer.jwks())
        trusted.append(TrustedIssuer(rule, FileKeys(rule, path, rights.read)))
    issuers = Issuers(trusted, lambda: NOW)
    assert issuers.verify(sso.token(sub=subject)).issuer == "sso"
    assert issuers.verify(spire.token(sub=subject)).issuer == "spire"


def test_a_file_that_others_can_write_has_no_keys(issuer, tmp_path):
    path = tmp_path / "bundle.json"
    path.write_bytes(issuer.jwks())
    source = FileKeys(issuer.rule(), path, rights.read)
    path.chmod(0o666)
    assert code_of(source.keys) == "issuer.keys"
    path.chmod(0o644)
    assert len(source.keys().keys) == 1


# --- over HTTP ----------------------------------------------------------------------------------


def configured(provider, url="/jwks", **members):
    table = {
        "issuer": ISSUER,
        "jwks_url": f"{provider.url}{url}",
        "audience": [AUDIENCE],
        "algorithms": ["ES256"],
        **members,
    }
    return parse({"issuers": {"cluster": table}}, source="agentguard.toml", base=provider.folder)


def opened(settings):
    return open_issuers(settings, KeySources(settings))


@pytest.fixture
def settings(provider, tmp_path):
    provider.folder = tmp_path
    return partial(configured, provider)


def test_keys_are_fetched_over_http(provider, issuer, settings):
    issuers = opened(settings())
    for _ in range(2):
        assert issuers.verify(issuer.token(**fresh())).issuer == "cluster"
    assert provider.requests == ["/jwks"]


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (302, {"Location": "/jwks"}, b""),
        (500, {}, b"{}"),
        (404, {}, b"{}"),
        (200, {"Content-Type": "text/html"}, b"<html>"),
        (200, {"Content-Encoding": "gzip"}, b"x"),
        (200, {}, b'{"keys": "none"}'),
        (200, {}, b" " * (300 << 10)),
    ],
)
def test_another_answer_is_no_key_set(provider, issuer, settings, status, headers, body):
    issuers = opened(settings(url="/odd"))
    provider.answers["/odd"] = (status, headers, body)
    assert code_of(issuers.verify, issuer.token(**fresh())) == "issuer.unreachable"
    assert provider.requests == ["/odd"]  # a redirection is not followed


def test_an_answer_that_does_not_end_takes_its_time_and_no_more(provider):
    provider.answers["/slow"] = (200, {"Content-Length": "1000"}, b"{")
    problem = endpoint_of(f"{provider.url}/slow", "jwks_url", None, timeout=0.3).ask("GET")
    assert isinstance(problem, str)
    assert "did not answer within 0.3 seconds" in problem


def test_nobody_at_the_url_is_an_issuer_that_is_unreachable(provider, issuer, settings):
    issuers = opened(settings())
    provider.close()
    assert code_of(issuers.verify, issuer.token(**fresh())) == "issuer.unreachable"


def test_a_ca_that_can_not_be_used_is_an_error_at_the_start(settings, tmp_path):
    url = "https://127.0.0.1:9/jwks"
    with pytest.raises(ConfigError, match=r"issuers\.cluster\.ca: .*bad\.pem can't be used"):
        opened(settings(jwks_url=url, ca="bad.pem"))
    authority = Authority(tmp_path, "acme")
    opened(settings(jwks_url=url, ca=str(authority.file)))


def test_a_proxy_of_the_environment_is_not_asked(provider, issuer, settings, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert opened(settings()).verify(issuer.token(**fresh())).issuer == "cluster"


def test_a_token_of_no_issuer_in_the_configuration_asks_nobody(provider, settings):
    other = TokenIssuer(issuer="https://other.example")
    issuers = opened(settings())
    assert code_of(issuers.verify, other.token(**fresh())) == "jwt.issuer"
    assert code_of(issuers.verify, "no token") == "jwt.malformed"
    assert code_of(issuers.verify, json.dumps({})) == "jwt.malformed"
    assert provider.requests == []
