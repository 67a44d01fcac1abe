"""``agentguard policy test``: what a policy says of the cases beside it, and its own Rego tests.

Cases are asked by the rule that every guarded call goes through, whatever the engine; they are read
in ``policy_cases.py``. Rego's ``test_`` rules are run by OPA (``opa_tests.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from agentguard.canonical import JSON
from agentguard.cli import location, opa_tests, policy_cases, policy_source, screen
from agentguard.cli.opa_tests import RegoTest
from agentguard.cli.options import ConfigOption, JsonOption, PolicyOption, QueryOption
from agentguard.cli.policy_cases import Case
from agentguard.config import Config, resolve
from agentguard.decision import Decision
from agentguard.errors import ConfigError
from agentguard.ports import Engine

_COLUMNS = ("", "expected", "got", "case")


@dataclass(frozen=True, slots=True)
class _Tried:
    """A case, what the policy said of it, and why in the words of its engine."""

    case: Case
    decided: Decision
    why: str

    @classmethod
    def by(cls, engine: Engine, case: Case) -> _Tried:
        """Ask the engine about a case; raises ``PolicyError`` where nobody answers."""
        decided = policy_source.surely(engine, case.document)
        return cls(case, decided, policy_source.explained(engine, decided, case.document))

    @property
    def ok(self) -> bool:
        return self.case.holds(self.decided)

    def as_json(self) -> dict[str, JSON]:
        case, decided = self.case, self.decided
        reasons: JSON = None if case.reasons is None else [*case.reasons]
        return {
            "file": str(case.file),
            "name": case.name,
            "ok": self.ok,
            "expected": {"decision": case.decision, "code": case.code, "reasons": reasons},
            "got": {
                "decision": decided.outcome,
                "code": decided.code,
                "reasons": [*decided.reasons],
            },
        }


@dataclass(frozen=True, slots=True)
class _Tests:
    """What there is to run: tables of cases, and files with Rego tests."""

    tables: Sequence[Path]
    rego: Sequence[Path]


def run_tests(
    tables: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="TABLE",
            help="Tables of cases (TOML or JSON); by default *_test.toml and *_test.json beside "
            "the policy, and its *_test.rego.",
        ),
    ] = None,
    *,
    policy: PolicyOption = None,
    query: QueryOption = None,
    opa: Annotated[
        str | None,
        typer.Option("--opa", metavar="PROGRAM", help="Runs Rego's tests; by default opa on PATH."),
    ] = None,
    require_opa: Annotated[
        bool, typer.Option("--require-opa", help="Exit code 1 where Rego tests are skipped.")
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Test a policy.

    Asks it about each case of the tables, and has OPA run the tests that are written in Rego. Exit
    code 1 if one fails, or if nothing ran at all.
    """
    settings = policy_source.chosen(policy, query, config)
    found = _Tests(tables, ()) if tables else _beside(settings)
    described = _described(settings, config)
    cases = [case for table in found.tables for case in policy_cases.read(table, described)]
    tried = _tried(settings, cases) if cases else []
    rego, skipped = _rego(settings, found.rego, opa)
    failed = sum(not one.ok for one in tried) + sum(one.passed is False for one in rego)
    ran = len(tried) + sum(one.passed is not None for one in rego)
    ok = ran > 0 and not failed and not (require_opa and skipped)
    if json:
        screen.json_line(
            {
                "ok": ok,
                "ran": ran,
                "failed": failed,
                "cases": [one.as_json() for one in tried],
                "rego": [one._asdict() for one in rego],
                "skipped": skipped,
            }
        )
    else:
        _draw(tried, rego, ran, failed)
        if skipped is not None:
            screen.warn(skipped)
        if ran == 0:
            screen.error("test.none", _nothing(settings))
    if not ok:
        raise typer.Exit(1)


def _tried(settings: Config, cases: Sequence[Case]) -> list[_Tried]:
    """Ask about each case. Raises ``PolicyError`` where nobody answers: no case expects that."""
    engine = policy_source.load(settings)
    if engine.waits:
        policy_source.probe(engine)
    return [_Tried.by(engine, case) for case in cases]


