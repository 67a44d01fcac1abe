"""The token service behind a real nginx, with the block that the page has."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import docs_pages
import nginx
import pytest
from ports import free_port
from token_service import PAYMENTS, Key, Service, claims, error_of, served

pytestmark = pytest.mark.slow("starts a real nginx")

PAGE = docs_pages.text("how-to/token-service")


def block_of_the_page(port: int, upstream: str) -> str:
    """Return the page's block, with another port, without TLS."""
    (block,) = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)
    assert "listen 443 ssl;" in block
    block = block.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    return str(block.replace("http://127.0.0.1:8787", upstream))


@pytest.fixture
def service(programs, tmp_path) -> Iterator[Service]:
    port = free_port()
    with served(programs, url=f"http://127.0.0.1:{port}") as running:
        config = tomllib.loads((running.place.folder / "agentguard.toml").read_text())
        block = block_of_the_page(port, f"http://{config['service']['listen']}")
        with nginx.running(tmp_path, port, block):
            yield running


def test_an_agent_gets_its_identity_and_a_token_through_nginx(service):
    key = Key()
    credential = service.credential(key)
    token = service.exchange(key, credential, audience=PAYMENTS).json()["access_token"]
    assert claims(token)["iss"] == service.url
    assert service.introspect(token)["active"] is True
    metadata = service.http.get("/.well-known/oauth-authorization-server").json()
    assert metadata["token_endpoint"] == f"{service.url}/token"


def test_a_proof_is_for_the_url_of_the_proxy_alone(service):
    key = Key()
    credential = service.credential(key)
    config = tomllib.loads((service.place.folder / "agentguard.toml").read_text())
    behind = f"http://{config['service']['listen']}/token"
    refused = service.exchange(key, credential, {"DPoP": key.proof(behind)})
    assert error_of(refused) == (400, "invalid_dpop_proof")
    forged = {"Host": "evil.example", "DPoP": key.proof("http://evil.example/token")}
    assert error_of(service.exchange(key, credential, forged)) == (400, "invalid_dpop_proof")
    assert service.exchange(key, credential).is_success
