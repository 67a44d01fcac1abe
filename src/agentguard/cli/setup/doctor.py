"""``agentguard doctor``: checks the set-up of a trust domain.

Each check yields findings with the status ``ok``, ``warn`` or ``fail``, and a text that says what
to do. The command changes nothing and takes no lock; only the import of a graph runs the
application's code. The command decrypts the keys to check the passphrase, and keeps no key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from agentguard import telemetry
from agentguard.audit.state import State
from agentguard.cli.audit import history
from agentguard.cli.audit.verify_report import losses, placed, unanchored
from agentguard.cli.policy import source
from agentguard.cli.setup import (
    doctor_anchor,
    doctor_approvals,
    doctor_graph,
    doctor_secrets,
    doctor_server,
    doctor_tools,
)
from agentguard.cli.setup.doctor_graph import GraphTool
from agentguard.cli.setup.finding import Finding
from agentguard.cli.terminal import client_side, location, screen
from agentguard.cli.terminal.location import Location, from_home
from agentguard.cli.terminal.options import AS_JSON, CONFIG, Option, command
from agentguard.domain import domain, keystore
from agentguard.domain.config import Config, is_inside, load_callable
from agentguard.domain.config.engine_loader import observation_warning
from agentguard.domain.keystore import PASSPHRASE_VARIABLE
from agentguard.domain.passphrase import passphrase_of
from agentguard.domain.verify import examine
from agentguard.errors import AgentguardError, ConfigError
from agentguard.identity.trust import TrustDocument
from agentguard.policy.engine import Engine
from agentguard.storage import journal_secret
from agentguard.storage.files import refuse_links
from agentguard.store import sqlite
from agentguard.telemetry import Settings

_POLICY: Final = "policy"
_DISABLED: Final = "OTEL_SDK_DISABLED"


@command(
    CONFIG,
    Option(
        "--graph MODULE:GRAPH",
        "Also import a graph of the application, or a function that makes a graph, and list which "
        "of its tools are guarded.",
    ),
    AS_JSON,
)
def doctor(*, config: Path | None, graph: str | None, json: bool) -> None:
    """Checks configuration, guard server, policy, rights, keys, anchor, agents, approvers, tools
    and log; exit code 1 if a check fails. With --json, one object: ok, checks (each with status,
    check, what), and for --graph tools (each with tool, where, agents, cached, origin, schema). The
    command imports the functions that the configuration names, as a guard does: set PYTHONPATH as
    there.
    """
    findings = list(_findings(config))
    tools: list[GraphTool] = []
    if graph is not None:
        try:
            tools = doctor_graph.tools_in(graph)
            findings += doctor_graph.findings(graph, tools, location.load(config).tools.tables)
        except AgentguardError as error:
            findings.append(Finding("fail", f"graph {graph}", str(error)))
    ok = all(finding.status != "fail" for finding in findings)
    if json:
        checks = [{"status": f.status, "check": f.check, "what": f.what} for f in findings]
        graph_member = {} if graph is None else {"tools": [tool.as_json() for tool in tools]}
        screen.json_line({"ok": ok, "checks": checks, **graph_member})
    else:
        for f in findings:
            head = screen.padded(screen.styled(f.status, f.status), len("fail"))
            screen.item(head, f"{f.check}: {f.what}")
        if tools:
            doctor_graph.draw(tools)
    if not ok:
        raise SystemExit(1)


def _findings(path: Path | None) -> Iterator[Finding]:
    yield _platform()
    try:
        settings = location.load(path)
    except AgentguardError as error:
        yield Finding("fail", "configuration", str(error))
        return
    yield Finding("ok", "configuration", f"{from_home(Path(settings.source))} loads")
    is_client = client_side.is_client(settings)
    yield from doctor_server.findings(settings, own=not is_client)
    if is_client:  # the server has the rest
        yield from _gateways(settings, own=False)
        yield from _telemetry(settings)
        return
    yield from _agents(settings)
    yield from _functions(settings)
    engine = yield from _policy(settings)
    yield from _inputs(settings, engine)
    yield from doctor_approvals.approvals(settings, engine)
    yield from doctor_secrets.findings(settings)
    if settings.issuers or settings.service is not None:
        from agentguard.cli.setup import doctor_service  # noqa: PLC0415  few have tokens of others

        yield from doctor_service.findings(settings)
    yield from _gateways(settings, own=True)
    if not os.path.lexists(settings.state):
        yield Finding("fail", "state", _no_state(settings))
        yield _passphrase(settings)
        return
    yield _attempt("state", lambda: _state(settings))
    yield _passphrase(settings)
    yield _attempt("keys", lambda: _keys(settings))
    yield from doctor_anchor.findings(settings)
    yield from _telemetry(settings)
    yield from _log(settings)


def _gateways(settings: Config, *, own: bool) -> Iterator[Finding]:
    if settings.mcp:
        from agentguard.cli.setup import doctor_mcp  # noqa: PLC0415  few have a gateway

        yield from doctor_mcp.findings(settings, own=own)


def _attempt(check: str, detail: Callable[[], str]) -> Finding:
    try:
        return Finding("ok", check, detail())
    except (AgentguardError, OSError) as error:
        return Finding("fail", check, str(error))


def _platform() -> Finding:
    if os.name != "posix":
        return Finding("fail", "platform", f"{os.name}: agentguard needs a POSIX system")
    return Finding("ok", "platform", "POSIX")


def _policy(settings: Config) -> Generator[Finding, None, Engine | None]:
    """Load the policy, and return its engine; None where the policy can't be loaded."""
    engine = None
    try:
        engine = source.load(settings)
        yield Finding("ok", "policy", _loaded(engine))
    except ConfigError as error:
        if not isinstance(error.__cause__, ImportError):  # the functions have it already
            yield Finding("fail", "policy", str(error))
    except (AgentguardError, OSError) as error:
        yield Finding("fail", "policy", str(error))
    return engine


