"""Loads the configured policy and asks it about calls, for the commands ``policy`` and ``doctor``.

It also finds the members of the policy's input that no tool of the configuration declares.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from agentguard.audit.kinds.calls import EvaluationReport
from agentguard.call.decision import Decision
from agentguard.cli.audit import phrases
from agentguard.cli.terminal import location
from agentguard.domain.config import Config, parse
from agentguard.domain.config.engine_loader import configured_engine
from agentguard.domain.config.policy import PolicyConfig
from agentguard.errors import ConfigError, PolicyError
from agentguard.policy import cedar_source
from agentguard.policy import document as policy
from agentguard.policy.engine import Engine, Explains
from agentguard.policy.names import Names, ReadsInput
from agentguard.signing import canonical, declared
from agentguard.signing.canonical import JSON

_UNKNOWN_CALL: Final = {
    "agent": {
        "id": "spiffe://agentguard.invalid/agent/nobody/none",
        "name": "nobody",
        "type": "nothing",
        "instance": "none",
        "roles": [],
    },
    "delegation": None,
    "action": "agentguard_policy_check",
    "resource": None,
    "task_id": None,
    "args": {},
    "tool": {"name": "agentguard_policy_check", "schema_sha256": "0" * 64},
}
"""The input for a call by an agent and of a tool whose names no policy has."""

_INTENDED_CODES: Final = frozenset({"", "approval.required", "policy.denied"})
"""The codes of a policy's own decisions: allow, approval, deny."""


def chosen(path: Path | None, query: str | None, config: Path | None) -> Config:
    """Return the nearest configuration, or one with the policy at ``path`` alone.

    Raises ``ConfigError``.
    """
    if path is None:
        settings = location.load(config)
        policy_config = policy_of(settings)
        if query is None:
            return settings
        return replace(settings, policy=replace(policy_config, query=query))
    table = {
        "engine": "cedar" if cedar_source.is_policy(path) else "rego",
        "path": str(path.absolute()),
        "query": query or policy.DEFAULT_QUERY,
    }
    return parse({"policy": table}, source="the command line", base=Path.cwd())


def at_server(url: str, query: str | None) -> Config:
    """Return the configuration of a policy on an OPA server; raises ``ConfigError``."""
    table = {"engine": "opa", "url": url, "query": query or policy.DEFAULT_QUERY}
    return parse({"policy": table}, source="the command line", base=Path.cwd())


def policy_of(settings: Config) -> PolicyConfig:
    """Return the policy table of a configuration; raises ``ConfigError`` if there is none."""
    if settings.policy is None:
        raise ConfigError(f"{settings.source}: policy: expected a table with a path")
    return settings.policy


def load(settings: Config) -> Engine:
    """Load the policy as a guard does. Raises ``ConfigError`` or ``PolicyError``."""
    try:
        return configured_engine(settings)
    except ConfigError as error:
        raise on_path(error, settings) from error.__cause__


def ask(engine: Engine, document: bytes) -> tuple[Decision, Mapping[str, JSON] | None]:
    """Decide one call as a guard does; return the decision, and the server's evaluation if any."""
    try:
        answer = engine.evaluate(document)
    except PolicyError as error:
        return Decision.of_error(error), None
    return policy.decide(answer), policy.evaluation_of(answer)


def evaluated(evaluation: Mapping[str, JSON]) -> str:
    """Describe what a policy's server reports of an evaluation; raises ``DecodeError``."""
    what = "what a server says of an evaluation"
    report = declared.read(EvaluationReport, dict(evaluation), what, code="entry.malformed")
    return phrases.evaluated(report)


def surely(engine: Engine, document: bytes) -> Decision:
    """Decide one call of several; raises ``PolicyError`` where a server does not answer."""
    decision, _evaluation = ask(engine, document)
    if engine.waits and decision.code.startswith("engine."):
        why = explained(engine, decision, document)
        message = f"{why}; not every call was put to the policy: run this again"
        raise PolicyError(message, code=decision.code)
    return decision


def probe(engine: Engine) -> tuple[Decision, Mapping[str, JSON] | None]:
    """Decide a call by an unknown agent of an unknown tool.

    Raises ``PolicyError`` where a server does not answer, has no such policy, or gives an answer
    that is no decision: such an answer denies every call.
    """
    decision, evaluation = _require_policy(engine)
    if engine.waits and decision.code not in _INTENDED_CODES:
        why = explained(engine, decision, canonical.dumps(_UNKNOWN_CALL))
        message = f"{why} (it was asked about an unknown tool, without resource and arguments)"
        raise PolicyError(message, code=decision.code)
    return decision, evaluation


def require_policy(engine: Engine) -> None:
    """Raise ``PolicyError`` where a server does not answer, or has no such policy."""
    if engine.waits:
        _require_policy(engine)


def _require_policy(engine: Engine) -> tuple[Decision, Mapping[str, JSON] | None]:
    document = canonical.dumps(_UNKNOWN_CALL)
    decision, evaluation = ask(engine, document)
    if engine.waits and decision.code.startswith(("engine.", "policy.undefined")):
        raise PolicyError(explained(engine, decision, document), code=decision.code)
    return decision, evaluation


def explained(engine: Engine, decision: Decision, document: bytes) -> str:
    """Return a denial's reason, with the explanation of an engine that has one (``Explains``)."""
    more = None
    if isinstance(engine, Explains) and decision.code not in ("", "policy.denied"):
        with suppress(PolicyError):  # the reason alone has to do
            more = engine.explain(document, decision.code)
    return f"{decision.reason}: {more}" if more else decision.reason


def on_path(error: ConfigError, settings: Config) -> ConfigError:
    """Add the remedy (PYTHONPATH) to an error about a module that can't be imported."""
    if not isinstance(error.__cause__, ImportError) or error.code != ConfigError.default_code:
        return error
    folder = shlex.quote(str(settings.base))
    message = f"{error}; where it lies beside agentguard.toml, set PYTHONPATH={folder}"
    return ConfigError(message, code=error.code)


def unknown(engine: Engine, settings: Config | None) -> dict[str, str]:
    """Return the members of the input that the policy reads and no table of a configuration gives.

    The names below ``input`` come with a warning each. The code of the tools may give them.
    """
    names = Names(engine, settings.given_names if settings is not None else ())
    return {
        ".".join(path): f"{why}. Until a tool in the code gives it, each call is denied"
        for path, why in names.unknown.items()
    }


def astray(settings: Config) -> list[str]:
    """Return a warning for each folder of ``[paths]`` that does not exist."""
    return [
        f"paths.{argument}: there is no folder {folder.root}: make the folder, or correct the path"
        for argument, folder in settings.paths.items()
        if not folder.root.is_dir()
    ]


def about_caller(engine: Engine) -> Iterator[str]:
    """Yield the note about a policy that reads the caller, whom few calls have."""
    if isinstance(engine, ReadsInput) and any(path[:1] == ("caller",) for path in engine.reads):
        yield (
            "the policy reads input.caller, which a guarded MCP server gives, and a gateway that "
            "asks for proofs: for other calls a deny rule that reads it does not fire. Add a rule "
            "that denies if not input.caller"
        )
