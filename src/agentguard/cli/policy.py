"""``agentguard policy``: check a policy, and ask it about one call, as a guard would.

The application's code is not imported, unless the policy itself is a Python function.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import typer

from agentguard import canonical
from agentguard import config as configuration
from agentguard import policy as rule
from agentguard.cli import screen
from agentguard.cli.place import ConfigOption, JsonOption
from agentguard.config import Config
from agentguard.decision import Decision
from agentguard.engines.rego_source import RegoSource
from agentguard.errors import ConfigError, DecodeError, PolicyError
from agentguard.loading import configured_engine
from agentguard.ports import Engine
from agentguard.tool import RESERVED

app = typer.Typer(no_args_is_help=True, help="Check a policy, and ask it about a call.")

_STRANGE: Final = {
    "agent": {
        "id": "spiffe://agentguard.invalid/agent/nobody/none",
        "name": "nobody",
        "type": "nothing",
        "instance": "none",
    },
    "delegation": None,
    "action": "agentguard_policy_check",
    "resource": None,
    "task_id": None,
    "args": {},
    "tool": {"name": "agentguard_policy_check", "schema_sha256": "0" * 64},
}
"""A call of a tool that no policy has heard of, by an agent that no policy knows."""

_READ: Final = re.compile(r"""(?<![\w.])input(?:\.|\[")([A-Za-z_]\w*)""")

QueryOption = Annotated[
    str | None,
    typer.Option(
        "--query",
        metavar="DATA.PATH",
        help="The package to ask; by default the configuration's, or data.agent.authz.",
    ),
]


@app.command("check")
def check(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH", help="A Rego file or folder; by default the configuration's policy."
        ),
    ] = None,
    *,
    query: QueryOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Load a policy as a guard would.

    Exit code 1 if it can't be used. Warns of one that allows what it can't know, and of each
    member of its input that nothing declares.
    """
    settings = _settings(path, query, config)
    try:
        engine = load(settings)
        strange = _ask(engine, canonical.dumps(_STRANGE))
    except PolicyError as error:
        if json:
            problems = [{"code": error.code, "what": str(error)}]
            screen.json_line({"ok": False, "problems": problems})
        else:
            screen.error(error.code, str(error))
        raise typer.Exit(1) from error
    elsewhere = undeclared(settings, _attributes(config))
    if json:
        screen.json_line(
            {
                "ok": True,
                "engine": {"name": engine.name, "version": engine.version},
                "policy_sha256": engine.policy_sha256,
                "files": dict(engine.policy_files),
                "allows_unknown": strange.allowed,
                "undeclared": elsewhere,
            }
        )
    else:
        _draw(settings, engine)
    if strange.allowed:
        screen.warn("an unknown agent may call an unknown tool: does an allow lack its conditions?")
    for name in elsewhere:
        screen.warn(advice(name))


@app.command("eval")
def evaluate(
    document: Annotated[
        str,
        typer.Argument(metavar="INPUT.json|-", help="The policy's input, or - for stdin."),
    ],
    *,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", metavar="PATH", help="A Rego file or folder, not the configuration's."
        ),
    ] = None,
    query: QueryOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Ask a policy about one call.

    Takes the policy's input document; exit code 1 unless the call is allowed. It is the rule that
    every guarded call goes through: an error of the policy is a denial.
    """
    asked = _document(document)
    engine = load(_settings(policy, query, config))
    decision = _ask(engine, canonical.dumps(asked))
    if json:
        screen.json_line(
            {
                "decision": decision.outcome,
                "code": decision.code,
                "reasons": list(decision.reasons),
                "policy_sha256": engine.policy_sha256,
            }
        )
    else:
        code = f" [{decision.code}]" if decision.code else ""
        screen.line(screen.styled(decision.outcome, f"{decision.outcome}{code}"))
        for reason in decision.reasons:
            screen.line(f"  {reason}")
        if decision.code == "policy.denied" and "action" not in asked:
            screen.line('  the input has no "action", the name of the tool')
    if not decision.allowed:
        raise typer.Exit(1)


def _settings(path: Path | None, query: str | None, config: Path | None) -> Config:
    if path is None:
        settings = configuration.load(config or configuration.find(Path.cwd()))
        written = settings.policy
        if written is None:
            raise ConfigError(f"{settings.source}: policy: expected a table with a path")
        if query is None:
            return settings
        table = {"engine": written.engine, "path": written.path, "query": query}
        return configuration.parse({"policy": table}, source=settings.source, base=settings.base)
    table = {"path": str(path.absolute()), "query": query or rule.DEFAULT_QUERY}
    return configuration.parse({"policy": table}, source="the command line", base=Path.cwd())


def load(settings: Config) -> Engine:
    """Load the policy as a guard does. Raises ``ConfigError`` or ``PolicyError``."""
    try:
        return configured_engine(settings)
    except ConfigError as error:
        raise on_path(error, settings) from error


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
    ``PolicyError`` where the policy can't be read.
    """
    written = settings.policy
    if written is None or written.engine != "rego":
        return []
    source = RegoSource.read(settings.base / Path(written.path).expanduser())
    lines = (line for _, text in source.modules for line in text.splitlines())
    code = (line for line in lines if not line.lstrip().startswith("#"))
    read = {name for line in code for name in _READ.findall(line)}
    return sorted(read - RESERVED - set(attributes))


def declared(settings: Config) -> set[str]:
    """Return the names that ``attributes`` in the configuration put into the policy's input."""
    return {name for tool in settings.tools.values() for name in tool.attributes or ()}


def advice(name: str) -> str:
    """Say what to do about a member of the input that nothing declares."""
    return (
        f"the policy reads input.{name}, which no `attributes` in agentguard.toml names: it must "
        "come from facts or from the code; where it is missing, a deny rule that reads it does "
        f"not fire. Add a rule that denies if not input.{name}, or correct the name"
    )


def _attributes(config: Path | None) -> set[str]:
    try:
        return declared(configuration.load(config or configuration.find(Path.cwd())))
    except ConfigError:
        return set()  # a policy can be checked where there is no configuration


def _ask(engine: Engine, document: bytes) -> Decision:
    try:
        return rule.decide(engine.evaluate(document))
    except PolicyError as error:
        return Decision.refused(str(error), code=error.code)


def _document(document: str) -> dict[str, canonical.JSON]:
    data, name = _read(document), "stdin" if document == "-" else document
    if data.strip() == b"null":
        message = (
            f"{name} holds null: the policy was not asked about that call, which was refused "
            "before; agentguard audit show says why"
        )
        raise DecodeError(message, code="json.not_object")
    try:
        return canonical.loads_object(data)
    except DecodeError as error:
        message = f"{name}: {error}: expected the policy's input, a JSON object"
        raise DecodeError(message, code=error.code) from error


def _read(document: str) -> bytes:
    limit = canonical.MAX_BYTES + 1  # one more than is decoded: too long is found out there
    if document == "-":
        return sys.stdin.buffer.read(limit)
    try:
        with Path(document).open("rb") as file:
            return file.read(limit)
    except OSError as error:
        message = f"{document} can't be read ({error.strerror}): name a JSON file, or - for stdin"
        raise ConfigError(message, code="config.missing") from error


def _draw(settings: Config, engine: Engine) -> None:
    written = settings.policy
    query = written.query if written is not None and written.engine == "rego" else ""
    screen.line(screen.styled("ok", "sound"), f": {engine.name} {engine.version} {query}")
    for file, sha256 in engine.policy_files.items():
        screen.line(f"{sha256}  {file}")
    screen.line(f"policy sha256: {engine.policy_sha256 or 'unknown to this engine'}")
