"""The Cedar engine: policies in Cedar, evaluated in this process.

This module builds Cedar's request from a call and reads Cedar's decision; ``cedar_source.py`` reads
and checks the policies. The binding (``agentguard[cedar]``) is imported when a policy is loaded.
Cedar skips a policy that fails to evaluate, even a ``forbid``: the engine then denies the call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import orjson

from agentguard.call.decision import Decision, Requirement
from agentguard.errors import PolicyError
from agentguard.policy.cedar_source import CedarPolicy, CedarSource, binding
from agentguard.policy.document import read_requirements
from agentguard.signing.canonical import JSON

_ESCAPES: Final = frozenset({"__entity", "__extn", "__expr"})
"""Members that turn a record of Cedar's JSON into another value; a model may write them."""

_POLICY_ID: Final = re.compile(r"policy `(policy[0-9]+)`")


class CedarEngine:
    """Loaded Cedar policies (``engine.Engine``, ``Explains``); safe to use from many threads."""

    name: Final = "cedar"
    waits: Final = False

    def __init__(self, source: CedarSource) -> None:
        self._cedar = binding()
        self._source = source
        self.version: Final = metadata.version("cedarpy")
        self._policies, self._schema, self._policies_by_id, self.reads = source.parse()

    @classmethod
    def load(cls, path: Path) -> CedarEngine:
        """Load a ``.cedar`` file, or a folder's, with its schema (``CedarSource.read``).

        Raises ``PolicyError`` (``policy.invalid``) for policies that can't be read, do not fit the
        schema or could fail open, and ``ConfigError`` without ``agentguard[cedar]``.
        """
        return cls(CedarSource.read(path))

    @classmethod
    def from_source(cls, source: str, schema: str | None = None) -> CedarEngine:
        """Load policies from their text, and a schema in Cedar's syntax; raises as ``load``."""
        texts = {"policy.cedar": source.encode()}
        if schema is not None:
            texts["schema.cedarschema"] = schema.encode()
        return cls(CedarSource.from_texts(texts))

    @property
    def policy_sha256(self) -> str:
        """SHA-256 (hex) of the canonical ``{path: sha256}`` of policies and schema."""
        return self._source.sha256

    @property
    def policy_files(self) -> Mapping[str, str]:
        """``{path: sha256 hex}``; paths are relative to the policy's folder."""
        return self._source.files

    @property
    def warnings(self) -> tuple[str, ...]:
        """The possible mistakes in the policies, a sentence each."""
        if self._schema is not None:
            return ()
        warning = (
            "the Cedar policies have no schema: a misspelt attribute is found out when a call is "
            "decided, and denies it; write a schema.cedarschema beside them"
        )
        return (warning,)

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """The requirements in the annotations of the policies."""
        policies = self._policies_by_id.values()
        stated: JSON = [policy.approval for policy in policies if policy.approval is not None]
        requirements = read_requirements(stated)
        return () if isinstance(requirements, Decision) else requirements

    def evaluate(self, document: bytes) -> object:
        """Return Cedar's decision as a policy's document (cedar.md).

        Raises ``PolicyError``: ``policy.error`` where a policy can't be evaluated or Cedar has no
        type for a value of the input, ``policy.undecided`` where Cedar returns no decision, as for
        a call that the schema does not define, ``policy.panic`` when native code panicked. The
        message leaves out Cedar's own texts, which may quote arguments.
        """
        request, entities = _request(orjson.loads(document))
        try:
            answer = self._cedar.is_authorized(request, self._policies, entities, self._schema)
            decision, diagnostics = answer.decision.value, answer.diagnostics
            errors, reasons = [*diagnostics.errors], [*diagnostics.reasons]
        except BaseException as error:
            if isinstance(error, Exception):
                raise PolicyError("the call can't be put to Cedar") from error
            if type(error).__name__ == "PanicException":  # the binding does not export the class
                message = "Cedar panicked on this call's input; it was not decided"
                raise PolicyError(message, code="policy.panic") from error
            raise
        if decision not in ("Allow", "Deny"):
            message = "Cedar decides nothing about this call: the schema may not know it"
            raise PolicyError(message, code="policy.undecided")
        if errors:
            raise PolicyError(self._failure(errors))
        policies = [self._policies_by_id[reason] for reason in reasons]
        if decision == "Allow" and policies:
            return _permission(policies)
        return {"allow": False, "deny_reasons": [forbid.reason for forbid in policies]}

    def explain(self, document: bytes, code: str) -> str | None:
        """Return Cedar's errors about a call that is refused with this code; None without errors.

        The text may quote arguments: it is for the author of a policy, and is never recorded.
        Raises as ``evaluate`` does.
        """
        if code not in ("policy.undecided", "policy.error"):
            return None
        request, entities = _request(orjson.loads(document))
        answer = self._cedar.is_authorized(request, self._policies, entities, self._schema)
        return "; ".join(map(self._renamed, answer.diagnostics.errors)) or None

    def _renamed(self, error: str) -> str:
        def name(match: re.Match[str]) -> str:
            policy = self._policies_by_id.get(match[1])
            return policy.name if policy is not None else match[0]

        return _POLICY_ID.sub(name, error)

    def close(self) -> None:
        """Do nothing: the engine holds nothing open."""

    def _failure(self, errors: list[str]) -> str:
        ids = {name for error in errors for name in _POLICY_ID.findall(error)}
        named = sorted(
            self._policies_by_id[name].name for name in ids if name in self._policies_by_id
        )
        which = ", ".join(named) or "a policy"
        return f"{which} can't be evaluated for this call: does it ask for what the call has not?"


def _permission(permits: list[CedarPolicy]) -> dict[str, object]:
    approvals = [permit.approval for permit in permits if permit.approval is not None]
    return {"allow": True, "approval": approvals} if approvals else {"allow": True}


def _request(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return Cedar's request and entities; of the entities the agent alone has attributes."""
    context = dict(document)
    agent = _record({} if (said := context.pop("agent", None)) is None else said)
    action, resource = context.pop("action", None), context.pop("resource", None)
    roles = [{"type": "Role", "id": role} for role in agent.get("roles", [])]
    principal = {"type": "Agent", "id": agent.get("name", "")}
    request = {
        "principal": principal,
        "action": {"type": "Action", "id": action or ""},
        "resource": {"type": "Resource", "id": "" if resource is None else resource},
        "context": _record(context),
    }
    entities: list[dict[str, Any]] = [{"uid": principal, "attrs": agent, "parents": roles}]
    entities += [{"uid": role, "attrs": {}, "parents": []} for role in roles]
    entities.append({"uid": request["resource"], "attrs": {}, "parents": []})
    return request, entities


def _record(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without its nulls: Cedar has no null, and ``has`` tests for a member."""
    if not _ESCAPES.isdisjoint(members):
        raise PolicyError("the input has a member that would be more than data to Cedar")
    return {name: _value(value) for name, value in members.items() if value is not None}


def _value(value: Any) -> Any:
    match value:
        case dict():
            return _record(value)
        case list():
            return [_value(item) for item in value]
        case bool() | str():
            return value
        case int() if -(2**63) <= value < 2**63:
            return value
    message = "the input has a value that Cedar has not: a fraction, or null in a list"
    raise PolicyError(message)
