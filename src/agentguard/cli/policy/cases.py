"""Tables of cases: calls, and what a policy is to say of each (test-policies.md).

A table is read into cases here, each with a whole input as a guard would make it; nobody is asked.
What a case leaves out comes from the configuration, as far as that knows the agent and the tool.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentguard.call import vocabulary
from agentguard.call.decision import Decision, Outcome
from agentguard.call.tool import ToolSpec
from agentguard.cli.terminal import files
from agentguard.domain.config import Config
from agentguard.errors import ArgumentsError, ConfigError, DecodeError, EncodeError, StorageError
from agentguard.identity.principal import require_principal
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.tables import Table, kinds

SUFFIXES: Final = (".toml", ".json")

_OUTCOMES: Final[tuple[Outcome, ...]] = ("allow", "deny", "approval")
_INSTANCE: Final = "test"
_DENIED: Final = "policy.denied"


@dataclass(frozen=True, slots=True)
class Case:
    """One case: what is asked, and what is expected.

    ``reasons`` of None are any, and a ``code`` of None is any but that of a failure.
    """

    file: Path
    name: str
    document: bytes
    decision: Outcome
    code: str | None
    reasons: tuple[str, ...] | None

    def holds(self, decided: Decision) -> bool:
        """Whether a decision is the expected one; reasons count in whatever order."""
        alike = self.reasons is None or sorted(self.reasons) == sorted(decided.reasons)
        return alike and self.expects(decided)

    def expects(self, decided: Decision) -> bool:
        """Whether outcome and code are the expected ones: a policy that fails also denies."""
        any_code = decided.outcome != "deny" or decided.code == _DENIED
        alike = any_code if self.code is None else decided.code == self.code
        return alike and decided.outcome == self.decision


def read_cases(path: Path, settings: Config) -> list[Case]:
    """Read a table, in TOML or JSON by its name.

    Raises ``ConfigError``, which names the file and the case.
    """
    members = _members(path)
    table = Table(members, str(path), "")
    shared = _input(table, members)
    listed = members.get("case")
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{path}: case: expected a list of cases, as [[case]] makes in TOML")
    table.require_known(("case", "input"))
    cases = [
        _case(path, f"case {number}", one, shared, settings)
        for number, one in enumerate(listed, start=1)
    ]
    names = [case.name for case in cases]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{path}: two cases have the name {twice!r}: give each its own")
    return cases


def _members(path: Path) -> dict[str, Any]:
    try:
        data = files.read(path)
    except StorageError as error:
        raise ConfigError(str(error), code="config.missing") from error
    try:
        if path.suffix != ".json":
            return tomllib.loads(data.decode())
        value = canonical.loads(data, limit=files.LONGEST)
        if isinstance(value, dict):
            return value
    except (DecodeError, ValueError) as error:  # UnicodeDecodeError, TOMLDecodeError
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path} is no {kind}: {error}") from error
    raise ConfigError(f"{path}: expected an object with a list 'case'")


def _case(
    path: Path, called: str, members: object, shared: Mapping[str, Any], settings: Config
) -> Case:
    if not isinstance(members, dict):
        raise ConfigError(f"{path}: {called}: expected a table")
    table = Table(members, str(path), f"{called}: ")
    name = kinds.text.read(table, "name")
    table = Table(members, str(path), f"case {name!r}: ")
    table.require_known(("name", "input", "expect", "code", "reasons"))
    given = _merged(shared, _input(table, members))
    return Case(
        path,
        name,
        _document(table, given, settings),
        kinds.choice(*_OUTCOMES).read(table, "expect"),
        kinds.any_text.read(table, "code") if table.has("code") else None,
        kinds.texts.read(table, "reasons") if table.has("reasons") else None,
    )


def _input(table: Table, members: Mapping[str, Any]) -> Mapping[str, Any]:
    table.table("input")  # raises for what is none
    given: Mapping[str, Any] = members.get("input", {})
    return given


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Put the members of one object over those of another, and so within objects of both."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            merged[name] = _merged(under, value)
        else:
            merged[name] = value
    return merged


def _document(table: Table, given: dict[str, Any], settings: Config) -> bytes:
    """Return the whole input: what every input has, below what is given."""
    action = given.get("action")
    if not isinstance(action, str):
        raise ConfigError(f"{table.name('input.action')}: expected the name of a tool")
    usual: dict[str, Any] = {
        "agent": {},
        "delegation": None,
        "resource": None,
        "task_id": None,
        "args": {},
        "tool": {"name": action, "schema_sha256": "0" * 64},
    }
    whole = _merged(usual, given)
    if not (isinstance(whole["agent"], dict) and isinstance(whole["args"], dict)):
        raise ConfigError(f"{table.name('input')}: agent and args are objects")
    try:
        whole["agent"] = _merged(_agent(whole["agent"], settings), whole["agent"])
        if isinstance(whole["delegation"], Mapping):
            delegation_input = _delegation(table, whole, settings)
            whole["delegation"] = _merged(delegation_input, whole["delegation"])
        for name, value in _of_tool(action, whole["args"], settings):
            if name not in given:
                whole[name] = value
        _require_possible(Table(whole, table.name("input"), ""))
        return canonical.dumps(whole)
    except (EncodeError, ArgumentsError) as error:
        raise ConfigError(f"{table.name('input')}: {error}") from error


def _require_possible(whole: Table) -> None:
    """Raise ``ConfigError`` for an input that no guarded call has, at agentguard's own members.

    What is asked about then would be another call than the author means: a policy never sees the
    roles of ``agent.role``, and denies.
    """
    for member in vocabulary.INPUT:
        if whole.has(member.name):
            _read(whole, member)
    for name, path in vocabulary.UNUSED.items():
        if whole.has(name):
            raise whole.mistake(name, f"no such member, but input.{'.'.join(path)}")


def _read(table: Table, member: vocabulary.Member) -> None:
    """Read a member of the input, or raise ``ConfigError`` for what no guarded call has."""
    match member.kind:
        case "object" if member.members:
            inner = table.table(member.name)
            for one in member.members:
                if inner.has(one.name) or one.always:
                    _read(inner, one)
            inner.require_known([one.name for one in member.members])
        case "text" if table.has(member.name) or not member.nullable:
            kinds.any_text.read(table, member.name)
        case "texts" if table.has(member.name):
            kinds.texts.read(table, member.name)
        case "number" if table.has(member.name):
            kinds.number.read(table, member.name)


def _agent(given: Mapping[str, Any], settings: Config) -> dict[str, Any]:
    name = given.get("name", "")
    configured = settings.agents.get(name) if isinstance(name, str) else None
    return {
        "id": f"spiffe://{settings.trust_domain}/agent/{name}/{_INSTANCE}",
        "name": name,
        "type": configured.type if configured is not None else "agent",
        "instance": _INSTANCE,
        "roles": list(configured.roles) if configured is not None else [],
    }


def _delegation(table: Table, whole: Mapping[str, Any], settings: Config) -> dict[str, Any]:
    subject = whole["delegation"].get("subject")
    if not isinstance(subject, str):
        where = table.name("input.delegation.subject")
        raise ConfigError(f"{where}: expected for whom the agent acts, as in 'user:alice'")
    try:
        require_principal(subject, "principal", ConfigError)
    except ConfigError as error:
        raise ConfigError(f"{table.name('input.delegation.subject')}: {error}") from error
    principal = settings.principal_tables.get(subject)
    return {
        "subject": subject,
        "actor": subject,
        "via": None,
        "chain": [subject, whole["agent"]["id"]],
        "scope": [],
        "depth": 1,
        "assurance": "application",
        "roles": list(principal.roles) if principal is not None else [],
    }


def _of_tool(
    action: str, arguments: Mapping[str, JSON], settings: Config
) -> Iterator[tuple[str, JSON]]:
    """Yield what the configuration makes of a tool's arguments: attributes, and its resource."""
    configured = settings.tools.tables.get(action)
    if configured is None:
        return
    spec = ToolSpec(
        name=action,
        description="",
        schema={},
        origin="policy:test",
        resource=configured.resource,
        attributes={} if configured.attributes is None else dict(configured.attributes),
    )
    yield from spec.attributes_of(arguments).items()
    if spec.resource is not None:
        yield "resource", spec.resource_of(arguments)
