"""Somebody who can write the state, and has neither a key nor the anchor, gains nothing by it.

What is written is generated from a state with a past, not listed: each file, table, row and member
that is there is deleted, replaced, changed or doubled, alone and where all is missing, or as it was
before, that a guard does without. After each a guard is opened and used. The result is a refusal
with a code, or what was allowed before. The same holds where a guard is open while the state is
written, and keeps what it knows afterwards (``state_open.py``). What is written into the log,
``agentguard audit verify`` finds.

There are thousands of kinds of mutation. Each run tries some of them, more with
``AGENTGUARD_ROUNDS=full``: a fresh seed chooses, which pytest prints first, and with which
``AGENTGUARD_SEED`` repeats the run. All kinds take 20 minutes of a processor:

    AGENTGUARD_KINDS=all scripts/test -n auto tests/attacks/test_written_states.py
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import state_history
import state_mutations
import state_open
import state_rows
from state_mutations import Mutation, deleting, placing
from state_probes import PROBES, Outcome, Verdict, audited, findings, opens, probe, verdict
from state_scene import Clock, Scene

from agentguard import storage, store
from agentguard.approvals.inbox import ApprovalInbox
from agentguard.audit import entry
from agentguard.audit.state import State
from agentguard.storage import sqlite

SEED = int(os.environ["AGENTGUARD_SEED"])
ALL = os.environ.get("AGENTGUARD_KINDS") == "all"
FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"
WRITTEN, OPEN = (None, None) if ALL else (350, 56) if FULL else (28, 6)
"""How many mutations are tried, and how many under an open guard."""

AUDITED = 1_000_000 if ALL else 100 if FULL else 8
"""How many mutations of each table an auditor is to find."""

PARTS = 60 if ALL else 12 if FULL else 2

BASES: Mapping[str, str | None] = {
    "end": None,
    "frozen": "end",
    "issuer counted": "issuer begun",
    "revoked": "admin counted",
}
"""The moments that are attacked; of the later ones, what has changed since another one."""

WRITERS = [
    f"agentguard.domain.{name}" for name in ("founding", "handover", "keystore", "trust_pin")
]
"""The modules outside the storage and the store that write into a state."""

BEHIND = ("deleted", "as of 'ready'")
"""What is done to some that a guard does without, before something else is written as well."""


class Attack(NamedTuple):
    """What is written into the state as of a moment, and what is done (``how``) to others there."""

    moment: str
    mutation: Mutation
    how: str = ""
    others: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """What is written, in words."""
        others = f", and {', '.join(self.others)} {self.how}" if self.others else ""
        return f"'{self.moment}' with {self.mutation.what}{others}"


Life = tuple[Attack, bool]
"""A mutation that is written under an open guard, and whether it is put back."""


def lives_of(attacks: Sequence[Attack]) -> list[Life]:
    """Return all attacks, those first that are each the first on a kind of file."""
    firsts = {attack.mutation.kind.split()[0]: attack for attack in reversed(attacks)}
    chosen = sorted(attacks, key=lambda attack: attack not in firsts.values())
    return [(attack, number % 2 == 0) for number, attack in enumerate(chosen)]


class Before(dict[str, Mapping[str, Outcome]]):
    """What comes of the probes as of a moment, by ``tries``, once it is asked for."""

    def __init__(self, tries: Callable[[str], Mapping[str, Outcome]]) -> None:
        self._tries = tries

    def __missing__(self, moment: str) -> Mapping[str, Outcome]:
        self[moment] = self._tries(moment)
        return self[moment]


@dataclass
class Campaign:
    """A scene with its past, and what has come of the attacks on it so far."""

    scene: Scene
    before: Before
    before_open: Before
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    pools: dict[str, dict[str, list[Mutation]]] = field(default_factory=dict)
    dispensable: dict[tuple[str, str], bool] = field(default_factory=dict)

    def states(self, *without: str) -> dict[str, Path]:
        moments = self.scene.moments.items()
        return {name: place / "state" for name, place in moments if name not in without}

    @cached_property
    def names(self) -> list[str]:
        """Return what lies in the state itself, at any moment."""
        return sorted({path.name for state in self.states().values() for path in state.iterdir()})

    def kinds(self, moment: str) -> Mapping[str, list[Mutation]]:
        """Return all that can be written into the state as of a moment, by what it is."""
        if moment not in self.pools:
            states, since, chance = self.states(), BASES[moment], Random(0)  # noqa: S311  no secret
            base, then = states[moment], self.states(moment, "end", "frozen")
            fresh = None if since is None else states[since]
            pool = self.pools[moment] = {}
            for mutation in (
                *state_mutations.of_files(base, then, chance, since=fresh),
                *state_mutations.of_documents(base, chance, since=fresh),
                *state_rows.of_rows(base, then, chance, since=fresh),
            ):
                pool.setdefault(mutation.kind, []).append(mutation)
        return self.pools[moment]

    def attacks(self, chance: Random) -> list[Attack]:
        """Return one attack of each kind, in any order: alone, or where other things are gone.

        Of the moments of which only what has changed is attacked, it is one kind in three; and by
        default it is one of these moments.
        """
        end, *later = BASES
        moments = BASES if ALL or FULL else (end, chance.choice(later))
        found = [
            self.attack(moment, chance.choice(alike), chance)
            for moment in moments
            for alike in self.kinds(moment).values()
            if BASES[moment] is None or chance.randrange(3) == 0
        ]
        chance.shuffle(found)
        return found

    def attack(self, moment: str, mutation: Mutation, chance: Random) -> Attack:
        share = chance.choice((0, 0.7, 1))
        others = tuple(name for name in self.names if chance.random() < share)
        return Attack(moment, mutation, chance.choice(BEHIND), others)

    def behind(self, attack: Attack) -> Iterator[Mutation]:
        """Yield what is done to the others, as far as a guard does without them."""
        for name in attack.others:
            place = self.states()["ready"] / name
            back = attack.how != "deleted" and place.exists()
            write = placing(place, Path(name)) if back else deleting(Path(name))
            mutation = Mutation(attack.how, f"{name} {attack.how}", write)
            key = (attack.moment, mutation.what)
            if key not in self.dispensable:
                self.dispensable[key] = opens(self.scene, attack.moment, [mutation])
            if self.dispensable[key]:
                yield mutation

    def tries(self, attack: Attack) -> Verdict:
        mutations = (*self.behind(attack), attack.mutation)
        return verdict(self.scene, attack.moment, mutations, self.before[attack.moment])

    def accepted(self, attacks: Sequence[Attack]) -> list[str]:
        """Try attacks; return what was accepted, in words."""
        tried = ((attack.what, self.tries(attack)) for attack in attacks)
        return self._counted("written states", tried)

    def accepted_while_open(self, lives: Sequence[Life]) -> list[str]:
        """Try mutations under an open guard; return what was accepted, in words."""
        tried = (
            (
                f"'{moment}' with {mutation.what} under a guard{', and put back' * back}",
                state_open.verdict(
                    self.scene, moment, mutation, self.before_open[moment], back=back
                ),
            )
            for (moment, mutation, *_others), back in lives
        )
        return self._counted("written under an open guard", tried)

    def unfound(self, mutations: Sequence[Mutation]) -> list[str]:
        """Write mutations of the log; return those that an auditor does not find, in words.

        It is no harm that he finds nothing in the row of an attachment that was erased, and nothing
        more in an entry in which he has found something.
        """
        self.scene.restore("end")
        before = findings(self.scene)
        beside = state_rows.tables(self.scene.state / "log.sqlite")["attachment"]
        harmless = (
            *(f"log.sqlite entry (0, {problem.index}) " for problem in before),
            *(
                f"log.sqlite attachment {key} "
                for key in beside.rows
                if not beside.named(key)["commitment"]
            ),
        )

        def judged(mutation: Mutation) -> Verdict:
            came = audited(self.scene, "end", mutation, before)
            is_harmless = came == Verdict("accepted") and mutation.what.startswith(harmless)
            return Verdict("harmless") if is_harmless else came

        tried = ((mutation.what, judged(mutation)) for mutation in mutations)
        return self._counted("written before an audit", tried)

    def _counted(self, mode: str, tried: Iterable[tuple[str, Verdict]]) -> list[str]:
        counts, found = self.counts.setdefault(mode, Counter()), list[str]()
        for what, came in tried:
            counts[came.word] += 1
            if came.word == "accepted":
                found += [what, *(f"    {why}" for why in came.why)]
        return found


@pytest.fixture(scope="module")
def quick() -> Iterator[pytest.MonkeyPatch]:
    """A disk that is not waited for: nobody cuts the power."""

    def make_durable(connection: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sqlite, "make_durable", make_durable)
        patched.setattr(os, "fsync", lambda _file: None)
        patched.setattr(os, "fdatasync", lambda _file: None)
        yield patched


@pytest.fixture(scope="module")
def scene(quick, tmp_path_factory) -> Scene:
    clock = Clock()
    quick.setattr("agentguard.guard.process.clock", clock)
    scene = Scene(tmp_path_factory.mktemp("written"), clock)
    state_history.play(scene)
    return scene


@pytest.fixture(scope="module")
def campaign(scene, request) -> Iterator[Campaign]:
    def untouched(moment: str) -> Mapping[str, Outcome]:
        scene.restore(moment)
        return probe(scene)

    campaign = Campaign(
        scene, Before(untouched), Before(lambda moment: state_open.live(scene, moment).found)
    )
    yield campaign
    _report(campaign.counts, request.config.pluginmanager)


def _report(counts: Mapping[str, Counter[str]], plugins: Any) -> None:
    """Say on the terminal what came of all that was tried in this process."""
    terminal, capturing = (
        plugins.get_plugin(name) for name in ("terminalreporter", "capturemanager")
    )
    for mode, tried in counts.items() if terminal is not None else ():
        words = ("refused", "harmless", "unwritable", "accepted")
        said = ", ".join(f"{tried[word]} {word}" for word in words)
        with capturing.global_and_fixture_disabled():
            terminal.write_line(f"\n{mode}: {tried.total()} mutations tried: {said}")


@pytest.fixture(scope="module")
def attacks(campaign) -> list[Attack]:
    return campaign.attacks(Random(SEED))  # noqa: S311  no secret


@pytest.mark.parametrize("part", range(PARTS))
def test_whoever_writes_the_state_gains_nothing(campaign, attacks, part):
    accepted = campaign.accepted(attacks[:WRITTEN][part::PARTS])
    assert not accepted, "\n".join([f"AGENTGUARD_SEED={SEED}", *accepted])


@pytest.mark.parametrize("part", range(PARTS))
def test_whoever_writes_the_state_under_an_open_guard_gains_nothing(campaign, attacks, part):
    accepted = campaign.accepted_while_open(lives_of(attacks)[:OPEN][part::PARTS])
    assert not accepted, "\n".join([f"AGENTGUARD_SEED={SEED}", *accepted])


@pytest.mark.slow("a guard is opened for each way to write the head")
def test_a_guard_loses_nothing_by_the_head_once_it_is_put_back(campaign):
    kinds = campaign.kinds("end").items()
    rows = [alike[0] for kind, alike in kinds if kind.startswith("log.sqlite head ")]
    rows = rows if ALL else rows[SEED % 3 :: 3]
    assert len(rows) > 5
    accepted = campaign.accepted_while_open([(Attack("end", row), True) for row in rows])
    assert not accepted, "\n".join(accepted)


@pytest.mark.parametrize("table", ["head", "entry", "attachment", "tree", "map"])
def test_an_auditor_finds_what_is_written_into_a_table_of_the_log(campaign, table):
    named = f"log.sqlite {table} "
    kinds = {kind: alike for kind, alike in campaign.kinds("end").items() if kind.startswith(named)}
    chance = Random(SEED)  # noqa: S311  no secret
    chosen = chance.sample(sorted(kinds), min(AUDITED, len(kinds)))
    assert chosen
    accepted = campaign.unfound([chance.choice(kinds[kind]) for kind in chosen])
    assert not accepted, "\n".join([f"AGENTGUARD_SEED={SEED}", *accepted])


# --- the attacks themselves -----------------------------------------------------------------------


def test_each_probe_is_refused_where_nobody_has_written(campaign):
    before = campaign.before["end"]
    assert {name: before[name].codes for name in PROBES} == {
        name: probe.codes for name, probe in PROBES.items()
    }
    frozen = campaign.before["frozen"]
    assert [name for name, outcome in frozen.items() if outcome.ran or outcome.said] == []


def test_the_past_has_every_kind_of_entry(campaign):
    (log,) = state_rows.databases(campaign.states()["end"])
    there = state_rows.kinds_of_entries(state_rows.tables(campaign.states()["end"] / log))
    assert set(there.values()) == set(entry.KINDS)


def test_the_past_has_rows_in_every_table(campaign):
    there = state_rows.tables(campaign.states()["end"] / "log.sqlite")
    assert [name for name, table in there.items() if not table.rows] == []


def test_the_past_has_every_file_that_is_written(campaign):
    """What the code of the storage joins to a path has a name that lies there at some moment."""
    there = {
        name
        for moment in campaign.scene.moments.values()
        for path in state_mutations.paths(moment)
        for name in path.parts
    }
    written = set(_names_of_files())
    assert {"log.sqlite", "state.lock", "names", "keys"} <= written
    assert written - there == set()


def _names_of_files() -> Iterator[str]:
    modules = [
        *pkgutil.iter_modules(storage.__path__, "agentguard.storage."),
        *pkgutil.iter_modules(store.__path__, "agentguard.store."),
    ]
    names = [*(module.name for module in modules), *WRITERS]
    for found in map(importlib.import_module, names):
        for node in ast.walk(ast.parse(inspect.getsource(found))):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                named = _value_of(node.right, found)
                if isinstance(named, str):
                    yield named


def _value_of(node: ast.expr, module: Any) -> object:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return vars(module).get(name)
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            return getattr(vars(module).get(name), attribute, None)
    return None


@pytest.mark.parametrize("hole", ["nobody is revoked", "all is shown", "it hangs", "it breaks"])
def test_a_guard_with_a_hole_in_it_is_found_out(campaign, monkeypatch, hole):
    def hang(*_any: Any) -> Any:
        while True:
            pass

    def break_(*_any: Any) -> Any:
        raise LookupError

    holes: Mapping[str, tuple[Any, str, Any]] = {
        "nobody is revoked": (State, "refusal", lambda *_any: None),
        "all is shown": (
            ApprovalInbox,
            "pending",
            lambda *_any: [SimpleNamespace(dumps=lambda: b"x")],
        ),
        "it hangs": (State, "refusal", hang),
        "it breaks": (ApprovalInbox, "pending", break_),
    }
    before = campaign.before["end"]  # first, for it is found out at its first use
    monkeypatch.setattr(*holes[hole])
    found = verdict(campaign.scene, "end", (), before, most=0.3 if hole == "it hangs" else 20)
    assert found.word == "accepted"
