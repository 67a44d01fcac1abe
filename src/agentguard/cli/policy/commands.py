"""``agentguard policy check`` and ``agentguard policy eval``.

The commands do not import the application's code, unless the policy is a Python function.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.text import Text

from agentguard.cli.audit import phrases
from agentguard.cli.policy import hints, source
from agentguard.cli.terminal import files, location, screen
from agentguard.cli.terminal.options import (
    AS_JSON,
    CONFIG,
    PATH,
    POLICY,
    QUERY,
    Argument,
    command,
    policy_path,
)
from agentguard.domain.config import Config
from agentguard.domain.config.engine_loader import observation_warning
from agentguard.errors import ConfigError, DecodeError, PolicyError, StorageError
from agentguard.policy.engine import Engine
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON


@command(
    Argument(
        "path",
        "PATH",
        "A file or folder in Rego or Cedar; by default the configuration's policy.",
        type=policy_path,
        required=False,
    ),
    QUERY,
    CONFIG,
    AS_JSON,
)
def check(*, path: Path | None, query: str | None, config: Path | None, json: bool) -> None:
    """Exit code 1 if the policy can't be used. Warns of a policy that allows unknown calls, of
    likely mistakes in it, and of each member of its input that agentguard.toml does not name.
    """
    settings = source.chosen(path, query, config)
    try:
        engine = source.load(settings)
        unknown_call, evaluation = source.probe(engine)
    except PolicyError as error:
        _print_problem(error, json=json)
        raise SystemExit(1) from error
    warnings = [*engine.warnings, *source.astray(settings)]
    nearest = _nearest(config)
    undeclared = source.unknown(engine, nearest)
    if json:
        screen.json_line(
            {
                "ok": True,
                "engine": {"name": engine.name, "version": engine.version},
                "policy_sha256": engine.policy_sha256,
                "evaluation": evaluation,
                "files": dict(engine.policy_files),
                "allows_unknown": unknown_call.allowed,
                "warnings": warnings,
                "undeclared": list(undeclared),
            }
        )
    else:
        _draw(settings, engine, evaluation)
    if unknown_call.allowed:
        screen.warn("an unknown agent may call an unknown tool: does an allow lack its conditions?")
    observation = observation_warning(settings)
    advice = [*source.about_caller(engine), *undeclared.values()]
    for warning in (*warnings, *filter(None, [observation]), *advice):
        screen.warn(warning)


@command(
    Argument("document", "INPUT.json|-", "The policy's input, or - for stdin.", type=PATH),
    POLICY,
    QUERY,
    CONFIG,
    AS_JSON,
)
def evaluate(
    *, document: Path, policy: Path | None, query: str | None, config: Path | None, json: bool
) -> None:
    """Takes the policy's input document, or what agentguard audit show --json prints of a call. The
    decision is made as for a guarded call: an error of the policy is a denial. Exit code 1 unless
    the call is allowed.
    """
    members = _document(document)
    settings = source.chosen(policy, query, config)
    engine = source.load(settings)
    decision, evaluation = source.ask(engine, canonical.dumps(members))
    if json:
        screen.json_line(
            {
                "decision": decision.outcome,
                "code": decision.code,
                "reasons": list(decision.reasons),
                "policy_sha256": engine.policy_sha256,
                "evaluation": evaluation,
            }
        )
    else:
        code = f" [{decision.code}]" if decision.code else ""
        screen.line(screen.styled(decision.outcome, f"{decision.outcome}{code}"))
        reasons = decision.reasons
        if decision.code not in ("", "policy.denied"):
            reasons = (source.explained(engine, decision, canonical.dumps(members)),)
        for reason in (*reasons, *hints.about(members, decision, settings, settings)):
            screen.item("  ", reason)
        if decision.code == "policy.denied" and "action" not in members:
            screen.item("  ", 'the input has no "action", the name of the tool')
    if not decision.allowed:
        raise SystemExit(1)


def _nearest(config: Path | None) -> Config | None:
    """Return the configuration; None without one, because a policy can be checked alone."""
    try:
        return location.load(config)
    except ConfigError:
        return None


def _document(document: Path) -> dict[str, canonical.JSON]:
    data, name = _read(document), "stdin" if files.is_stream(document) else document
    if data.strip() == b"null":
        message = (
            f"{name} holds null: the policy was not asked about that call, which was refused "
            "before; agentguard audit show says why"
        )
        raise DecodeError(message, code="json.not_object")
    try:
        members = canonical.loads_object(data)
        return _recorded_input(members, str(name)) if "invocation_id" in members else members
    except DecodeError as error:
        message = f"{name}: {error}: expected the policy's input, a JSON object"
        raise DecodeError(message, code=error.code) from error


def _recorded_input(members: dict[str, JSON], name: str) -> dict[str, JSON]:
    """Return the policy's input of a call on record, from what ``audit show --json`` prints."""
    recorded = members.get("input")
    if "action" in members or "config_sha256" not in members:
        return members  # a policy's input with a member that has this name
    if isinstance(recorded, dict):
        return recorded
    message = (
        f"{name}: the policy was not asked about this call, or its input was erased; agentguard "
        "audit show says why"
    )
    raise DecodeError(message, code="json.not_object")


def _read(document: Path) -> bytes:
    try:
        # one byte over the limit, so that decoding refuses a longer file
        return files.read_or_stdin(document, canonical.MAX_BYTES + 1)
    except StorageError as error:
        raise ConfigError(str(error), code="config.missing") from error


def _print_problem(error: PolicyError, *, json: bool) -> None:
    what = phrases.with_query(str(error))
    if json:
        screen.json_line({"ok": False, "problems": [{"code": error.code, "what": what}]})
    else:
        screen.error(error.code, what)


def _draw(settings: Config, engine: Engine, evaluation: Mapping[str, JSON] | None) -> None:
    policy_config = settings.policy
    query = (
        policy_config.query
        if policy_config is not None and policy_config.engine in ("rego", "opa")
        else ""
    )
    what = " ".join(filter(None, (engine.name, engine.version, query)))
    screen.line(screen.styled("ok", "sound"), f": {what}")
    for file, sha256 in engine.policy_files.items():
        screen.line(Text(f"{sha256}  "), str(file))
    screen.line(f"policy sha256: {engine.policy_sha256 or 'unknown to this engine'}")
    if evaluation is not None:
        screen.line(f"evaluated {source.evaluated(evaluation)}")