def _loaded(engine: Engine) -> str:
    if engine.waits:
        _decision, evaluation = source.probe(engine)
        detail = "without any details"
        if evaluation:
            detail = source.evaluated(evaluation)
        return f"{engine.name} {engine.version} answers: {detail}"
    sha256 = engine.policy_sha256 or "unknown"
    return f"{engine.name} {engine.version} loads the policy; sha256 {sha256}"


def _inputs(settings: Config, engine: Engine | None) -> Iterator[Finding]:
    not_enforced = observation_warning(settings)
    if not_enforced is not None:
        yield Finding("warn", "policy", not_enforced)
    for missing in source.astray(settings):
        yield Finding("warn", "paths", missing)
    if engine is None:
        return
    unknown = source.unknown(engine, settings).values()
    for warning in (*engine.warnings, *unknown):
        yield Finding("warn", "policy", warning)
    for note in source.about_caller(engine):  # the rule that it advises does not end it
        yield Finding("ok", "policy", note)


def _no_state(settings: Config) -> str:
    return (
        f"there is no {from_home(settings.state)}: run agentguard init, which makes the keys and "
        "the log that agentguard.toml names; or restore the state from a backup"
    )


def _state(settings: Config) -> str:
    state = settings.state
    keystore.refuse_if_exposed(state)
    refuse_links(state)
    of_log = state.glob(f"{sqlite.path_in(state).name}*")
    doctor_anchor.require_writable([state, *state.glob("*.lock"), *of_log])
    domain.require_same_domain(settings, keystore.load_trust(state))
    return f"{from_home(state)} is writable, and only by this user"


def _passphrase(settings: Config) -> Finding:
    file = settings.keys.passphrase_file
    if keystore.from_environment() is not None:
        what = (
            f"it comes from {PASSPHRASE_VARIABLE}, which stays in the environment of the parent "
            "process; a passphrase in a file ([keys] passphrase_file) is in no environment"
        )
        return Finding("ok", "passphrase", what)
    if file is None:
        what = f"there is no passphrase: set {PASSPHRASE_VARIABLE} or [keys] passphrase_file"
        return Finding("fail", "passphrase", what)
    if not os.path.lexists(file):
        what = (
            f"there is no file {from_home(file)}: restore it, correct [keys] passphrase_file, or "
            f"set {PASSPHRASE_VARIABLE}"
        )
        return Finding("fail", "passphrase", what)
    if is_inside(file, settings.state):
        what = (
            f"{file} is in the same folder as the keys that it protects: move the file out of "
            f"{settings.state}, and correct [keys] passphrase_file"
        )
        return Finding("fail", "passphrase", what)
    if is_inside(file, settings.base):
        what = (
            f"{file} is beside the configuration: never commit or copy it, or move it to another "
            "folder"
        )
        return Finding("warn", "passphrase", what)
    return Finding("ok", "passphrase", f"{from_home(file)}, outside the state")


