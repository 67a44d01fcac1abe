"""``[service]`` in a configuration, and the start of a server that has the table."""

from __future__ import annotations

import json
import signal
import socket
import ssl

import httpx
import pytest
from certificates import Authority
from full_disk import full_disk
from ports import free_port
from token_service import PAYMENTS, served

from agentguard.domain.config import parse
from agentguard.domain.config.address import Address
from agentguard.domain.config.service import ServiceConfig
from agentguard.errors import ConfigError

ISSUER = "https://agents.example"


def read(folder, **service):
    tables = {"trust_domain": "acme.example", "server": {"url": "unix:s"}, "service": service}
    return parse(tables, source="agentguard.toml", base=folder).service


def test_the_defaults(tmp_path):
    assert read(tmp_path, issuer=ISSUER) == ServiceConfig(ISSUER, Address("127.0.0.1", 8787))


@pytest.mark.parametrize(
    "service",
    [
        {"issuer": "http://127.0.0.1:8787"},
        {"issuer": "http://localhost:1"},
        {"issuer": f"{ISSUER}:8443", "listen": "[::1]:8787"},
        {"issuer": ISSUER, "listen": "0.0.0.0:443", "certificate": "c", "key": "k"},
        {"issuer": ISSUER, "audiences": ["https://payments.example", "billing"]},
    ],
    ids=str,
)
def test_what_is_accepted(tmp_path, service):
    assert read(tmp_path, **service).issuer == service["issuer"]


@pytest.mark.parametrize(
    ("service", "key"),
    [
        ({}, "issuer"),
        ({"issuer": "http://agents.example"}, "issuer"),
        ({"issuer": f"{ISSUER}/"}, "issuer"),
        ({"issuer": f"{ISSUER}/tokens"}, "issuer"),
        ({"issuer": f"{ISSUER}:443"}, "issuer"),
        ({"issuer": f"{ISSUER}?a=b"}, "issuer"),
        ({"issuer": f"{ISSUER}#a"}, "issuer"),
        ({"issuer": "https://Agents.example"}, "issuer"),
        ({"issuer": "https://user@agents.example"}, "issuer"),
        ({"issuer": "spiffe://acme.example"}, "issuer"),
        ({"issuer": 1}, "issuer"),
        ({"issuer": ISSUER, "listen": "0.0.0.0:8787"}, "certificate"),
        ({"issuer": ISSUER, "listen": "agents.example:8787"}, "certificate"),
        ({"issuer": ISSUER, "listen": "127.0.0.1"}, "listen"),
        ({"issuer": ISSUER, "listen": "127.0.0.1:0"}, "listen"),
        ({"issuer": ISSUER, "listen": "127.0.0.1:99999"}, "listen"),
        ({"issuer": ISSUER, "listen": ":8787"}, "listen"),
        ({"issuer": ISSUER, "certificate": "c"}, "key"),
        ({"issuer": ISSUER, "key": "k"}, "key"),
        ({"issuer": ISSUER, "audiences": ["a b"]}, "audiences"),
        ({"issuer": ISSUER, "audiences": "a"}, "audiences"),
        ({"issuer": ISSUER, "port": 1}, "port"),
    ],
    ids=str,
)
def test_a_mistake_names_its_key(tmp_path, service, key):
    with pytest.raises(ConfigError, match=rf"service\.{key}: "):
        read(tmp_path, **service)


def test_a_port_of_very_many_digits_is_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match=r"service\.listen: "):
        read(tmp_path, issuer=ISSUER, listen="127.0.0.1:" + "1" * 5000)


def test_the_table_needs_a_guard_server_beside_it(tmp_path):
    tables = {"trust_domain": "acme.example", "service": {"issuer": ISSUER}}
    with pytest.raises(ConfigError, match=r"\[server\]"):
        parse(tables, source="agentguard.toml", base=tmp_path)


def refused_start(service) -> str:
    """Start the server, which has to end with an error; return what it prints."""
    place = service.place
    result = place.programs.run("-m", "agentguard.cli", "serve", cwd=place.folder)
    assert result.returncode == 2
    assert not (place.folder / "s").exists()
    return str(result.stderr)


def test_a_port_in_use_fails_the_start_and_leaves_no_socket(programs):
    with served(programs) as service:
        service.place.stop()
        host, _, port = service.url.removeprefix("http://").partition(":")
        with socket.create_server((host, int(port))):
            assert "server.address" in refused_start(service)
        service.place.start()
        assert service.http.get("/healthz").is_success


def test_a_service_whose_log_can_not_be_written_says_so_to_a_probe(programs):
    with served(programs) as service:
        place = service.place
        place.stop()
        place.start("from agentguard.store import log_probe; log_probe._TELLS_FOR = 0.2")
        assert service.http.get("/healthz").json() == {"status": "ok"}
        with full_disk(place.server):
            place.wait_for(lambda: service.http.get("/healthz").status_code == 503)
            failing = service.http.get("/healthz").json()
            assert failing["error_description"] == "the log can't be written [storage.readonly]"
        place.wait_for(lambda: service.http.get("/healthz").is_success)


def test_a_certificate_that_is_none_fails_the_start(programs):
    with served(programs) as service:
        place = service.place
        place.stop(signal.SIGTERM)
        config = place.folder / "agentguard.toml"
        good = config.read_text()
        config.write_text(good.replace("[service]", '[service]\ncertificate = "c"\nkey = "k"'))
        assert "server.address" in refused_start(service)
        config.write_text(good)
        place.start()
        assert service.http.get("/healthz").is_success


def test_the_service_answers_with_tls_of_its_own(programs):
    with served(programs) as service:
        place = service.place
        place.stop()
        authority = Authority(place.folder, "authority")
        certificate, key = authority.issue("service")
        config = place.folder / "agentguard.toml"
        url = f"https://127.0.0.1:{free_port()}"
        text = config.read_text().replace(service.url, url)
        listen = service.url.removeprefix("http://")
        text = text.replace(f'"{listen}"', f'"{url.removeprefix("https://")}"')
        tables = f'[service]\ncertificate = "{certificate}"\nkey = "{key}"'
        config.write_text(text.replace("[service]", tables))
        place.start()
        trusted = ssl.create_default_context(cafile=str(authority.file))
        assert httpx.get(f"{url}/healthz", verify=trusted).json() == {"status": "ok"}
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/healthz")
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http") + "/healthz")


def checked(service) -> list[tuple[str, str]]:
    """Return what doctor finds about the token service."""
    place = service.place
    words = ("-m", "agentguard.cli", "doctor", "--json")
    printed = place.programs.run(*words, cwd=place.folder).stdout
    found = json.loads(printed)["checks"]
    return [(one["status"], one["what"]) for one in found if one["check"] == "token service"]


def test_doctor_says_who_could_use_the_service(programs):
    with served(programs) as service:
        ((status, what),) = checked(service)
        assert (status, service.url in what, PAYMENTS in what) == ("ok", True, True)
        assert f"for these audiences: the trust domain, {PAYMENTS}" in what
        config = service.place.folder / "agentguard.toml"
        good = config.read_text()
        for changed, expected in (
            (without_clients(good), "nobody gets an identity"),
            (without_users(good), "nobody gets an access token"),
        ):
            config.write_text(changed)
            ((status, what),) = checked(service)
            assert (status, what.partition(":")[0]) == ("warn", expected)


def without_clients(text: str) -> str:
    return text.partition("[clients.web]")[0]


def without_users(text: str) -> str:
    before, _, after = text.partition("[issuers.acme.users]")
    return before + after[after.index("[clients.web]") :]
