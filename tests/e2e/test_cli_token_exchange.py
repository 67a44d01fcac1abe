"""``agentguard token exchange`` against a real token service."""

from __future__ import annotations

import json
import os
import stat
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from served_place import PASSPHRASE
from token_service import PAYMENTS, claims, served

from agentguard.delegation import access_token
from agentguard.domain import administration, keystore


@pytest.fixture(scope="module")
def service(programs):
    with served(programs) as running:
        yield running


@pytest.fixture
def folder(service, tmp_path):
    (tmp_path / "workload").write_text(service.workload() + "\n")
    (tmp_path / "alice").write_text(service.provider.token() + "\n")
    return tmp_path


def words(service, *more):
    return (
        *("token", "exchange", "alice", "--service", service.url, "--agent", "clerk"),
        *("--workload-token", "workload", "--key", "key.json", *more),
    )


@pytest.fixture
def run(programs, folder):
    def run(*given):
        return programs.run("-m", "agentguard.cli", *given, cwd=folder)

    return run


def test_the_command_prints_a_token_of_the_key_and_writes_the_chain(service, folder, run):
    more = ("--scope", "read", "--audience", PAYMENTS, "--chain", "chain.json")
    ran = run(*words(service, *more))
    assert ran.returncode == 0, ran.stderr
    token = ran.stdout.strip()
    trust = keystore.load_trust(service.place.folder / "state")
    chain = (folder / "chain.json").read_bytes()
    given = {"at": int(time.time()), "audience": PAYMENTS, "issuer": service.url}
    assert access_token.verify(token, chain, trust, **given).chain.principal == "user:alice"
    assert stat.S_IMODE((folder / "key.json").stat().st_mode) == 0o600

    (folder / "trust.json").write_bytes(trust.dumps() + b"\n")
    verify = (
        *("token", "verify", token, "--chain", "chain.json", "--trust", "trust.json"),
        *("--audience", PAYMENTS),
    )
    assert run(*verify).returncode == 1  # no URL is an issuer by default
    assert run(*verify, "--issuer", f"{service.url}/").returncode == 1
    verified = run(*verify, "--issuer", service.url)
    assert verified.returncode == 0, verified.stdout + verified.stderr

    again = run(*words(service))
    assert claims(again.stdout.strip())["cnf"] == claims(token)["cnf"]


def test_an_id_jag_gets_a_token_and_is_no_user_s_token(service, folder, run):
    (folder / "alice").write_text(service.id_jag(resource=PAYMENTS) + "\n")
    refused = run(*words(service))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "invalid_request" in refused.stderr
    ran = run(*words(service, "--id-jag"))
    assert ran.returncode == 0, ran.stderr
    assert claims(ran.stdout.strip())["aud"] == [PAYMENTS]


def test_an_id_jag_is_not_lost_where_the_chain_can_not_be_written(service, folder, run):
    (folder / "alice").write_text(service.id_jag() + "\n")
    refused = run(*words(service, "--id-jag", "--chain", "none/chain.json"))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "storage.readonly" in refused.stderr
    ran = run(*words(service, "--id-jag", "--chain", "chain.json"))  # the twin
    assert ran.returncode == 0, ran.stderr


def test_a_private_key_is_not_printed(service, folder, run):
    made = [*words(service)]
    made[made.index("key.json")] = "-"
    refused = run(*made)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--key: name a file" in refused.stderr
    assert run(*words(service)).returncode == 0  # the twin
    assert (folder / "key.json").exists()


def test_verify_asks_the_service_what_nobody_else_knows(service, folder, run):
    """The trust document says who has signed the token, and not what was revoked since then."""
    ran = run(*words(service, "--audience", PAYMENTS, "--chain", "chain.json"))
    token, state = ran.stdout.strip(), service.place.folder / "state"
    (folder / "trust.json").write_bytes(keystore.load_trust(state).dumps() + b"\n")
    alone = (
        *("token", "verify", token, "--chain", "chain.json", "--trust", "trust.json"),
        *("--audience", PAYMENTS, "--issuer", service.url),
    )
    asked = (*alone, "--introspect", service.url, "--workload-token", "workload")
    assert (run(*alone).returncode, run(*asked).returncode) == (0, 0)
    given: dict[str, Any] = {"note": "a test", "now": datetime.now(UTC)}
    administration.revoke(service.place.settings, PASSPHRASE, claims(token)["jti"], **given)
    refused = run(*asked)
    assert refused.returncode == 1
    assert "token.inactive" in refused.stdout + refused.stderr
    assert run(*alone).returncode == 0
    assert run(*alone, "--introspect", service.url).returncode == 2
    gone = (*alone, "--introspect", "http://127.0.0.1:9", "--workload-token", "workload")
    assert run(*gone).returncode == 2  # nobody knows


def test_a_refusal_prints_no_token(service, run):
    ran = run(*words(service, "--scope", "admin"))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "service.refused" in ran.stderr
    assert "invalid_scope" in ran.stderr


@pytest.mark.parametrize(
    "key",
    [b"", b"{}", b'{"d":"AAAA"}', b"[]", b'{"crv":"Ed25519","d":1,"kty":"OKP","x":"A"}', b"\0"],
    ids=["nothing", "no members", "short", "a list", "a number", "NUL"],
)
def test_a_file_without_a_key_is_refused_and_stays(service, folder, run, key):
    (folder / "key.json").write_bytes(key)
    ran = run(*words(service))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "config.invalid" in ran.stderr
    assert (folder / "key.json").read_bytes() == key


def test_another_public_key_in_the_file_is_refused(service, folder, run):
    assert run(*words(service)).returncode == 0
    jwk = json.loads((folder / "key.json").read_text())
    (folder / "key.json").write_text(json.dumps({**jwk, "x": "A" * 43}))
    assert run(*words(service)).returncode == 2
    (folder / "key.json").write_text(json.dumps(jwk))
    assert run(*words(service)).returncode == 0


@pytest.mark.parametrize("token", [b"", b"two words", b"a" * 20_000, b"\xff"])
def test_a_file_without_a_token_is_refused(service, folder, run, token):
    (folder / "alice").write_bytes(token)
    assert run(*words(service)).returncode == 2
    assert not os.path.lexists(folder / "chain.json")
