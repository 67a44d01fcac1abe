"""Who can change files, by owners and modes alone."""

from __future__ import annotations

import pytest

from agentguard.storage.writers import Rights, Writers

ROOT = [Rights(0, 0, 0o40755)]
"""What lies above everything."""


def writers(*files: tuple[int, int, int], above: list[tuple[int, int, int]] | None = None):
    folders = [Rights(*one) for one in above or ()]
    return Writers.of([Rights(*one) for one in files], [*ROOT, *folders])


ALICE = writers((1, 1, 0o700))
GROUPS = {1: [1], 2: [2], 3: [3, 50]}


@pytest.mark.parametrize(
    ("anchor", "shared"),
    [
        (writers((2, 2, 0o755)), False),
        (writers((0, 0, 0o755)), False),  # root's
        (writers((1, 1, 0o500)), True),  # an owner may give herself the right
        (writers((2, 2, 0o755), (1, 1, 0o444)), True),  # one file in the folder
        (writers((2, 2, 0o757)), True),  # everybody
        (writers((2, 1, 0o775)), True),  # her group
        (writers((2, 50, 0o775)), False),  # another group
        (writers((2, 2, 0o755), above=[(1, 1, 0o755)]), True),  # in a folder of hers
        (writers((2, 2, 0o755), above=[(2, 2, 0o777)]), True),
        (writers((2, 2, 0o755), above=[(0, 0, 0o1777)]), False),  # /tmp
        (writers((2, 2, 0o1777)), True),  # what is missing can be added
    ],
)
def test_the_anchor_of_a_state_that_one_user_writes(anchor, shared):
    assert ALICE.overlap(anchor, lambda user: GROUPS[user]) is shared
    assert anchor.overlap(ALICE, lambda user: GROUPS[user]) is shared


def test_a_state_whose_group_may_write_it():
    state = writers((1, 50, 0o770))
    assert not state.overlap(writers((2, 2, 0o755)), lambda user: GROUPS[user])
    assert state.overlap(writers((3, 3, 0o755)), lambda user: GROUPS[user])  # a member