def _keys(settings: Config) -> str:
    passphrase = passphrase_of(settings)
    state = settings.state
    keys = {use: keystore.load_key(state, use, passphrase) for use in keystore.LONG_LIVED}
    journal_secret.secret(state, keystore.load_trust(state), keys["log"])
    return f"the passphrase opens each of {', '.join(keystore.LONG_LIVED)}"


def _telemetry(settings: Config) -> Iterator[Finding]:
    """Report where traces go, and which data of calls is in them; no connection is opened."""
    telemetry_settings = settings.telemetry
    where = telemetry_settings.endpoint or next(
        filter(None, map(os.environ.get, telemetry.ENDPOINTS)), None
    )
    if where is None and not telemetry_settings.present:
        what = "not configured, in [telemetry] or OTEL_EXPORTER_OTLP_ENDPOINT"
        yield Finding("ok", "telemetry", what)
        return
    if where is None:
        what = (
            "[telemetry] and OTEL_EXPORTER_OTLP_ENDPOINT name no endpoint: traces are sent only if "
            "the application sets up an exporter"
        )
        yield Finding("ok", "telemetry", what)
    elif not telemetry.is_sent("traces"):
        what = "no traces are sent over OTLP, because OTEL_TRACES_EXPORTER excludes otlp"
        yield Finding("ok", "telemetry", what)
    else:
        finding = _attempt("telemetry", partial(_telemetry_detail, telemetry_settings, where))
        # Without a [telemetry] table a guard opens even if this check fails.
        is_optional_failure = finding.status == "fail" and not telemetry_settings.present
        yield replace(finding, status="warn") if is_optional_failure else finding
    kinds = ("arguments", "results", "reasons")
    contents = [name for name in kinds if getattr(telemetry_settings, name)]
    if contents:
        what = (
            f"{', '.join(contents)} of calls are in the spans, and whoever reads the traces can "
            "read them: set them to false in [telemetry] if that is not intended"
        )
        yield Finding("warn", "telemetry", what)


def _telemetry_detail(telemetry_settings: Settings, where: str) -> str:
    telemetry.require_exporter(telemetry_settings.endpoint or None)
    signals = "traces and metrics" if telemetry_settings.metrics else "traces"
    if os.environ.get(_DISABLED, "").strip().lower() == "true":  # as the SDK reads the variable
        return f"{_DISABLED} disables the SDK of OpenTelemetry: nothing is sent to {where}"
    people = "digests" if telemetry_settings.hash_users else "names"
    return f"{signals} are sent to {where}, with the {people} of people"


def _agents(settings: Config) -> Iterator[Finding]:
    if not settings.agents:
        yield Finding("warn", "agents", "no agent is configured: add a table [agents.NAME]")
    for name, agent in settings.agents.items():
        check = f"agent {name}"
        scope = "every scope" if agent.scope is None else " ".join(sorted(agent.scope))
        if not scope:
            what = (
                "it has no scope, from max_scope or a role: every call of a tool with `requires` "
                "is denied (scope.exceeded); add max_scope or roles to its table"
            )
            yield Finding("warn", check, what)
        elif agent.authority == "delegated":
            what = f"it acts only under a delegation, with a scope of at most {scope}"
            yield Finding("ok", check, what)
        else:
            yield Finding("ok", check, f"it acts on its own authority, with the scope {scope}")


