"""What the verification of a log and of evidence costs, beside its floor, and what processes gain.

``audit_log.py`` measures these arms on its logs, and says what the floors are.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from measuring import Row, apart, middle, no_collection, peak, ratio, tracked
from states import State, bare_rows, bare_signatures

from agentguard.audit.entry_bytes import may_be_call
from agentguard.audit.evidence import EvidenceVerifier, verify_evidence
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.prove import prove_calls
from agentguard.cli.audit import evidence_batch
from agentguard.domain.verify import examine
from agentguard.domain.worker_processes import default_jobs
from agentguard.signing.keys import PublicKey

LONG = 100_000
"""Entries past which a log is verified only once, of each kind."""
SAMPLE = 4000
"""Entries of a log whose signatures are verified barely."""


def verification(states: Sequence[State], repetitions: int) -> Iterator[Row]:
    """Verify each log, with every signature and with none."""
    for contents in (True, False):
        slowest = []
        for state in states:
            row, cost = verified(state, repetitions, contents=contents)
            slowest.append(cost)
            yield row
        what = "every signature" if contents else "no signatures"
        growing = slowest[1] / slowest[0]
        yield Row(f"verify, {what}, larger/smaller", "", None, growing, None, "linear: 1")


def verified(state: State, repetitions: int, *, contents: bool) -> tuple[Row, float]:
    """Verify a log beside its floor; return also the CPU time of an entry, in microseconds."""
    floors, costs = [], []
    size = state.size
    bare, sample = bare_signatures(state, SAMPLE) if contents else (bare_rows(state), size)
    signatures = 0
    trust = state.trust
    times = repetitions if size <= LONG else 1
    with no_collection():
        for _ in tracked(range(times), f"verifying {size} entries"):
            started = time.process_time()
            signatures = bare()
            floors.append((time.process_time() - started) / sample * 1e6)
            started = time.process_time()
            report = examine(state.reader(), trust, anchor=state.anchor, contents=contents, jobs=1)
            costs.append((time.process_time() - started) / size * 1e6)
            if not report.ok or not report.anchored:
                raise ValueError(report.problems)
    rates, bare_rates = ([1e6 / cost for cost in each] for each in (costs, floors))
    what = "every signature" if contents else "no signatures"
    over = middle(costs) - middle(floors)
    note = f"{over:.0f} µs an entry above"
    if contents:
        note += f" of {signatures / sample:.2f} signatures"
    row = Row(
        f"verify, {what}, {size} entries",
        "entries/s",
        middle(bare_rates),
        middle(rates),
        ratio(costs, floors),
        note,
    )
    return row, middle(costs)


def shared_out(state: State, repetitions: int) -> Row:
    """Verify a log with several processes, as the command does, beside one, by the clock."""
    rates: dict[int, list[float]] = {1: [], default_jobs(): []}
    size, trust = state.size, state.trust
    with no_collection():
        for _ in tracked(range(repetitions if size <= LONG else 1), f"{size} entries, processes"):
            for jobs, measured in rates.items():
                started = time.perf_counter()
                report = examine(state.reader(), trust, anchor=state.anchor, jobs=jobs)
                measured.append(size / (time.perf_counter() - started))
                if not report.ok or not report.anchored:
                    raise ValueError(report.problems)
    one, several = rates[1], rates[default_jobs()]
    return Row(
        f"verify, {default_jobs()} processes, {size} entries",
        "entries/s",
        middle(one),
        middle(several),
        ratio(several, one),
        "floor: one process",
    )


# --- evidence --------------------------------------------------------------------------------


def evidence(states: Sequence[State], repetitions: int) -> Iterator[Row]:
    """Make the evidence of all calls of each log, and verify the files."""
    for state in states:
        with tempfile.TemporaryDirectory(prefix="agentguard-bench-") as name:
            paths = _files(state, Path(name))
            yield from _evidence(state, paths, repetitions)


def _files(state: State, folder: Path) -> list[Path]:
    """Write the evidence of all calls of a log, a file for each."""
    ids = _ids(state)
    made = prove_calls(state.reader(), state.trust, ids)
    paths = [folder / f"{invocation_id}.json" for invocation_id in ids]
    for path in paths:
        path.write_bytes(next(made))
    return paths


def _ids(state: State) -> list[str]:
    calls = [body for _index, body in state.reader().entries() if may_be_call(body)]
    return [str(parse_entry(body, CallEntry).invocation_id) for body in calls]


def _evidence(state: State, paths: Sequence[Path], repetitions: int) -> Iterator[Row]:
    trust, count = state.trust, len(paths)
    bare, signatures = _bare_evidence(state, paths[:: max(count // 100, 1)])
    floors: list[float] = []
    costs: dict[str, list[float]] = {"made": [], "each alone": [], "together": []}
    walls: dict[int, list[float]] = {1: [], default_jobs(): []}
    some = paths[:2000]
    arms: dict[str, Callable[[], int]] = {
        "made": partial(_make, state, len(some)),
        "each alone": partial(_verify_alone, state, some[:500]),
        "together": partial(_verify_together, state, paths),
    }
    with no_collection():
        for _ in tracked(range(repetitions), f"evidence of {count} calls"):
            floors.append(_cpu(bare))
            for arm, run in arms.items():
                costs[arm].append(_cpu(run))
            for jobs, measured in walls.items():
                started = time.perf_counter()
                answers = list(evidence_batch.answers(paths, trust, jobs))
                measured.append(count / (time.perf_counter() - started))
                if not all(answer["ok"] for answer in answers):
                    raise ValueError(answers)
    for arm, measured in costs.items():
        rates, bare_rates = ([1e6 / cost for cost in each] for each in (measured, floors))
        note = f"{signatures:.2f} signatures a file"
        what = f"evidence of {count} calls, {arm}"
        over = ratio(measured, floors)
        yield Row(what, "files/s", middle(bare_rates), middle(rates), over, note)
    one, several = walls[1], walls[default_jobs()]
    what = f"verify evidence of {count} calls, {default_jobs()} processes"
    over = ratio(several, one)
    yield Row(what, "files/s", middle(one), middle(several), over, "floor: one process")
    held = apart(_verify_all, (state, paths))
    yield Row(f"memory of verify, evidence of {count} calls", "MB", None, held, None)


def _cpu(run: Callable[[], int]) -> float:
    """Return the CPU time of a file, in microseconds; ``run`` returns the number of files."""
    started = time.process_time()
    count = run()
    return (time.process_time() - started) / count * 1e6


def _bare_evidence(state: State, paths: Sequence[Path]) -> tuple[Callable[[], int], float]:
    """Return the floor, the Ed25519 verifications that each file needs, and how many these are."""
    held: list[tuple[PublicKey, bytes, bytes]] = []
    verify = PublicKey.verify

    def noting(self: PublicKey, signature: bytes, data: bytes) -> None:
        held.append((self, signature, data))
        verify(self, signature, data)

    PublicKey.verify = noting  # type: ignore[method-assign]
    try:
        _verify_alone(state, paths)
    finally:
        PublicKey.verify = verify  # type: ignore[method-assign]

    def once() -> int:
        for key, signature, message in held:
            key.verify(signature, message)
        return len(paths)

    return once, len(held) / len(paths)


def _make(state: State, count: int) -> int:
    return sum(1 for _data in prove_calls(state.reader(), state.trust, _ids(state)[:count]))


def _verify_alone(state: State, paths: Sequence[Path]) -> int:
    trust = state.trust
    for path in paths:
        verify_evidence(path.read_bytes(), trust)
    return len(paths)


def _verify_together(state: State, paths: Sequence[Path]) -> int:
    verifier = EvidenceVerifier(state.trust)
    for path in paths:
        verifier.verify(path.read_bytes())
    return len(paths)


def _verify_all(files: tuple[State, Sequence[Path]]) -> float:
    """Verify files as the command does; return the most memory that this process has held (MB)."""
    state, paths = files
    for answer in evidence_batch.answers(paths, state.trust, default_jobs()):
        if not answer["ok"]:
            raise ValueError(answer)
    return peak()
