"""``agentguard policy test``: runs a policy's cases and the Rego tests beside the policy.

``suite.py`` finds the files, and ``cases.py`` reads the cases. Each case is decided as a guarded
call is, with any engine. OPA runs the ``test_`` rules in Rego (``opa_tests.py``).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.text import Text

from agentguard.call.decision import Decision
from agentguard.cli.policy import hints, opa_tests, source, suite
from agentguard.cli.policy.cases import Case, read_cases
from agentguard.cli.policy.opa_tests import RegoTest
from agentguard.cli.terminal import location, screen
from agentguard.cli.terminal.options import (
    AS_JSON,
    CONFIG,
    PATH,
    POLICY,
    QUERY,
    Argument,
    Option,
    command,
)
from agentguard.domain.config import Config, resolve
from agentguard.errors import ConfigError
from agentguard.policy.engine import Engine
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON

_COLUMNS = ("", "expected", "got", "case")


@dataclass(frozen=True, slots=True)
class _CaseResult:
    """A case, the policy's decision, and the reason in the words of the engine."""

    case: Case
    decision: Decision
    why: str

    @classmethod
    def ask(cls, engine: Engine, case: Case, settings: Config, vocabulary: Config) -> _CaseResult:
        """Ask the engine about a case; raises ``PolicyError`` where a server does not answer."""
        decision = source.surely(engine, case.document)
        why = source.explained(engine, decision, case.document)
        if not case.holds(decision):
            members = canonical.loads_object(case.document)
            why = "; ".join((why, *hints.about(members, decision, settings, vocabulary)))
        return cls(case, decision, why)

    @property
    def ok(self) -> bool:
        return self.case.holds(self.decision)

    def as_json(self) -> dict[str, JSON]:
        case, decision = self.case, self.decision
        reasons: JSON = None if case.reasons is None else [*case.reasons]
        return {
            "file": str(case.file),
            "name": case.name,
            "ok": self.ok,
            "expected": {"decision": case.decision, "code": case.code, "reasons": reasons},
            "got": {
                "decision": decision.outcome,
                "code": decision.code,
                "reasons": [*decision.reasons],
            },
        }


@dataclass(frozen=True, slots=True)
class _TestResults:
    """The results of the cases and of the Rego tests.

    ``files`` are the files of the Rego tests; ``skipped`` is the reason why they did not run.
    """

    cases: Sequence[_CaseResult]
    files: Sequence[Path]
    rego: Sequence[RegoTest]
    skipped: str | None

    @property
    def count(self) -> int:
        return len(self.cases) + self.rego_count

    @property
    def rego_count(self) -> int:
        return sum(test.passed is not None for test in self.rego)

    @property
    def failure_count(self) -> int:
        cases = sum(not case.ok for case in self.cases)
        return cases + sum(test.passed is False for test in self.rego)

    def warnings(self) -> Iterator[str]:
        """Yield a warning for each Rego test file without a test; it may hold rules for others."""
        with_tests = {Path(test.file).resolve() for test in self.rego}
        for file in self.files if self.skipped is None else ():
            if file.resolve() not in with_tests:
                yield f"{file}: OPA finds no test in it: the names of tests begin with test_"

    def as_json(self, missing: str | None) -> dict[str, JSON]:
        return {
            "ok": not self.failure_count and missing is None,
            "ran": self.count,
            "failed": self.failure_count,
            "cases": [case.as_json() for case in self.cases],
            "rego": [test._asdict() for test in self.rego],
            "skipped": self.skipped,
            "warnings": [*self.warnings()],
            "missing": missing,
        }


@command(
    Argument(
        "tables",
        "TABLE...",
        "Tables of cases (TOML or JSON), in the place of all tests beside the policy; by default "
        "*_test.toml, *_test.json and *_test.rego there.",
        type=PATH,
        nargs=-1,
    ),
    POLICY,
    QUERY,
    Option(
        "--opa PROGRAM", "Runs Rego's tests, beside a named table as well; by default opa on PATH."
    ),
    Option(
        "--require-opa",
        "Run Rego's tests, beside a named table as well; exit code 1 where none ran.",
    ),
    CONFIG,
    AS_JSON,
)
def run_tests(
    *,
    tables: tuple[Path, ...],
    policy: Path | None,
    query: str | None,
    opa: str | None,
    require_opa: bool,
    config: Path | None,
    json: bool,
) -> None:
    """Asks the policy about each case of the tables, and lets OPA run the tests in Rego. Exit code
    1 if a test fails, or if there is no test; 2 if a test can't be read, or would be skipped
    because of its name.
    """
    _require_tables(tables)
    settings = source.chosen(policy, query, config)
    case_tables = tables or suite.tables(settings)
    rego = suite.rego(settings) if not tables or opa is not None or require_opa else []
    vocabulary = _vocabulary(settings, config)
    cases = [case for table in case_tables for case in read_cases(table, vocabulary)]
    results = _run(settings, vocabulary, cases, rego, opa)
    missing = _missing(settings, results, require_opa=require_opa)
    if json:
        screen.json_line(results.as_json(missing))
    else:
        _draw(results)
        if missing is not None:
            screen.error("test.none", missing)
    if results.failure_count or missing is not None:
        raise SystemExit(1)


