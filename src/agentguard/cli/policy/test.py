"""``agentguard policy test``: what a policy says of the cases beside it, and its own Rego tests.

Which files there are says ``suite.py``. Cases are asked by the rule that every guarded call
goes through, whatever the engine; they are read in ``cases.py``. Rego's ``test_`` rules are
run by OPA (``opa_tests.py``).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from agentguard.call.decision import Decision
from agentguard.cli.policy import (
    cases as policy_cases,
)
from agentguard.cli.policy import (
    opa_tests,
    source,
    suite,
)
from agentguard.cli.policy.cases import Case
from agentguard.cli.policy.opa_tests import RegoTest
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.options import ConfigOption, JsonOption, PolicyOption, QueryOption
from agentguard.domain.config import Config, resolve
from agentguard.errors import ConfigError
from agentguard.policy.engine import Engine
from agentguard.signing.canonical import JSON

_COLUMNS = ("", "expected", "got", "case")


@dataclass(frozen=True, slots=True)
class _Tried:
    """A case, what the policy said of it, and why in the words of its engine."""

    case: Case
    decided: Decision
    why: str

    @classmethod
    def by(cls, engine: Engine, case: Case) -> _Tried:
        """Ask the engine about a case; raises ``PolicyError`` where a server does not answer."""
        decided = source.surely(engine, case.document)
        return cls(case, decided, source.explained(engine, decided, case.document))

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
class _Ran:
    """What came of the tests: of the cases, and of what is written in Rego.

    ``files`` are those with tests in Rego, ``skipped`` is why they did not run.
    """

    cases: Sequence[_Tried]
    files: Sequence[Path]
    rego: Sequence[RegoTest]
    skipped: str | None

    @property
    def count(self) -> int:
        return len(self.cases) + self.rego_count

    @property
    def rego_count(self) -> int:
        return sum(one.passed is not None for one in self.rego)

    @property
    def failed(self) -> int:
        cases = sum(not one.ok for one in self.cases)
        return cases + sum(one.passed is False for one in self.rego)

    def warnings(self) -> Iterator[str]:
        """Name the files that ran and had no test in them, as is well where they help others."""
        found = {Path(one.file).resolve() for one in self.rego}
        for file in self.files if self.skipped is None else ():
            if file.resolve() not in found:
                yield f"{file}: OPA finds no test in it: the names of tests begin with test_"

    def as_json(self, missing: str | None) -> dict[str, JSON]:
        return {
            "ok": not self.failed and missing is None,
            "ran": self.count,
            "failed": self.failed,
            "cases": [one.as_json() for one in self.cases],
            "rego": [one._asdict() for one in self.rego],
            "skipped": self.skipped,
            "warnings": [*self.warnings()],
            "missing": missing,
        }


def run_tests(
    tables: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="TABLE",
            help="Tables of cases (TOML or JSON), in the place of all tests beside the policy; by "
            "default *_test.toml, *_test.json and *_test.rego there.",
        ),
    ] = None,
    *,
    policy: PolicyOption = None,
    query: QueryOption = None,
    opa: Annotated[
        str | None,
        typer.Option(
            "--opa",
            metavar="PROGRAM",
            help="Runs Rego's tests, beside a named table as well; by default opa on PATH.",
        ),
    ] = None,
    require_opa: Annotated[
        bool,
        typer.Option(
            "--require-opa",
            help="Run Rego's tests, beside a named table as well; exit code 1 where none ran.",
        ),
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Run the tests of a policy.

    Asks the policy about each case of the tables, and lets OPA run the tests in Rego. Exit code 1
    if a test fails, or if there is no test; 2 if a test can't be read, or would be skipped because
    of its name.
    """
    for table in tables or ():
        if table.is_dir() or table.suffix in (".rego", ".cedar"):
            raise typer.BadParameter(
                f"{table} is no table of cases: --policy {shlex.quote(str(table))} tests a policy, "
                "by what lies beside it"
            )
    settings = source.chosen(policy, query, config)
    named = tables or suite.tables(settings)
    wanted = not tables or opa is not None or require_opa
    rego = suite.rego(settings) if wanted else []
    ran = _run(settings, _cases(settings, config, named), rego, opa)
    missing = _missing(settings, ran, require_opa=require_opa)
    if json:
        screen.json_line(ran.as_json(missing))
    else:
        _draw(ran)
        if missing is not None:
            screen.error("test.none", missing)
    if ran.failed or missing is not None:
        raise typer.Exit(1)


def _cases(settings: Config, config: Path | None, tables: Sequence[Path]) -> list[Case]:
    described = _described(settings, config)
    return [case for table in tables for case in policy_cases.read(table, described)]


def _run(settings: Config, cases: Sequence[Case], files: Sequence[Path], opa: str | None) -> _Ran:
    """Run all tests. Raises ``ConfigError`` or ``PolicyError`` where the policy can't be used."""
    tried = _tried(settings, cases) if cases or files else []
    rego, skipped = _rego(settings, files, opa)
    return _Ran(tried, files, rego, skipped)


def _missing(settings: Config, ran: _Ran, *, require_opa: bool) -> str | None:
    """Say what had to run and did not: a test at all, and Rego's where somebody relies on them."""
    written = source.policy_of(settings)
    where = written.path or settings.source
    if ran.files and not ran.rego and ran.skipped is None:
        return "no Rego test ran: OPA finds none in the files that are there for them"
    if require_opa and not ran.rego_count:
        off = "all are put off (todo_)" if ran.rego else f"there is no *_test.rego beside {where}"
        return f"no Rego test ran, as --require-opa asks: {ran.skipped or off}"
    if not ran.count:
        return f"nothing ran: write cases into a *_test.toml beside {where}, or name a table"
    return None


def _tried(settings: Config, cases: Sequence[Case]) -> list[_Tried]:
    """Ask about each case, of a policy that a guard would take, cases or not.

    Raises ``PolicyError`` where nobody answers: no case expects that.
    """
    engine = source.load(settings)
    if cases:
        source.require_policy(engine)
    return [_Tried.by(engine, case) for case in cases]


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
    written = source.policy_of(settings)
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


def _draw(ran: _Ran) -> None:
    rows = [*_rows(ran.cases), *_rego_rows(ran.rego)]
    if rows:
        screen.columns(_COLUMNS, rows)
    tests = screen.count(ran.count, "test", "tests")
    off = sum(one.passed is None for one in ran.rego)
    more = f", {off} todo" if off else ""
    if ran.failed:
        screen.line(screen.styled("fail", f"{ran.failed} failed"), f" of {tests}{more}")
    elif ran.count:
        screen.line(screen.styled("ok", "passed"), f": {tests}{more}")
    for warning in (*filter(None, [ran.skipped]), *ran.warnings()):
        screen.warn(warning)


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
