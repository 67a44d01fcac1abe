"""The configured policy: loaded as a guard does it, and what of its input nothing declares.

For the commands of ``policy`` and ``doctor``, which say it in their own ways.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from agentguard import paths
from agentguard.call.decision import Decision
from agentguard.call.tool import RESERVED
from agentguard.cli.terminal import location
from agentguard.domain.config import Config, parse, resolve
from agentguard.domain.config.engine import configured_engine
from agentguard.domain.config.policy import PolicyConfig
from agentguard.errors import ConfigError, PolicyError
from agentguard.policy import cedar_source
from agentguard.policy import document as policy
from agentguard.policy.engine import Engine, Explains
from agentguard.policy.rego import RegoSource
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON

_STRANGE: Final = {
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
"""A call of a tool that no policy has heard of, by an agent that no policy knows."""

_MEANT: Final = frozenset({"", "approval.required", "policy.denied"})
"""Of what a policy means to say: that it allows, asks people, or denies."""

_READ: Final = re.compile(r"""(?<![\w.])input(?:\.|\[")([A-Za-z_]\w*)""")


def chosen(path: Path | None, query: str | None, config: Path | None) -> Config:
    """Return the configuration whose policy is asked: the nearest one, or one of a path alone.

    Raises ``ConfigError``.
    """
    if path is None:
        settings = location.load(config)
        written = policy_of(settings)
        if query is None:
            return settings
        return replace(settings, policy=replace(written, query=query))
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
    """Return what a configuration says of its policy; raises ``ConfigError`` if it names none."""
    if settings.policy is None:
        raise ConfigError(f"{settings.source}: policy: expected a table with a path")
    return settings.policy


def load(settings: Config) -> Engine:
    """Load the policy as a guard does. Raises ``ConfigError`` or ``PolicyError``."""
    try:
        return configured_engine(settings)
    except ConfigError as error:
        raise on_path(error, settings) from error


def ask(engine: Engine, document: bytes) -> tuple[Decision, Mapping[str, JSON] | None]:
    """Ask about one call, by the rule of every guarded call; with what a server says of it."""
    try:
        answer = engine.evaluate(document)
    except PolicyError as error:
        return Decision.refusal(str(error), code=error.code), None
    return policy.decide(answer), policy.evaluation_of(answer)


def surely(engine: Engine, document: bytes) -> Decision:
    """Ask about one call of several; raises ``PolicyError`` where a server does not answer."""
    decision, _evaluation = ask(engine, document)
    if engine.waits and decision.code.startswith("engine."):
        why = explained(engine, decision, document)
        message = f"{why}; not every call was put to the policy: run this again"
        raise PolicyError(message, code=decision.code)
    return decision


def probe(engine: Engine) -> tuple[Decision, Mapping[str, JSON] | None]:
    """Ask about a call that no policy has heard of.

    Raises ``PolicyError`` where a server does not answer, has no such policy, or gives an answer
    that no policy means to give: each of its calls might be denied for it.
    """
    decision, evaluation = _require_policy(engine)
    if engine.waits and decision.code not in _MEANT:
        why = explained(engine, decision, canonical.dumps(_STRANGE))
        message = f"{why} (it was asked about an unknown tool, without resource and arguments)"
        raise PolicyError(message, code=decision.code)
    return decision, evaluation


def require_policy(engine: Engine) -> None:
    """Raise ``PolicyError`` where a server does not answer, or has no such policy.

    What else it may say is said of each call that it is asked about.
    """
    if engine.waits:
        _require_policy(engine)


def _require_policy(engine: Engine) -> tuple[Decision, Mapping[str, JSON] | None]:
    document = canonical.dumps(_STRANGE)
    decision, evaluation = ask(engine, document)
    if engine.waits and decision.code.startswith(("engine.", "policy.undefined")):
        raise PolicyError(explained(engine, decision, document), code=decision.code)
    return decision, evaluation


def explained(engine: Engine, decision: Decision, document: bytes) -> str:
    """Return a denial's reason, with what its engine has to say beyond that (``Explains``)."""
    more = None
    if isinstance(engine, Explains) and decision.code not in ("", "policy.denied"):
        with suppress(PolicyError):  # the reason says it
            more = engine.explain(document, decision.code)
    return f"{decision.reason}: {more}" if more else decision.reason


def on_path(error: ConfigError, settings: Config) -> ConfigError:
    """Return the error that says how the command line comes to import what it could not."""
    if not isinstance(error.__cause__, ImportError) or error.code != ConfigError.default_code:
        return error
    folder = shlex.quote(str(settings.base))
    message = f"{error}; where it lies beside agentguard.toml, set PYTHONPATH={folder}"
    return ConfigError(message, code=error.code)


def undeclared(settings: Config, attributes: Iterable[str]) -> list[str]:
    """Return the members of its input that a Rego policy reads and no one is known to provide.

    They are looked for in the text, so that one behind a variable is not found. Raises
    ``ConfigError`` or ``PolicyError`` where the policy can't be read.
    """
    written = settings.policy
    if written is None or written.engine != "rego":
        return []
    source = RegoSource.read(resolve(settings.base, written.path))
    lines = (line for _, text in source.modules for line in text.split("\n"))
    code = (line for line in lines if not line.lstrip().startswith("#"))
    read = {name for line in code for name in _READ.findall(line)}
    return sorted(read - RESERVED - set(attributes))


def declared(settings: Config) -> set[str]:
    """Return the names that the configuration's tools put into the policy's input."""
    tools = settings.tools.values()
    named = {name for tool in tools for name in tool.attributes or ()}
    return named | ({paths.FACT} if settings.paths else set())


def astray(settings: Config) -> list[str]:
    """Say of each folder of ``[paths]`` that is not there that there is none."""
    return [
        f"paths.{argument}: there is no folder {folder.root}: make the folder, or correct the path"
        for argument, folder in settings.paths.items()
        if not folder.root.is_dir()
    ]


def advice(name: str) -> str:
    """Say what to do about a member of the input that nothing declares."""
    return (
        f"the policy reads input.{name}, which no `attributes` in agentguard.toml names: it must "
        "come from facts or from the code; where it is missing, a deny rule that reads it does "
        f"not fire. Add a rule that denies if not input.{name}, or correct the name"
    )
