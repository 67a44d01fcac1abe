"""The table of attacks on a log of several shards: who does what, and where the attack is found.

Each attack changes the log, and returns the place where verification with the anchor finds the
change, and the place without. The tests are in tests/attacks/test_shards.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sharded_log import Log, Where

from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.announcements import ShardEntry
from agentguard.signing import canonical


@dataclass(frozen=True)
class Attack:
    """``does`` it, and returns where it is found with the anchor and where without.

    None in the second place: only an anchor can tell, and without one the log is UNANCHORED.
    """

    name: str
    does: Callable[[Log], tuple[Where, Where | None]]


TABLE: list[Attack] = []


def attack(name: str) -> Callable[[Any], None]:
    """Enter an attack in the table; what returns one place is found there either way."""

    def add(does: Callable[[Log], Any]) -> None:
        def both(log: Log) -> tuple[Where, Where | None]:
            found = does(log)
            return found if isinstance(found[0], tuple) else (found, found)

        TABLE.append(Attack(name, both))

    return add


def opening(log: Log, shard: int, of: int) -> tuple[int, int, int]:
    """Return the newest entry, (shard, index), in which ``shard`` says how far ``of`` was."""
    found = []
    for index, body in enumerate(log.bodies(shard)):
        parsed = parse_entry(body)
        if isinstance(parsed, ShardEntry):
            origin = log.trust.origin(of)
            found += [(index, head.size) for head in parsed.heads if head.origin == origin]
    index, size = max(found)
    return shard, index, size


def other_log(log: Log) -> Log:
    return replace(log, config=replace(log.config, state=log.other))


# in place


@attack("edit a byte of an authorization")
def _(log: Log) -> Any:
    index = log.at(1, "call", 1)
    body = log.bodies(1)[index].replace(b'"decision":"allow"', b'"decision":"alloW"')
    log.change(1, ("UPDATE entries SET body = ? WHERE idx = ?", (body, index)))
    return 1, index


def _another_version(log: Log, shard: Any, index: Any) -> None:
    bodies = log.bodies(shard)
    edited = bodies[index].replace(b'"version":"', b'"version":"9')
    assert edited != bodies[index]
    log.rewrite(shard, [*bodies[:index], edited, *bodies[index + 1 :]])
    log.vouch(shard, log.log_key)


@attack("edit what others have seen, and sign with the stolen log key")
def _(log: Log) -> Any:
    *seen_by, _size = opening(log, 2, of=1)
    _another_version(log, 1, log.at(1, "policy", 0))
    return (1, 0), tuple(seen_by)


@attack("edit what nobody has seen, and sign with the stolen log key")
def _(log: Log) -> Any:
    _another_version(log, 4, log.at(4, "policy", -1))
    return (4, 0), None


@attack("edit a summary, by which the log is searched")
def _(log: Log) -> Any:
    index = log.at(2, "call", 1)
    log.change(2, ("UPDATE summaries SET principal = 'user:bob' WHERE idx = ?", (index,)))
    return 2, index


@attack("delete an entry")
def _(log: Log) -> Any:
    index = log.at(2, "call", 1)
    log.change(2, ("DELETE FROM entries WHERE idx = ?", (index,)))
    return 2, index + 1  # the one that stands where it is missed


@attack("delete an entry, and number the others anew")
def _(log: Log) -> Any:
    index = log.at(2, "call", 1)
    bodies = log.bodies(2)
    log.rewrite(2, bodies[:index] + bodies[index + 1 :])
    return 2, index


@attack("delete the first entry")
def _(log: Log) -> Any:
    log.change(2, "DELETE FROM entries WHERE idx = 0")
    return 2, 1


@attack("swap two entries")
def _(log: Log) -> Any:
    bodies = log.bodies(0)
    one, other = log.at(0, "call", 0), log.at(0, "call", 2)
    bodies[one], bodies[other] = bodies[other], bodies[one]
    log.rewrite(0, bodies)
    return 0, one


@attack("duplicate an entry")
def _(log: Log) -> Any:
    bodies = log.bodies(0)
    index = log.at(0, "call", 1)
    log.rewrite(0, [*bodies[: index + 1], bodies[index], *bodies[index + 1 :]])
    return 0, index + 1


@attack("duplicate an entry at the end, and sign with the stolen log key")
def _(log: Log) -> Any:
    bodies = log.bodies(0)
    log.rewrite(0, [*bodies, bodies[log.at(0, "call", -1)]])
    log.vouch(0, log.log_key)
    return 0, len(bodies)


@attack("splice in an entry of another log")
def _(log: Log) -> Any:
    bodies, other = log.bodies(1), other_log(log)
    index = log.at(1, "call", 1)
    bodies[index] = other.bodies(1)[other.at(1, "call", 1)]
    log.rewrite(1, bodies, other)
    return 1, index


@attack("splice in an entry of another log at the end, and sign with the stolen log key")
def _(log: Log) -> Any:
    bodies, other = log.bodies(3), other_log(log)
    log.rewrite(3, [*bodies, other.bodies(1)[other.at(1, "call", 1)]], other)
    log.vouch(3, log.log_key)
    return 3, len(bodies)


@attack("splice in an entry of another shard at the end, and sign with the stolen log key")
def _(log: Log) -> Any:
    bodies = log.bodies(3)
    log.rewrite(3, [*bodies, log.bodies(1)[log.at(1, "call", -1)]])
    log.vouch(3, log.log_key)
    return 3, len(bodies)


# the tail


@attack("truncate naively")
def _(log: Log) -> Any:
    size = len(log.bodies(1))
    log.change(1, ("DELETE FROM entries WHERE idx >= ?", (size - 3,)))
    return 1, size - 3


@attack("truncate to an older checkpoint, below what others have seen")
def _(log: Log) -> Any:
    *seen_by, seen = opening(log, 2, of=0)
    size = max(size for size in log.sizes(0) if size < seen)
    log.cut(0, size)
    return (0, size), tuple(seen_by)


@attack("truncate to an older checkpoint, above what others have seen")
def _(log: Log) -> Any:
    seen = max(opening(log, shard, of=0)[2] for shard in (1, 2, 3, 4))
    size = log.sizes(0)[-2]
    assert size >= seen
    log.cut(0, size)
    return (0, size), None


@attack("truncate a shard that nobody has seen to nothing but its opening entry")
def _(log: Log) -> Any:
    log.cut(4, 1)
    return (4, 1), None


@attack("empty a shard")
def _(log: Log) -> Any:
    for table in ("entries", "attachments", "summaries", "checkpoints"):
        log.change(4, f"DELETE FROM {table}")  # noqa: S608  of these four
    log.change(4, "UPDATE shard SET size = 0, range = x''")
    return 4, None


@attack("remove the checkpoints")
def _(log: Log) -> Any:
    log.change(1, "DELETE FROM checkpoints")
    return 1, len(log.bodies(1)) - 1


# whole shards


@attack("remove a shard: its file alone")
def _(log: Log) -> Any:
    log.path(4).unlink()
    return 4, None


@attack("remove a shard that nobody has seen, and its name from the registry")
def _(log: Log) -> Any:
    log.path(4).unlink()
    log.bring_back("later", "registry.json")
    return (4, None), None


@attack("remove a shard that others have seen, and its name from the registry")
def _(log: Log) -> Any:
    *seen_by, _size = opening(log, 3, of=2)
    log.path(2).unlink()
    log.write_registry([0, 1, 3, 4], log.issuer)
    return (2, None), tuple(seen_by)


@attack("remove a shard that others have seen, its name and its anchor")
def _(log: Log) -> Any:
    *seen_by, _size = opening(log, 3, of=2)
    log.path(2).unlink()
    log.write_registry([0, 1, 3, 4], log.issuer)
    log.anchor(2).unlink()
    return tuple(seen_by)


@attack("remove all shards but one, and the registry")
def _(log: Log) -> Any:
    for shard in (1, 2, 3, 4):
        log.path(shard).unlink()
    (log.state / "registry.json").unlink()
    return (2, None), (0, None)


@attack("roll back one shard")
def _(log: Log) -> Any:
    *seen_by, _size = opening(log, 1, of=2)
    log.bring_back("three", "shards/2.sqlite")
    return (2, len(log.bodies(2))), tuple(seen_by)


@attack("roll back the whole state")
def _(log: Log) -> Any:
    log.bring_back("later", "shards", "registry.json")
    return (0, len(log.bodies(0))), None


@attack("roll back the whole state to its first day")
def _(log: Log) -> Any:
    log.bring_back("one", "shards", "registry.json")
    return (0, len(log.bodies(0))), None


@attack("fork the whole log: another history of the same size, signed with the log key")
def _(log: Log) -> Any:
    sizes = [log.sizes(shard)[-1] for shard in range(5)]
    log.bring_back("fork", "shards", "registry.json")
    assert [log.sizes(shard)[-1] for shard in range(5)] == sizes
    return (0, 0), None


@attack("fork one shard that others have seen")
def _(log: Log) -> Any:
    *seen_by, _size = opening(log, 4, of=0)
    log.bring_back("fork", "shards/0.sqlite")
    return (0, 0), tuple(seen_by)


@attack("fork one shard that nobody has seen, but which has seen the others")
def _(log: Log) -> Any:
    log.bring_back("fork", "shards/4.sqlite")
    return (4, 0), (4, 0)


@attack("sign a shard anew with another key")
def _(log: Log) -> Any:
    log.vouch(2, log.stranger)
    return 2, 0


@attack("put another log's shard in the place of one")
def _(log: Log) -> Any:
    shutil.copy(log.other / "shards" / "1.sqlite", log.path(1))
    return 1, 0


@attack("rename a shard's file")
def _(log: Log) -> Any:
    log.path(2).rename(log.path(7))
    return 2, None


@attack("copy one shard over another")
def _(log: Log) -> Any:
    shutil.copy(log.path(1), log.path(2))
    return 2, 0


@attack("copy one shard to a number of its own")
def _(log: Log) -> Any:
    shutil.copy(log.path(1), log.path(5))
    return 5, 0


@attack("swap two shards")
def _(log: Log) -> Any:
    log.path(1).rename(log.path(9))
    log.path(2).rename(log.path(1))
    log.path(9).rename(log.path(2))
    return 1, 0


@attack("put what is no log in the place of a shard")
def _(log: Log) -> Any:
    log.path(2).write_bytes(b"not a database" * 1000)
    return 2, None


# the registry


@attack("remove the registry")
def _(log: Log) -> Any:
    (log.state / "registry.json").unlink()
    return 0, None


@attack("the registry of another log")
def _(log: Log) -> Any:
    shutil.copy(log.other / "registry.json", log.state / "registry.json")
    return 0, None


@attack("an unsigned registry")
def _(log: Log) -> Any:
    sealed = canonical.loads_object((log.state / "registry.json").read_bytes())
    (log.state / "registry.json").write_bytes(canonical.dumps({**sealed, "signatures": []}))
    return 0, None


@attack("a registry that the log key has signed")
def _(log: Log) -> Any:
    log.write_registry([0], log.log_key)
    return 0, None


@attack("a registry that a stranger has signed")
def _(log: Log) -> Any:
    log.write_registry([0, 1, 2, 3, 4], log.stranger)
    return 0, None


@attack("edit the registry")
def _(log: Log) -> Any:
    sealed: Any = canonical.loads_object((log.state / "registry.json").read_bytes())
    payload = canonical.b64_decode(sealed["payload"]).replace(b"[0,1,2,3,4]", b"[0,1,2,3]")
    sealed["payload"] = canonical.b64_encode(payload)
    (log.state / "registry.json").write_bytes(canonical.dumps(sealed))
    return 0, None


@attack("an empty registry file")
def _(log: Log) -> Any:
    (log.state / "registry.json").write_bytes(b"")
    return 0, None