def _functions(settings: Config) -> Iterator[Finding]:
    """Import the functions of the application that the configuration names."""
    policy, where = settings.policy, settings.source
    people = settings.principals if isinstance(settings.principals, str) else None
    decides = policy.path if policy is not None and policy.engine == "function" else None
    named = [
        (_POLICY, "the decisions come from", decides, f"{where}: policy.path"),
        *(
            (f"tool {name}", "the facts come from", tool.look_up, f"{tool.place}.facts")
            for name, tool in settings.tools.tables.items()
        ),
        ("principals", "the roles come from", people, f"{where}: principals"),
        ("agents", "the owners come from", settings.owners, f"{where}: owners"),
        *(
            ("approvals", what, function, f"{where}: approvals.{key}")
            for key, what, function in (
                ("roles", "the roles of approvers come from", settings.approvals.roles),
                ("on_request", "on_request calls", settings.approvals.on_request),
                ("on_expiring", "on_expiring calls", settings.approvals.on_expiring),
                ("on_expired", "on_expired calls", settings.approvals.on_expired),
            )
        ),
    ]
    failed: dict[str, tuple[str, list[str]]] = {}
    for check, what, reference, place in named:
        if reference is None:
            continue
        try:
            load_callable(reference, place)
        except ConfigError as error:
            if isinstance(error.__cause__, ImportError):
                message = str(source.on_path(error, settings))
                failed.setdefault(str(error.__cause__), (message, []))[1].append(check)
            elif check != _POLICY:  # the check of the policy reports its own
                yield Finding("warn", check, str(error))
        else:
            if check != _POLICY:
                yield Finding("ok", check, f"{what} {reference}")
    for message, checks in failed.values():  # one import that fails is one mistake
        first, *others = dict.fromkeys(checks)
        also = f"; it is named for {', '.join(others)} as well" if others else ""
        is_fatal = _POLICY in (first, *others)
        yield Finding("fail" if is_fatal else "warn", first, f"{message}{also}")


def _log(settings: Config) -> Iterator[Finding]:
    anchor = settings.anchor
    log = Location(settings.state, anchor, settings)
    try:
        trust = location.trust_of(log, None)
        reader = log.reader()
        with screen.counter("verifying entry", history.expected(reader)) as count:
            report = examine(reader, trust.document, anchor=anchor, progress=count)
        log_of_tools = doctor_tools.read(reader)
    except AgentguardError as error:
        yield Finding("fail", "log", str(error))
        return
    for problem in report.problems:
        yield Finding("fail", "log", placed(problem))
    if report.ok:
        yield Finding("ok", "log", f"{report.entries} entries are consistent")
    if not report.anchored:
        yield Finding("warn", "log", unanchored(anchor, report))
    for loss in losses(report):  # a note: nothing can bring the entries back
        yield Finding("ok", "log", loss)
    if not trust.outside:
        what = (
            f"UNTRUSTED KEY: the log was verified with {trust.source}, which is part of the state: "
            "pin the keys in an anchor with agentguard trust pin"
        )
        yield Finding("warn", "log", what)
    if report.in_doubt:
        yield Finding("warn", "log", _doubt(report.in_doubt))
    yield from _denials(log, settings, trust.document, is_log_sound=report.ok)
    yield from doctor_approvals.requests(log, settings, trust.document)
    of_gateways: frozenset[str] = frozenset()
    if settings.mcp:
        from agentguard.cli.setup import doctor_mcp  # noqa: PLC0415  few have a gateway

        of_gateways = doctor_mcp.listed(settings, log_of_tools.called)
    yield from doctor_tools.findings(settings, log_of_tools, of_gateways)


def _denials(
    where: Location, settings: Config, trust: TrustDocument, *, is_log_sound: bool
) -> Iterator[Finding]:
    """Report the freeze, and the revoked agents and principals of the configuration."""
    try:
        with closing(where.log(trust)) as log:
            is_frozen, revoked = log.look(partial(_denied, settings))
    except AgentguardError as error:
        if is_log_sound:  # the problems of a damaged log are findings already
            yield Finding("fail", "log", str(error))
        return
    if is_frozen:
        what = "every call is denied (domain.frozen): agentguard thaw ends the freeze"
        yield Finding("warn", "freeze", what)
    for name in settings.agents:
        if f"agent:{name}" in revoked:
            what = "it is revoked: its calls are denied for good; give the agent another name"
            yield Finding("warn", f"agent {name}", what)
    for name in settings.principal_tables:
        if name in revoked:
            what = (
                "it is revoked: every call on its behalf is denied for good; take it out of "
                "[principals]"
            )
            yield Finding("warn", f"principal {name}", what)


def _denied(settings: Config, state: State) -> tuple[bool, set[str]]:
    """Return whether all calls are frozen, and which names of the configuration are revoked."""
    names = [*settings.principal_tables, *(f"agent:{name}" for name in settings.agents)]
    return state.is_frozen, {name for name in names if state.is_refused(name)}


def _doubt(calls: Sequence[str]) -> str:
    count = screen.count(len(calls), "call", "calls")
    more = " (audit verify names the others)" if len(calls) > 1 else ""
    return (
        f"{count} in doubt: find out whether the tool ran: agentguard audit show {calls[0]}{more}"
    )