def _beside(settings: Config) -> _Tests:
    """Return the tests in the policy's folder; of a server or a function, in the configuration's.

    Below a folder that is itself the policy they may stand at any depth, as its files do.
    """
    written = policy_source.policy_of(settings)
    path = resolve(settings.base, written.path)
    if written.engine in ("rego", "cedar"):
        folder, deep = (path, True) if path.is_dir() else (path.parent, False)
    else:
        folder, deep = settings.base, False
    found = sorted(folder.rglob("*_test.*") if deep else folder.glob("*_test.*"))
    shown = [
        file
        for file in found
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    tables = [file for file in shown if file.suffix in policy_cases.SUFFIXES]
    return _Tests(tables, [file for file in shown if file.suffix == ".rego"])


def _described(settings: Config, config: Path | None) -> Config:
    """Return the configuration that knows agents and tools: the nearest one, for a policy alone."""
    if settings.agents or settings.tools:
        return settings
    try:
        return location.load(config)
    except ConfigError:
        return settings  # a policy can be tested where there is no configuration


def _rego(
    settings: Config, tests: Sequence[Path], opa: str | None
) -> tuple[list[RegoTest], str | None]:
    """Run Rego's tests; return them, or why they are skipped."""
    if not tests:
        return [], None
    written = policy_source.policy_of(settings)
    files = screen.count(len(tests), "file", "files")
    if written.engine != "rego":
        return [], f"skipped {files} of Rego tests: the policy's own files are not known here"
    program = opa_tests.find(opa)
    if program is None:
        return [], (
            f"skipped {files} of Rego tests: there is no {opa_tests.PROGRAM} on PATH; install OPA, "
            "or name it with --opa"
        )
    return opa_tests.run(program, resolve(settings.base, written.path), tests), None


def _nothing(settings: Config) -> str:
    where = policy_source.policy_of(settings).path or settings.source
    return f"nothing ran: write cases into a *_test.toml beside {where}, or name a table"


def _draw(tried: Sequence[_Tried], rego: Sequence[RegoTest], ran: int, failed: int) -> None:
    rows = [*_rows(tried), *_rego_rows(rego)]
    if rows:
        screen.columns(_COLUMNS, rows)
    tests = screen.count(ran, "test", "tests")
    if ran:
        said = (
            screen.styled("fail", f"{failed} failed") if failed else screen.styled("ok", "passed")
        )
        screen.line(said, f" of {tests}" if failed else f": {tests}")


def _rows(tried: Sequence[_Tried]) -> Iterator[screen.Row]:
    file: Path | None = None
    for one in tried:
        if one.case.file != file:
            file = one.case.file
            yield (), screen.styled("", str(file))
        decided = one.decided
        cells = (
            _mark(passed=one.ok),
            one.case.decision,
            screen.styled(decided.outcome, decided.outcome),
            one.case.name,
        )
        yield cells, "" if one.ok else _difference(one)


def _difference(one: _Tried) -> str:
    """Say what a failed case expected, and what came instead."""
    case, decided = one.case, one.decided
    code = f" [{decided.code}]" if decided.code else ""
    got = f"got {decided.outcome}{code}: {one.why or 'without a reason'}"
    if case.reasons is not None and case.expects(decided):
        return f"{got}; expected the reasons {'; '.join(case.reasons) or 'of none'}"
    if case.code not in (None, decided.code):
        return f"{got}; expected [{case.code}]"
    if case.code is None and decided.outcome == case.decision:
        return f"{got}; that is no answer of the policy's rules: name the code if it is expected"
    return got


def _rego_rows(rego: Sequence[RegoTest]) -> Iterator[screen.Row]:
    if rego:
        yield (), screen.styled("", "Rego tests, by opa test")
    for one in rego:
        mark = Text("todo") if one.passed is None else _mark(passed=one.passed)
        yield (mark, "", "", one.name), "" if one.passed is not False else f"{one.file}:{one.row}"


def _mark(*, passed: bool) -> Text:
    return screen.styled("ok", "ok") if passed else screen.styled("fail", "FAILED")
