"""Runs the hooks of a fork in a fixed order: what happens to open files, locks and logs.

``os.register_at_fork`` runs hooks in the order in which modules happen to be imported. Here each
hook has a stage instead; the module that owns a hook says what the hook does. The child runs the
hooks from the first stage to the last, and the parent, before the fork, from the last to the first:

- before: ``lock.py`` waits until nobody is opening or closing a lock's file;
- before, too: stores, readers of logs and used proofs close their connections, so that a child
  inherits none: SQLite remembers for the whole process which locks the process holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Final, NamedTuple, Protocol
from weakref import WeakMethod, WeakSet


class Stage(IntEnum):
    """The order in which a child runs the hooks."""

    LOCKS = 0
    READERS = 1
    STORES = 2
    PROOFS = 3
    GUARDS = 4


class _Hooks(NamedTuple):
    before: Callable[[], object]
    in_parent: Callable[[], object]
    in_child: Callable[[], object]


def _nothing() -> None:
    """The hook of a stage that has none."""


_HOOKS: Final[dict[Stage, _Hooks]] = {}


def at_fork(
    stage: Stage,
    *,
    in_child: Callable[[], object],
    before: Callable[[], object] = _nothing,
    in_parent: Callable[[], object] = _nothing,
) -> None:
    """Run these hooks at each later fork; a stage has the hooks of one owner."""
    _HOOKS[stage] = _Hooks(before, in_parent, in_child)


class Forked(Protocol):
    """What is told of each fork; the thread that forks calls the methods."""

    def before_fork(self) -> None:
        """Wait until no other thread uses it, and close its file."""

    def after_fork_in_parent(self) -> None:
        """Let the threads go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew."""


class AtFork:
    """The objects of one stage that are told of each fork, as long as they are there."""

    def __init__(self, stage: Stage) -> None:
        self._told: WeakSet[Forked] = WeakSet()
        self._held: list[Forked] = []
        at_fork(stage, before=self._before, in_parent=self._in_parent, in_child=self._in_child)

    def add(self, one: Forked) -> None:
        """Tell it of each later fork."""
        self._told.add(one)

    def _before(self) -> None:
        self._held[:] = sorted(self._told, key=id)
        for one in self._held:
            one.before_fork()

    def _in_parent(self) -> None:
        for one in self._held[::-1]:
            one.after_fork_in_parent()
        self._held.clear()

    def _in_child(self) -> None:
        for one in self._held[::-1]:
            one.after_fork_in_child()
        self._held.clear()


def _run(stage: Stage, moment: int) -> None:
    hooks = _HOOKS.get(stage)
    if hooks is not None:
        hooks[moment]()


def in_each_child(method: Callable[[], None]) -> None:
    """Call a method in each process that is forked later, as long as its object is there.

    For an object whose hook needs no stage.
    """
    weak = WeakMethod(method)

    def call() -> None:
        found = weak()
        if found is not None:
            found()

    os.register_at_fork(after_in_child=call)


# One registration for each: the interpreter runs the others also where one of them raises.
for _stage in Stage:
    os.register_at_fork(
        before=partial(_run, _stage, 0),
        after_in_parent=partial(_run, _stage, 1),
        after_in_child=partial(_run, _stage, 2),
    )
