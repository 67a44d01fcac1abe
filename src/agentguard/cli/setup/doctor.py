"""``agentguard doctor``: checks the set-up of a trust domain.

Each check yields findings with the status ``ok``, ``warn`` or ``fail``, and a text that says what
to do. The command changes nothing and takes no lock (an imported graph runs the application's
code). It decrypts the keys to check the passphrase, and keeps none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from agentguard import telemetry
from agentguard.audit.calls import Evaluation
from agentguard.audit.log import LogReader
from agentguard.cli.audit import history, phrases
from agentguard.cli.audit.verify_report import losses, unanchored, where
from agentguard.cli.policy import source
from agentguard.cli.setup import doctor_anchor, doctor_approvals, doctor_graph
from agentguard.cli.setup.doctor_graph import GraphTool
from agentguard.cli.setup.finding import Finding
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.location import Location, from_home
from agentguard.cli.terminal.options import ConfigOption, JsonOption
from agentguard.domain import domain, keystore
from agentguard.domain.config import Config, is_inside, load_callable
from agentguard.domain.config.engine_loader import observation_warning, warnings_of
from agentguard.domain.config.spelling import closest_name
from agentguard.domain.passphrase import PASSPHRASE_VARIABLE, passphrase_of
from agentguard.domain.verify import examine
from agentguard.errors import AgentguardError, ConfigError
from agentguard.identity.trust import TrustDocument
from agentguard.storage import journal_secret, ledger, sqlite
from agentguard.telemetry import Settings

_DISABLED: Final = "OTEL_SDK_DISABLED"


def doctor(
    *,
    config: ConfigOption = None,
    graph: Annotated[
        str | None,
        typer.Option(
            "--graph",
            metavar="MODULE:GRAPH",
            help="Also import a graph of the application, or a function that makes one, and list "
            "which of its tools are guarded.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check the setup of a trust domain.

    Looks at configuration, policy, rights, keys, anchor, agents, approvers, tools and log; exit
    code 1 if a check fails. With --json, one object: ok, checks (each with status, check, what),
    and for --graph tools (each with tool, where, agents, cached, origin, schema). Look-ups of facts
    are imported, as a guard does it: set PYTHONPATH as the application has it.
    """
    findings = list(_findings(config))
    tools: list[GraphTool] = []
    if graph is not None:
        try:
            tools = doctor_graph.tools_in(graph)
            findings += doctor_graph.findings(graph, tools, location.load(config).tools)
        except AgentguardError as error:
            findings.append(Finding("fail", f"graph {graph}", str(error)))
    ok = all(finding.status != "fail" for finding in findings)
    if json:
        checks = [{"status": f.status, "check": f.check, "what": f.what} for f in findings]
        listed = {} if graph is None else {"tools": [tool.as_json() for tool in tools]}
        screen.json_line({"ok": ok, "checks": checks, **listed})
    else:
        for f in findings:
            head = screen.padded(screen.styled(f.status, f.status), len("fail"))
            screen.item(head, f"{f.check}: {f.what}")
        if tools:
            doctor_graph.draw(tools)
    if not ok:
        raise typer.Exit(1)


def _findings(path: Path | None) -> Iterator[Finding]:
    yield _platform()
    try:
        settings = location.load(path)
    except AgentguardError as error:
        yield Finding("fail", "configuration", str(error))
        return
    yield Finding("ok", "configuration", f"{from_home(Path(settings.source))} loads")
    yield from _agents(settings)
    yield from _facts(settings)
    yield _attempt("policy", lambda: _policy(settings))
    yield from _inputs(settings)
    yield from doctor_approvals.approvals(settings)
    yield _attempt("state", lambda: _state(settings))
    yield _passphrase(settings)
    yield _attempt("keys", lambda: _keys(settings))
    yield from doctor_anchor.findings(settings)
    yield from _telemetry(settings)
    yield from _log(settings)


def _attempt(check: str, detail: Callable[[], str]) -> Finding:
    try:
        return Finding("ok", check, detail())
    except (AgentguardError, OSError) as error:
        return Finding("fail", check, str(error))


def _platform() -> Finding:
    if os.name != "posix":
        return Finding("fail", "platform", f"{os.name}: agentguard needs a POSIX system")
    return Finding("ok", "platform", "POSIX")


def _policy(settings: Config) -> str:
    engine = source.load(settings)
    if engine.waits:
        _decision, evaluation = source.probe(engine)
        detail = phrases.evaluated(Evaluation.parse(evaluation)) if evaluation else "no more"
        return f"{engine.name} {engine.version} answers: {detail}"
    return f"{engine.name} {engine.version} loads it; sha256 {engine.policy_sha256 or 'unknown'}"


def _inputs(settings: Config) -> Iterator[Finding]:
    not_enforced = observation_warning(settings)
    if not_enforced is not None:
        yield Finding("warn", "policy", not_enforced)
    for missing in source.astray(settings):
        yield Finding("warn", "paths", missing)
    try:
        warnings = warnings_of(source.load(settings))
        names = source.undeclared(settings, source.declared(settings))
    except AgentguardError:
        return  # the check of the policy has reported the error
    for warning in warnings:
        yield Finding("warn", "policy", warning)
    for name in names:
        yield Finding("warn", "policy", source.advice(name))


