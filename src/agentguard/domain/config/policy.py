"""Reads ``[policy]`` of a configuration: the engine, its policy, and the query.

This module opens no file: ``engine_loader.py`` loads the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from agentguard.audit.entry import Mode
from agentguard.domain.config.table import Table
from agentguard.errors import ConfigError
from agentguard.policy.document import DEFAULT_QUERY, QUERY

if TYPE_CHECKING:
    from agentguard.policy.opa_server import Server

EngineName = Literal["rego", "opa", "cedar", "function"]

_ENGINES: Final[tuple[EngineName, ...]] = ("rego", "opa", "cedar", "function")
_MODES: Final[tuple[Mode, ...]] = ("enforce", "observe")


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """``[policy]``: the engine and its policy.

    ``path`` is a file or folder, or ``module:callable`` for a function, or empty for a server.
    ``server`` is None except for an OPA server. In the ``mode`` observe, each answer of the policy
    is in the log, and calls run whatever the answer is (test-policies.md).
    """

    engine: EngineName
    path: str
    query: str
    server: Server | None = None
    mode: Mode = "enforce"


def read_policy(table: Table, resolve: Callable[[str], Path]) -> PolicyConfig:
    """Read ``[policy]``; ``resolve`` makes a path absolute. Raises ``ConfigError``."""
    engine = table.choice("engine", _ENGINES, "rego")
    query = table.text("query", DEFAULT_QUERY)
    mode = table.choice("mode", _MODES, "enforce")
    if engine == "opa":
        if not QUERY.fullmatch(query):
            raise table.mistake("query", f"the path of a package, such as '{DEFAULT_QUERY}'")
        policy = PolicyConfig(engine, "", query, _server(table, resolve), mode)
    else:
        if "url" in table.names() and "path" not in table.names():
            raise table.mistake("engine", "'opa', because the table has a url and no path")
        policy = PolicyConfig(engine, table.text("path"), query, mode=mode)
    table.reject_unknown()
    return policy


def _server(table: Table, resolve: Callable[[str], Path]) -> Server:
    from agentguard.policy.opa_server import CONNECT_TIMEOUT, TIMEOUT, Server  # noqa: PLC0415  only a policy on an OPA server needs the module

    url = table.text("url")
    try:
        return Server(
            url,
            timeout=table.seconds("timeout", TIMEOUT),
            connect_timeout=table.seconds("connect_timeout", CONNECT_TIMEOUT),
            ca=table.file("ca", resolve),
            certificate=table.file("certificate", resolve),
            key=table.file("key", resolve),
            token_file=table.file("token_file", resolve),
            token_variable=table.optional("token_variable"),
        )
    except ConfigError as error:
        if error.__cause__ is None and str(error).startswith(table.name("")):
            raise  # the message names the key already
        raise ConfigError(f"{table.name('')}.{error}") from error
