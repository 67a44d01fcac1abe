"""The map beside a plain dictionary: values, absences, complete lists, one root a content."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.audit.map import EMPTY_ROOT, MAX_VALUE, Bucket, Cache, Inner, Map, key
from agentguard.errors import StorageError

KINDS = 3
NAMES = st.integers(0, 60)
CHANGES = st.lists(
    st.tuples(st.integers(0, KINDS - 1), NAMES, st.none() | st.binary(max_size=3)), max_size=120
)


class Rows:
    """The nodes of a map, as a database keeps them; ``asked`` has each question."""

    def __init__(self):
        self.root, self.rows, self.asked = EMPTY_ROOT, {}, []

    def fetch(self, addresses):
        self.asked.append(addresses)
        return {one: self.rows[one] for one in addresses if one in self.rows}

    def map(self, cache=None):
        return Map(self.root, self.fetch, cache or Cache())

    def seal(self, changed):
        self.root, rows = changed.seal()
        for address, data in rows.items():
            if data is None:
                self.rows.pop(address, None)
            else:
                self.rows[address] = data


def of(items):
    rows = Rows()
    changed = rows.map()
    for one, value in items.items():
        changed.put(one, value)
    rows.seal(changed)
    return rows


@given(CHANGES, st.integers(1, 40))
def test_a_map_is_a_dictionary_whose_root_depends_on_its_contents_alone(changes, at_once):
    rows, cache = Rows(), Cache()
    expected: dict[bytes, bytes] = {}
    for start in range(0, len(changes), at_once):
        changed = rows.map(cache)
        for kind, name, value in changes[start : start + at_once]:
            one = key(kind, str(name))
            changed.put(one, value)
            expected.pop(one, None)
            if value is not None:
                expected[one] = value
            assert changed.get(one) == value
        rows.seal(changed)
    again = of(dict(sorted(expected.items())))
    assert (rows.root, rows.rows) == (again.root, again.rows)
    fresh = rows.map()
    assert dict(fresh.items()) == expected
    for kind in range(KINDS):
        listed = dict(fresh.items(kind))
        assert listed == {one: value for one, value in expected.items() if one[0] == kind}
        for name in range(60):
            one = key(kind, str(name))
            assert fresh.get(one) == expected.get(one)


def full(number=300):
    return of({key(i % KINDS, str(i)): str(i).encode() for i in range(number)})


def test_the_empty_map_has_no_row_and_the_root_of_an_empty_bucket():
    rows = full(40)
    changed = rows.map()
    for one, _value in list(rows.map().items()):
        changed.put(one, None)
    rows.seal(changed)
    assert (rows.root, rows.rows) == (EMPTY_ROOT, {})
    assert sha256(b"\x02").digest() == EMPTY_ROOT


def test_each_node_that_is_altered_removed_or_another_one_is_found_where_it_is_read():
    rows = full()
    others = full(299)
    for address, data in list(rows.rows.items()):
        below = next(one for one, _v in full().map().items() if one.hex().startswith(address))
        for other in (data[:-1] + bytes((data[-1] ^ 1,)), None, others.rows.get(address), b""):
            if other == data:
                continue
            rows.rows[address] = other
            if other is None:
                del rows.rows[address]
            with pytest.raises(StorageError, match=r"the node .* of the map") as caught:
                rows.map().get(below)
            assert caught.value.code == "storage.corrupt"
            with pytest.raises(StorageError):
                dict(rows.map().items())
            with pytest.raises(StorageError):
                rows.map().put(below, b"new")
        rows.rows[address] = data


def test_the_root_of_a_node_tells_its_number_of_keys():
    rows = full()
    root = next(node for _address, node in rows.map().nodes())
    assert isinstance(root, Inner)
    assert root.count == 300
    assert sum(len(n) for _a, n in rows.map().nodes() if isinstance(n, Bucket)) == 300


def test_a_path_is_fetched_at_once_and_not_again():
    rows, cache = full(5000), Cache()
    assert rows.map(cache).get(key(0, "0")) == b"0"
    assert len(rows.asked) == 1
    assert rows.map(cache).get(key(0, "0")) == b"0"
    assert len(rows.asked) == 1


def test_a_change_that_changes_nothing_writes_nothing():
    rows = full()
    changed = rows.map()
    changed.put(key(0, "0"), b"0")
    changed.put(key(0, "nobody"), None)
    assert changed.seal() == (rows.root, {})


def test_what_is_read_stays_as_it_is_while_another_map_changes():
    rows, cache = full(), Cache()
    before = rows.map(cache)
    assert before.get(key(0, "0")) == b"0"
    changed = rows.map(cache)
    changed.put(key(0, "0"), b"other")
    rows.seal(changed)
    assert before.get(key(0, "0")) == b"0"
    assert rows.map(cache).get(key(0, "0")) == b"other"


@pytest.mark.parametrize(
    ("one", "value"), [(b"short", b""), (key(0, "a"), b"x" * (MAX_VALUE + 1))], ids=["key", "value"]
)
def test_what_no_node_can_hold_is_refused_before_anything_changes(one, value):
    rows = full()
    changed = rows.map()
    with pytest.raises(ValueError, match="bytes"):
        changed.put(one, value)
    assert changed.seal() == (rows.root, {})
    changed.put(key(0, "a"), b"x" * MAX_VALUE)
    rows.seal(changed)
    assert rows.map().get(key(0, "a")) == b"x" * MAX_VALUE


def test_nodes_that_could_not_be_fetched_are_asked_for_again():
    """Else a failure of the disk would look like a node that is gone."""
    made = Map(EMPTY_ROOT, lambda _addresses: {}, Cache())
    made.put(key(1, "a"), b"value")
    root, nodes = made.seal()
    failures = [OSError("the disk is out")]

    def fetch(addresses):
        if failures:
            raise failures.pop()
        return {at: nodes[at] for at in addresses if at in nodes}

    again = Map(root, fetch, Cache())
    with pytest.raises(OSError, match="out"):
        again.get(key(1, "a"))
    assert again.get(key(1, "a")) == b"value"