def _state(settings: Config) -> str:
    state, shards = settings.state, settings.state / sqlite.FOLDER
    keystore.refuse_if_exposed(state)
    domain.refuse_links(state)
    below = shards.iterdir() if shards.is_dir() else ()
    doctor_anchor.require_writable([state, *state.glob("*.lock"), shards, *below])
    domain.require_same_domain(settings, keystore.load_trust(state))
    return f"{from_home(state)} is this user's alone, and can be written"


def _passphrase(settings: Config) -> Finding:
    file = settings.passphrase_file
    if keystore.from_environment() is not None:
        what = (
            f"it comes from {PASSPHRASE_VARIABLE}, which stays in the environment of the process "
            "that started this one; a file of [keys] passphrase_file is in none"
        )
        return Finding("ok", "passphrase", what)
    if file is None:
        what = f"there is none at hand: set {PASSPHRASE_VARIABLE} or [keys] passphrase_file"
        return Finding("fail", "passphrase", what)
    if not os.path.lexists(file):
        what = (
            f"there is no {from_home(file)}: restore it, correct [keys] passphrase_file, or set "
            f"{PASSPHRASE_VARIABLE}"
        )
        return Finding("fail", "passphrase", what)
    if is_inside(file, settings.state):
        what = f"{file} lies with the keys that it protects: move it out of {settings.state}"
        return Finding("fail", "passphrase", what)
    if is_inside(file, settings.base):
        what = f"{file} lies beside the configuration: see that it is never committed or copied"
        return Finding("warn", "passphrase", what)
    return Finding("ok", "passphrase", f"{from_home(file)}, outside the state")


def _keys(settings: Config) -> str:
    passphrase = passphrase_of(settings)
    state = settings.state
    keys = {use: keystore.load_key(state, use, passphrase) for use in keystore.LONG_LIVED}
    journal_secret.secret(state, keystore.load_trust(state), keys["log"])
    return f"{', '.join(keystore.LONG_LIVED)}: each opens with the passphrase"


def _telemetry(settings: Config) -> Iterator[Finding]:
    """Report where traces go and what they hold of calls, without a connection to the endpoint."""
    telemetry_settings = settings.telemetry
    where = telemetry_settings.endpoint or next(
        filter(None, map(os.environ.get, telemetry.ENDPOINTS)), None
    )
    if where is None and not telemetry_settings.present:
        what = "none is set up here, in [telemetry] or OTEL_EXPORTER_OTLP_ENDPOINT"
        yield Finding("ok", "telemetry", what)
        return
    if where is None:
        what = "no endpoint, here or in OTEL_EXPORTER_OTLP_ENDPOINT: the application sends, or none"
        yield Finding("ok", "telemetry", what)
    elif not telemetry.is_sent("traces"):
        yield Finding("ok", "telemetry", "OTEL_TRACES_EXPORTER has no traces sent over OTLP")
    else:
        finding = _attempt("telemetry", partial(_telemetry_detail, telemetry_settings, where))
        # without a [telemetry] table a guard opens all the same
        is_optional_failure = finding.status == "fail" and not telemetry_settings.present
        yield replace(finding, status="warn") if is_optional_failure else finding
    contents = [name for name in ("arguments", "results") if getattr(telemetry_settings, name)]
    if contents:
        what = f"{' and '.join(contents)} of calls are in the spans: who reads traces reads them"
        yield Finding("warn", "telemetry", what)


def _telemetry_detail(telemetry_settings: Settings, where: str) -> str:
    telemetry.require_exporter(telemetry_settings.endpoint or None)
    signals = "traces and metrics" if telemetry_settings.metrics else "traces"
    if os.environ.get(_DISABLED, "").strip().lower() == "true":  # as the SDK reads it
        return f"{_DISABLED} has OpenTelemetry's SDK disabled: nothing is sent to {where}"
    whom = "people by digests" if telemetry_settings.hash_users else "people by name"
    return f"{signals} are configured to go to {where}, with {whom}"


def _agents(settings: Config) -> Iterator[Finding]:
    if not settings.agents:
        yield Finding("warn", "agents", "none is configured: add an [agents.NAME] table")
    for name, agent in settings.agents.items():
        check = f"agent {name}"
        scope = " ".join(sorted(agent.scope or ()))
        if not scope:
            what = (
                "neither max_scope nor a role gives it any scope: every tool with `requires` is "
                "denied to it (scope.exceeded)"
            )
            yield Finding("warn", check, what)
        elif agent.authority == "delegated":
            what = f"acts under a delegation only, and then with no more than {scope}"
            yield Finding("ok", check, what)
        else:
            yield Finding("ok", check, f"own authority over {scope}")


