"""Reads the entry of a release of a secret, and verifies the entry against its call.

A release stands between the authorization of a running call and the outcome, in the shard of the
call. The configuration under which the call was decided names the secret and the tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from agentguard.audit.calls import Authorization
from agentguard.audit.entry import Entry
from agentguard.audit.running_call import CallName
from agentguard.audit.summary import Summary
from agentguard.delegation.chain import Chain
from agentguard.errors import DecodeError, VerificationError
from agentguard.signing.canonical import JSON


class Release(NamedTuple):
    """The release of the secret ``name`` at a time (RFC 3339), to one call."""

    name: str
    at: str
    call: CallName

    @property
    def summary(self) -> Summary:
        """The summary of the entry."""
        return self.call.summary("secret", self.at)


def read_release(entry: Entry) -> Release:
    """Read a secret entry, unverified; raises ``DecodeError``."""
    name = entry.members.get("name")
    if isinstance(name, str):
        return Release(name, entry.at, CallName.read(entry))
    raise DecodeError("not a release of a secret", code="entry.malformed")


class _Rule(NamedTuple):
    tools: frozenset[str]
    scope: frozenset[str]


class _RunningCall(NamedTuple):
    call: CallName
    scope: frozenset[str] | None
    rules: Mapping[str, _Rule]


@dataclass(slots=True)
class ReleaseVerifier:
    """Verifies the releases of one shard, in the order of the log.

    ``add_config`` and the call's methods get what the verifier of the contents has checked.
    """

    shard: int
    _rules: dict[str, dict[str, _Rule]] = field(default_factory=dict)
    _calls: dict[str, _RunningCall] = field(default_factory=dict)

    def add_config(self, digest: str, config: JSON) -> None:
        """Add a configuration of the log, whose calls may follow."""
        secrets = config.get("secrets") if isinstance(config, dict) else None
        tables = secrets if isinstance(secrets, dict) else {}
        self._rules[digest] = {
            name: _Rule(_texts(table.get("tools")), _texts(table.get("scope")))
            for name, table in tables.items()
            if isinstance(table, dict)
        }

    def begin(self, call: Authorization, place: int, chain: Chain | None) -> None:
        """Add a call that may run; ``place`` is the index of the authorization."""
        rules = self._rules.get(call.config_sha256)
        if not rules:
            return
        rules = {name: rule for name, rule in rules.items() if call.tool in rule.tools}
        if rules:
            named = CallName.of_authorization(call, self.shard, place)
            scope = None if chain is None else frozenset(chain.leaf.scope)
            self._calls[call.invocation_sha256] = _RunningCall(named, scope, rules)

    def end(self, invocation_sha256: str) -> None:
        """Note the outcome of a call, after which nothing is released to the call."""
        self._calls.pop(invocation_sha256, None)

    def check(self, entry: Entry) -> Summary:
        """Check a release, and return the summary of the entry.

        Raises ``DecodeError`` or ``VerificationError``.
        """
        release = read_release(entry)
        running = self._calls.get(release.call.invocation_sha256)
        if running is None:
            raise _mismatch("no call that was running then may have a secret")
        if release.call != running.call:
            raise _mismatch("it names another call, agent or tool than the invocation")
        rule = running.rules.get(release.name)
        if rule is None:
            raise _mismatch("the configuration of the call does not release this secret to it")
        if running.scope is not None and not rule.scope <= running.scope:
            raise _mismatch("the delegation of the call lacks the scope of this secret")
        return release.summary


def _texts(values: JSON) -> frozenset[str]:
    listed = values if isinstance(values, list) else []
    return frozenset(value for value in listed if isinstance(value, str))


def _mismatch(problem: str) -> VerificationError:
    return VerificationError(f"a release of a secret: {problem}", code="statement.mismatch")
