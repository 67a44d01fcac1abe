"""``[policy]``: the engine, its policy, and the query.

This module opens no file: ``engine_loader.py`` loads the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from agentguard.audit.entry import Mode
from agentguard.policy.document import DEFAULT_QUERY, QUERY
from agentguard.tables import MistakeError, Table, kinds, read, setting
from agentguard.tables.kinds import Kind
from agentguard.tables.record import layout_of

if TYPE_CHECKING:
    from agentguard.policy.opa_server import Server

EngineName = Literal["rego", "opa", "cedar", "function"]


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """The policy decides each call (docs/how-to/policies.md).

    ::

        [policy]
        engine = "rego"
        path = "policies/authz.rego"
        query = "data.agent.authz"
        mode = "enforce"
    """

    engine: EngineName = setting(kinds.choice("rego", "opa", "cedar", "function"), default="rego")
    """What kind of policy decides."""

    path: str = setting(kinds.text, default="")
    """The policy's file, or a folder of them; for a function ``"package.module:callable"``;
    required but for an OPA server."""

    query: str = setting(kinds.text, default=DEFAULT_QUERY)
    """The package of a Rego policy that decides."""

    server: Server | None = None
    """The OPA server that decides, None for another engine."""

    mode: Mode = setting(kinds.choice("enforce", "observe"), default="enforce")
    """``observe`` asks the policy and logs the answer, and runs each call whatever the policy
    says."""

    def __post_init__(self) -> None:
        if self.engine != "opa" and not self.path:
            raise MistakeError("path", kinds.text.expected)
        if self.engine == "opa" and not QUERY.fullmatch(self.query):
            raise MistakeError("query", f"the path of a package, such as '{DEFAULT_QUERY}'")


def _server() -> type[Server]:
    from agentguard.policy.opa_server import Server  # noqa: PLC0415  few policies are on a server

    return Server


def _policy(outer: Table, name: str) -> PolicyConfig:
    """Read ``[policy]``: for an OPA server, the table has the keys of the server, too."""
    table = outer.table(name)
    if table.get("engine") != "opa":
        if table.has("url") and not table.has("path"):
            raise table.mistake("engine", "'opa', because the table has a url and no path")
        return read(PolicyConfig, table)
    own, others = layout_of(PolicyConfig).keys.keys() - {"path"}, layout_of(_server()).keys
    table.require_known({*own, *others})
    server = read(_server(), table.part(others))
    return read(PolicyConfig, table.part(own), server=server)


policy: Final = Kind("table", "a table", _policy, (lambda: PolicyConfig, _server))