def _facts(settings: Config) -> Iterator[Finding]:
    for name, tool in settings.tools.items():
        if tool.facts is None:
            continue
        check = f"tool {name}"
        try:
            load_callable(tool.facts, tool.where)
        except ConfigError as error:
            yield Finding("warn", check, str(source.on_path(error, settings)))
        else:
            yield Finding("ok", check, f"its facts come from {tool.facts}")


def _log(settings: Config) -> Iterator[Finding]:
    anchor = settings.anchor
    log = Location(settings.state, anchor, settings)
    try:
        trust = location.trust(log, None)
        reader = log.reader()
        with screen.counter("verifying entry", history.expected(reader)) as count:
            report = examine(reader, trust.document, anchor=anchor, progress=count)
        called = _called(reader)
    except AgentguardError as error:
        yield Finding("fail", "log", str(error))
        return
    for problem in report.problems:
        yield Finding("fail", "log", f"{where(problem)}: {problem.what}")
    if report.ok:
        yield Finding("ok", "log", f"{report.entries} entries are consistent")
    if not report.anchored:
        yield Finding("warn", "log", unanchored(anchor, report))
    for loss in losses(report):
        yield Finding("warn", "log", loss)
    if not trust.outside:
        yield Finding("warn", "log", f"UNTRUSTED KEY: checked with {trust.source} itself")
    if report.in_doubt:
        yield Finding("warn", "log", _doubt(report.in_doubt))
    yield from _restrictions(settings, trust.document, whole=report.ok)
    yield from doctor_approvals.requests(settings, trust.document)
    yield from _tools(settings, called)
    yield from _scopes(settings, called)


def _restrictions(settings: Config, trust: TrustDocument, *, whole: bool) -> Iterator[Finding]:
    """Report the freeze, and the revoked agents and principals of the configuration."""
    try:
        restrictions = ledger.current(settings.state, settings.anchor, trust)
    except AgentguardError as error:
        if whole:  # for a damaged log, the problems are findings already
            yield Finding("fail", "log", str(error))
        return
    if restrictions.frozen:
        what = "every call is denied (domain.frozen): agentguard thaw lets them go on"
        yield Finding("warn", "freeze", what)
    for name in settings.agents:
        if f"agent:{name}" in restrictions.revoked:
            what = "revoked, so that its calls are denied, for good: configure another name"
            yield Finding("warn", f"agent {name}", what)
    for name in settings.principals or ():
        if name in restrictions.revoked:
            what = "revoked, so that what is done for it is denied, for good"
            yield Finding("warn", f"principal {name}", what)


def _called(reader: LogReader) -> set[str]:
    """Return the tools that were called, from columns that were verified with the entries."""
    summaries = (stored.summary for shard in reader.shards() for stored in reader.stored(shard))
    return {about.tool for about in summaries if about is not None and about.tool is not None}


def _doubt(calls: Sequence[str]) -> str:
    count = "1 call" if len(calls) == 1 else f"{len(calls)} calls"
    more = " (audit verify names the others)" if len(calls) > 1 else ""
    return f"{count} in doubt: find out what happened: agentguard audit show {calls[0]}{more}"


def _tools(settings: Config, called: set[str]) -> Iterator[Finding]:
    redacted = settings.redactions.keys() - {"*"}
    if not called:
        if settings.tools or redacted:
            yield Finding("ok", "tools", "no call is recorded yet: nothing to compare with")
        return
    for name in settings.tools:
        if name in called:
            yield Finding("ok", f"tool {name}", "called before")
        else:
            yield Finding("warn", f"tool {name}", _unmatched(f"[tools.{name}]", name, called))
    names = called | settings.tools.keys()
    for name in sorted(redacted - names):
        what = _unmatched(f"{name} in [redact]", name, names)
        yield Finding("warn", f"redact {name}", f"{what}; what it names is not redacted")


def _unmatched(where: str, name: str, names: set[str]) -> str:
    tool = closest_name(name, sorted(names))
    suggestion = f"is {tool} meant?" if tool else "compare the name with the tool's"
    return f"{where} matches nothing so far: {suggestion}"


def _scopes(settings: Config, called: set[str]) -> Iterator[Finding]:
    """Compare the scopes that the configured tools require with the scopes of the agents."""
    scopes = {scope for agent in settings.agents.values() for scope in agent.scope or ()}
    for name, tool in settings.tools.items():
        for scope in sorted({*(tool.requires or ())} - scopes):
            what = (
                f"requires {scope}, which no agent has, by max_scope or a role: each call is "
                "denied (scope.exceeded)"
            )
            yield Finding("warn", f"tool {name}", what)
    beside = " or [delegation] says who may" if settings.delegatees is not None else ""
    for name in sorted(called):
        configured = settings.tools.get(name)
        if configured is None or not configured.requires:
            what = (
                f"called, no requires in agentguard.toml: unless the code names a scope{beside}, "
                f"every agent may ask for it and the policy alone decides; add it to [tools.{name}]"
            )
            yield Finding("warn", f"tool {name}", what)
