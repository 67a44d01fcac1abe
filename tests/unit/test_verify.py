"""The verifier: the time of the keys that it trusts, and what it leaves out when it is told to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentguard import Decision, Guard
from agentguard.audit import checkpoint
from agentguard.domain.verify import examine


@pytest.fixture
def guard():
    with Guard.ephemeral(lambda _call: Decision.allow()) as guard:
        guard.new_agent("a").call(guard.tool(lambda: None))
        yield guard


def size_of(note):
    return checkpoint.parse(note).checkpoint.size


@pytest.mark.parametrize("use", ["issuer", "log"])
@pytest.mark.parametrize("end", ["not_after", "compromised_since"])
def test_what_a_key_signs_after_its_end_does_not_count(guard, use, end):
    keys = guard.trust.keys
    assert examine(guard.reader(), guard.trust).ok
    for later, ok in ((0, False), (3600, True)):
        ended = tuple(
            replace(key, **{end: key.not_before + later}) if key.use == use else key for key in keys
        )
        report = examine(guard.reader(), replace(guard.trust, keys=ended))
        assert report.ok is ok, report.problems
        assert all(use in problem.what for problem in report.problems[:1])


def test_without_contents_only_the_hashes_and_checkpoints_are_looked_at(guard):
    class Bare:
        """The reader of the guard, without what stands beside the entries."""

        def __getattr__(self, name):
            if name in ("stored", "attachments", "search"):
                raise AssertionError(name)
            return getattr(guard.reader(), name)

    whole, bare = (
        examine(reader, guard.trust, contents=contents)
        for reader, contents in ((guard.reader(), True), (Bare(), False))
    )
    assert (bare.ok, bare.entries) == (whole.ok, whole.entries) == (True, whole.entries)
    assert [shard.head for shard in bare.shards] == [shard.head for shard in whole.shards]


def test_without_contents_no_call_is_known_to_be_in_doubt(guard):
    class Unsettled:
        """The reader of the guard, as it would be without the outcome of its last call."""

        def __getattr__(self, name):
            return getattr(guard.reader(), name)

        def entries(self, shard, *, after=-1, newest_first=False):
            assert (after, newest_first) == (-1, False)
            return list(guard.reader().entries(shard))[:-1]

        def stored(self, shard):
            return list(guard.reader().stored(shard))[:-1]

        def checkpoints(self, shard):
            size = len(self.entries(shard))
            return [note for note in guard.reader().checkpoints(shard) if size_of(note) <= size]

    assert len(examine(Unsettled(), guard.trust).in_doubt) == 1
    assert examine(Unsettled(), guard.trust, contents=False).in_doubt == ()


def test_the_first_checkpoint_is_named_so(guard):
    class Spoilt:
        """The reader of the guard, whose first checkpoint is none."""

        def __getattr__(self, name):
            return getattr(guard.reader(), name)

        def checkpoints(self, shard):
            first, *rest = guard.reader().checkpoints(shard)
            return iter([first[:-5] + b"AAA=\n", *rest])

    assert examine(guard.reader(), guard.trust).ok
    (problem,) = examine(Spoilt(), guard.trust).problems
    assert problem.what.startswith("the first checkpoint does not verify: ")
