"""docs/how-to/workload-tokens.md: each configuration of the page loads, at its own end."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from agentguard.domain.config import Config, parse
from agentguard.domain.config.server import Host

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "workload-tokens.md"


def blocks():
    found = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return list(map(tomllib.loads, found))


def load(tables) -> Config:
    return parse(tables, source="agentguard.toml", base=Path("/base"))


def test_the_tables_of_the_server_load_together():
    first, *rest = blocks()
    issuers, clients = {}, {}
    for block in rest:
        issuers.update(block.get("issuers", {}))
        clients.update(block.get("clients", {}))
    settings = load({**first, "issuers": issuers, "clients": clients})
    assert settings.issuers.keys() == {"cluster", "spire", "sso"}
    assert {one.issuer for one in (settings.clients or {}).values()} == set(settings.issuers)
    assert settings.server is not None
    assert settings.server.tls is not None


def test_the_configurations_of_programs_load():
    programs = [block for block in blocks()[1:] if "server" in block]
    hosts = [load(one).server for one in programs]
    assert len(hosts) == 2
    for server in hosts:
        assert server is not None
        assert isinstance(server.address, Host)
        assert (server.address.token_file is None) is not (server.address.oauth is None)