def _require_tables(tables: Sequence[Path]) -> None:
    """Raise ``click.BadParameter`` for a policy in the place of a table of cases."""
    for table in tables:
        if table.is_dir() or table.suffix in (".rego", ".cedar"):
            raise click.BadParameter(
                f"{table} is no table of cases: --policy {shlex.quote(str(table))} tests a policy, "
                "by what lies beside it"
            )


def _run(
    settings: Config,
    vocabulary: Config,
    cases: Sequence[Case],
    files: Sequence[Path],
    opa: str | None,
) -> _TestResults:
    """Run all tests. Raises ``ConfigError`` or ``PolicyError`` where the policy can't be used."""
    case_results = _case_results(settings, vocabulary, cases) if cases or files else []
    rego, skipped = _rego(settings, files, opa)
    return _TestResults(case_results, files, rego, skipped)


def _missing(settings: Config, results: _TestResults, *, require_opa: bool) -> str | None:
    """Return the error message where no test ran, or no Rego test where one has to; else None."""
    policy_config = source.policy_of(settings)
    where = policy_config.path or settings.source
    if results.files and not results.rego and results.skipped is None:
        return "no Rego test ran: OPA finds none in the files that are there for them"
    if require_opa and not results.rego_count:
        absence = (
            "all are put off (todo_)" if results.rego else f"there is no *_test.rego beside {where}"
        )
        return f"no Rego test ran, as --require-opa asks: {results.skipped or absence}"
    if not results.count:
        return f"nothing ran: write cases into a *_test.toml beside {where}, or name a table"
    return None


def _case_results(settings: Config, vocabulary: Config, cases: Sequence[Case]) -> list[_CaseResult]:
    """Load the policy as a guard does, and ask it about each case.

    Raises ``PolicyError`` where a policy server does not answer.
    """
    engine = source.load(settings)
    if cases:
        source.require_policy(engine)
    return [_CaseResult.ask(engine, case, settings, vocabulary) for case in cases]


def _vocabulary(settings: Config, config: Path | None) -> Config:
    """Return a configuration with agents and tools: the nearest one where ``settings`` has none."""
    if settings.agents or settings.tools.tables:
        return settings
    try:
        return location.load(config)
    except ConfigError:
        return settings  # a policy can be tested where there is no configuration


def _rego(
    settings: Config, tests: Sequence[Path], opa: str | None
) -> tuple[list[RegoTest], str | None]:
    """Run the Rego tests; return their results, and the reason where they were skipped."""
    if not tests:
        return [], None
    policy_config = source.policy_of(settings)
    files = screen.count(len(tests), "file", "files")
    if policy_config.engine != "rego":
        return [], f"skipped {files} of Rego tests: the policy's own files are not known here"
    program = opa_tests.find(opa)
    if program is None:
        return [], (
            f"skipped {files} of Rego tests: there is no {opa_tests.PROGRAM} on PATH; install OPA, "
            "or name it with --opa"
        )
    return opa_tests.run(program, resolve(settings.base, policy_config.path), tests), None


def _draw(results: _TestResults) -> None:
    rows = [*_rows(results.cases), *_rego_rows(results.rego)]
    if rows:
        screen.columns(_COLUMNS, rows)
    tests = screen.count(results.count, "test", "tests")
    todo_count = sum(test.passed is None for test in results.rego)
    more = f", {todo_count} todo" if todo_count else ""
    if results.failure_count:
        screen.line(screen.styled("fail", f"{results.failure_count} failed"), f" of {tests}{more}")
    elif results.count:
        screen.line(screen.styled("ok", "passed"), f": {tests}{more}")
    for warning in (*filter(None, [results.skipped]), *results.warnings()):
        screen.warn(warning)


def _rows(case_results: Sequence[_CaseResult]) -> Iterator[screen.Row]:
    file: Path | None = None
    for result in case_results:
        if result.case.file != file:
            file = result.case.file
            yield (), screen.styled("", str(file))
        decision = result.decision
        cells = (
            _mark(passed=result.ok),
            result.case.decision,
            screen.styled(decision.outcome, decision.outcome),
            result.case.name,
        )
        yield cells, "" if result.ok else _difference(result)


def _difference(result: _CaseResult) -> str:
    """Return the decision of a failed case, and the expected decision."""
    case, decision = result.case, result.decision
    code = f" [{decision.code}]" if decision.code else ""
    got = f"got {decision.outcome}{code}: {result.why or 'without a reason'}"
    if case.reasons is not None and case.expects(decision):
        return f"{got}; expected the reasons {'; '.join(case.reasons) or 'of none'}"
    if case.code not in (None, decision.code):
        return f"{got}; expected [{case.code}]"
    if case.code is None and decision.outcome == case.decision:
        return f"{got}; that is no answer of the policy's rules: name the code if it is expected"
    return got


def _rego_rows(rego: Sequence[RegoTest]) -> Iterator[screen.Row]:
    if rego:
        yield (), screen.styled("", "Rego tests, by opa test")
    for test in rego:
        mark = Text("todo") if test.passed is None else _mark(passed=test.passed)
        yield (
            (mark, "", "", test.name),
            "" if test.passed is not False else f"{test.file}:{test.row}",
        )


def _mark(*, passed: bool) -> Text:
    return screen.styled("ok", "ok") if passed else screen.styled("fail", "FAILED")
