"""``[mcp.NAME]``: what a gateway shows and limits, and mistakes in these keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentguard.cli.mcp import gateway
from agentguard.cli.mcp.tokens import oauth_of
from agentguard.domain.config import parse
from agentguard.domain.config.mcp import McpConfig
from agentguard.errors import ConfigError


def read(**members: object) -> McpConfig:
    return parse({"mcp": {"git": members}}, source="agentguard.toml", base=Path("/")).mcp["git"]


def test_a_server_is_not_filtered_and_has_no_limit_by_default():
    server = read()
    assert server.filter_list is False
    assert (server.calls_per_minute, server.calls_at_once) == (None, None)


def test_the_keys_of_a_server_are_read():
    server = read(filter_list=True, calls_per_minute=100_000, calls_at_once=1)
    assert server.filter_list is True
    assert (server.calls_per_minute, server.calls_at_once) == (100_000, 1)


@pytest.mark.parametrize("value", [0, -1, 100_001, 1.5, True, "60"])
@pytest.mark.parametrize("key", ["calls_per_minute", "calls_at_once"])
def test_a_limit_is_a_whole_number_within_its_bounds(key, value):
    with pytest.raises(ConfigError, match=key):
        read(**{key: value})


@pytest.mark.parametrize("command", [["serve"], []], ids=["command", "empty"])
def test_a_server_has_a_command_or_a_url(command):
    url = "https://tickets.acme.example/mcp"
    with pytest.raises(ConfigError, match="either a command or a url"):
        read(command=command, url=url)
    assert read(url=url).url == url
    assert read(command=["serve"]).command == ("serve",)


def test_a_dialog_is_about_a_wait():
    assert read(wait=120, elicit=True).elicit is True
    assert read(wait=120).elicit is False
    with pytest.raises(ConfigError, match="elicit: expected a wait"):
        read(elicit=True)


def test_no_tool_has_further_rounds_unless_it_is_named():
    assert read().rounds == read(rounds=[]).rounds == ()
    assert read(rounds=["pay_*", "mcp:prompts/get"]).rounds == ("pay_*", "mcp:prompts/get")
    with pytest.raises(ConfigError, match="rounds"):
        read(rounds="pay")


@pytest.mark.parametrize("value", [1, "true", []])
def test_a_filter_is_on_or_off(value):
    with pytest.raises(ConfigError, match="filter_list"):
        read(filter_list=value)


def test_a_prefix_does_not_take_the_names_of_methods():
    assert read(prefix="git/").prefix == "git/"
    with pytest.raises(ConfigError, match="prefix: expected a text that does not begin with mcp:"):
        read(prefix="mcp:git/")


CONFIG = {
    "issuers": {
        "acme": {
            "issuer": "https://login.acme.example",
            "jwks_file": "keys.json",
            "audience": ["agentguard"],
            "algorithms": ["RS256"],
            "users": {"claim": "sub", "audience": ["https://mcp.acme.example/mcp"]},
        }
    },
    "agents": {"assistant": {"max_scope": ["files:read"]}},
    "roles": {"reader": {"scope": ["files:read"]}},
}
LISTED = {"user:alice": {"roles": ["reader"]}}


@pytest.mark.parametrize("principals", [None, LISTED], ids=["no roles", "roles"])
@pytest.mark.parametrize(
    ("scope", "delegated"), [([], ()), (["files:read"], ("files:read",)), (None, None)]
)
def test_an_empty_scope_delegates_nothing_and_an_absent_one_all(principals, scope, delegated):
    table: dict[str, object] = {
        "command": ["server"],
        "agent": "assistant",
        "principal": "user:alice",
    }
    table |= {"serve": {"url": "https://mcp.acme.example/mcp"}, "oauth": {"issuers": ["acme"]}}
    table |= {} if scope is None else {"scope": scope}
    tables = {**CONFIG, "mcp": {"git": table}}
    tables |= {} if principals is None else {"principals": principals}
    settings = parse(tables, source="agentguard.toml", base=Path("/nowhere"))
    server = gateway.server_of(settings, "git", ())
    chosen = gateway.settings_of(settings, server, gateway.Caller())
    if delegated is None and principals is None:  # what the agent may have
        delegated = ("files:read",)
    assert chosen.delegated == delegated
    oauth = oauth_of(gateway.package(), settings, server, "assistant")
    assert oauth.issuers == {"https://login.acme.example": delegated}


def test_scopes_of_tokens_count_unless_they_are_ignored():
    def claim(**members: object) -> str | None:
        oauth = read(oauth={"issuers": ["acme"], **members}).oauth
        assert oauth is not None
        return oauth.counted_claim

    assert (claim(), claim(scope_claim="scp"), claim(ignore_scope=True)) == ("scope", "scp", None)
    with pytest.raises(ConfigError, match="scope_claim: expected no scope_claim beside"):
        claim(scope_claim="scp", ignore_scope=True)
