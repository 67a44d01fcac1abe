"""What is erased is nowhere in the state any more, and the log verifies.

Whoever reads the state's files looks for the bytes of an erased call, while other processes write
and read the log.
"""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from private_calls import CLEAR, SECRET, Scene, call, erase, login, spellings

from agentguard import Denied, StorageError
from agentguard.audit.evidence import verify_evidence
from agentguard.audit.prove import prove_call
from agentguard.domain import administration, keystore
from agentguard.errors import CallError
from agentguard.storage import sqlite
from agentguard.store.reader import StoredLog
from agentguard.store.sqlite import erase as erase_attachments
from agentguard.store.sqlite import path_in

SHAPES = {
    "small": (CLEAR, SECRET),
    "many pages": (CLEAR * 5000, SECRET * 4000),
    "in the middle of a page": (CLEAR, {"deep": [SECRET] * 40}),
}


@pytest.mark.parametrize("values", SHAPES.values(), ids=SHAPES)
def test_what_is_erased_is_nowhere_any_more(scene, values):
    guard = scene.open()
    tool = login(guard)
    with guard:
        agent = guard.new_agent("reader")
        agent.call(tool, "somebody", "else before")
        agent.call(tool, *values)
        wanted = scene.newest()
        agent.call(tool, "somebody", "else after")
    assert scene.holds(SECRET) == ["log.sqlite"]
    assert scene.holds(scene.salts[1]) == ["log.sqlite"]
    done = erase(scene, wanted)
    assert (done.attachments, done.call.invocation_id) == (3, wanted)
    assert scene.holds(SECRET, CLEAR, scene.salts[1]) == []
    assert scene.holds(scene.salts[0]) == scene.holds(scene.salts[2]) == ["log.sqlite"]
    assert scene.holds("else before") == scene.holds("else after") == ["log.sqlite"]
    report = scene.verify()
    assert (report.ok, report.anchored, report.in_doubt) == (True, True, ())


SIZES = {
    "many to a page": (10, 100, 200),
    "some to a page": (10, 400, 900, 1500, 3000),
    "far more than a page": (300, 6000),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_of_hundreds_of_calls_each_that_is_erased_is_nowhere(scene, monkeypatch, sizes):
    """With SQLite's own default, which keeps what is freed; here it may be built with another.

    Nor does SQLite leave copies of the others in free space, where it would divide or merge pages:
    no later erasure would reach them.
    """
    connect = sqlite3.connect

    def connect_as_by_default(*args: Any, **options: Any) -> Any:
        connection = connect(*args, **options)
        connection.execute("PRAGMA secure_delete=OFF")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_as_by_default)
    chance = random.Random(len(sizes))  # noqa: S311  the same calls each time
    erased: set[int] = set()
    with scene.open() as guard:
        tool = guard.tool(lambda a, b: {"a": a, "b": b}, name="login")
        agent = guard.new_agent("reader")
        for number in range(200):
            mark = f"<{number:06}>"  # so long that no digest or salt has the same bytes by chance
            agent.call(tool, mark, mark * (chance.choice(sizes) // len(mark)))
            if number % 50 == 49:  # while the guard goes on writing
                guard.reader().close()  # with the newest outcome in the log
                erased |= erase_some(scene, chance)
    file = path_in(scene.settings.state).read_bytes()
    assert {number for number in range(200) if b"<%06d>" % number not in file} == erased
    copies = [file.count(b'{"a":"<%06d>"' % number) for number in range(200)]
    assert max(copies) == 3  # arguments, input, result
    assert 100 < len(erased) < 190


def erase_some(scene: Scene, chance: random.Random) -> set[int]:
    """Erase a half of the calls, of the oldest and of the newest too; return their numbers."""
    kept = scene.rows("SELECT idx, data FROM attachment WHERE role = 'arguments' AND data <> x''")
    numbers = {index: int(json.loads(data)["a"][1:-1]) for index, data in kept}
    chosen = {min(numbers), max(numbers), *chance.sample(sorted(numbers), len(numbers) // 2)}
    for index in chance.sample(sorted(chosen), len(chosen)):
        erase_attachments(path_in(scene.settings.state), [index, index + 1])
    return {numbers[index] for index in chosen}


def test_no_erasure_leaves_a_copy_of_what_is_erased_later(scene):
    """Rows that are deleted one by one have SQLite merge pages: with these, a copy would stay."""
    chance = random.Random(1)  # noqa: S311  the same rows each time
    path = path_in(scene.settings.state)
    with scene.open():
        pass  # makes the file
    with closing(sqlite3.connect(path)) as connection:
        for index in range(1000, 1150):
            mark = b"<%d>" % index
            data = mark * (chance.choice((600, 700)) // len(mark) + 1)
            connection.execute(
                "INSERT INTO attachment VALUES (0, ?, 'result', ?, ?, ?)",
                (index, "c" * 64, bytes(32), data),
            )
        connection.commit()
    order = list(range(1000, 1150))
    chance.shuffle(order)
    for number, index in enumerate(order, start=1):
        erase_attachments(path_in(scene.settings.state), [index])
        if number % 25 == 0:
            file = path.read_bytes()
            assert [one for one in order if b"<%d>" % one not in file] == order[:number]


def test_the_proof_of_an_erased_call_holds_before_and_after(scene):
    guard = scene.open()
    call(guard, login(guard), CLEAR, SECRET)
    trust = keystore.load_trust(scene.settings.state)

    def prove() -> bytes:
        with closing(StoredLog.of(scene.settings.state)) as reader:
            return prove_call(reader, trust, scene.newest())

    before = prove()
    erase(scene)
    after = prove()
    assert any(form in before for form in spellings(SECRET.encode()))
    assert not any(form in after for form in spellings(SECRET.encode()))
    verify_evidence(before, trust)  # a file that somebody has kept is out of the erasure's reach
    verify_evidence(after, trust)


def test_a_redacted_call_can_be_erased_as_well(scene):
    guard = scene.redacting(login=["/args/password", "/result/token"]).open()
    call(guard, login(guard), CLEAR, SECRET)
    assert scene.holds(CLEAR) == ["log.sqlite"]
    assert erase(scene).attachments == 3
    assert scene.holds(CLEAR) == []
    assert scene.verify().ok


def test_a_crash_between_the_entry_and_the_erasure_is_made_good_by_doing_it_again(
    scene, monkeypatch
):
    guard = scene.open()
    call(guard, login(guard), CLEAR, SECRET)
    with monkeypatch.context() as patched:
        patched.setattr(
            administration,
            "erase_attachments",
            lambda *_args: (_ for _ in ()).throw(KeyboardInterrupt),
        )
        with pytest.raises(KeyboardInterrupt):
            erase(scene)
    assert scene.holds(SECRET) == ["log.sqlite"]
    assert scene.verify().ok
    assert erase(scene).attachments == 3
    assert scene.holds(SECRET) == []
    assert erase(scene).attachments == 0  # and again is no harm
    assert scene.verify().ok


def test_a_call_with_nothing_to_erase(scene):
    guard = scene.open()
    with pytest.raises(Denied):
        call(guard, login(guard), CLEAR, object())
    assert erase(scene).attachments == 0
    report = scene.verify()
    assert (report.ok, report.in_doubt) == (True, ())


def test_an_unknown_call_is_not_erased_and_nothing_is_logged(scene):
    guard = scene.open()
    call(guard, login(guard), CLEAR, SECRET)
    before = scene.verify().entries
    for unknown in ("0" * 32, "", scene.newest()[:16], scene.newest().upper(), "%"):
        with pytest.raises(CallError) as caught:
            erase(scene, unknown or " ")
        assert caught.value.code == "call.unknown"
    assert scene.verify().entries == before
    assert scene.holds(SECRET) == ["log.sqlite"]


def test_a_column_that_lies_does_not_have_another_calls_result_erased(scene):
    guard = scene.open()
    tool = login(guard)
    with guard:
        agent = guard.new_agent("reader")
        agent.call(tool, "a", "what the first one said")
        agent.call(tool, "b", "what the second one said")
    (_, first), (_, second) = scene.calls()
    scene.rows(
        "UPDATE entry SET invocation_id = ? WHERE kind = 'outcome' AND invocation_id = ?",
        first.invocation_id,
        second.invocation_id,
    )
    assert erase(scene, first.invocation_id).attachments == 3
    assert scene.holds("what the second one said") == ["log.sqlite"]
    assert scene.holds("what the first one said") == []


def test_while_somebody_reads_the_old_bytes_it_says_that_they_are_still_there(scene, monkeypatch):
    monkeypatch.setitem(sqlite.OPTIONS, "timeout", 0.2)
    guard = scene.open()
    call(guard, login(guard), CLEAR, SECRET)
    path = path_in(scene.settings.state)
    with closing(sqlite3.connect(path, isolation_level=None)) as reading:
        reading.execute("BEGIN")
        assert reading.execute("SELECT count(*) FROM attachment").fetchone() == (3,)
        with pytest.raises(StorageError, match=r"is being read: .* try again") as caught:
            erase(scene)
        assert caught.value.code == "storage.locked"
        reading.execute("COMMIT")
    assert erase(scene).attachments == 0
    assert scene.holds(SECRET) == []
    assert scene.verify().ok


WRITER = """
import sys, time
from agentguard import Decision, Guard
from agentguard.guard.embedded import Embedded
from agentguard.domain import config
from agentguard.domain import domain
from agentguard.policy.function import FunctionEngine
from pathlib import Path

folder = Path(sys.argv[1])
tables = {"trust_domain": "acme.example", "state": str(folder / "state"),
          "anchor": str(folder / "anchor"), "policy": {"path": "unused:unused"},
          "agents": {"reader": {"authority": "own"}}}
settings = config.parse(tables, source="agentguard.toml", base=folder)
home = domain.take_up(settings, b"correct horse battery staple")
with Guard(Embedded(settings, FunctionEngine(lambda _d: Decision.allow()), home)) as guard:
    agent = guard.new_agent("reader")

    @guard.tool
    def login(user: str, password: str) -> str:
        return password

    agent.call(login, "nothing-to-hide", sys.argv[2])
    agent.call(login, "somebody", "else")  # with it, the outcome of the call before is durable
    print("ready", flush=True)
    count = 2
    while not (folder / "stop").exists():
        agent.call(login, "somebody", f"else {count}")
        count += 1
    print(count, flush=True)
"""


def erased_at_last(scene: Scene, wanted: str) -> Any:
    """Erase a call's content, again where the writer was just reading, as the error says."""
    for _ in range(100):
        try:
            return erase(scene, wanted)
        except StorageError as error:
            assert error.code == "storage.locked"  # noqa: PT017  the others are findings
    raise AssertionError("the writer never stops reading")


def test_another_process_may_write_meanwhile(scene):
    """In another process, which has the call's own pages in its cache and in its -wal."""
    folder = scene.settings.base
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), SECRET],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        try:
            wanted = scene.calls()[0][1].invocation_id
            done = erased_at_last(scene, wanted)
            held = scene.holds(SECRET)
            before = scene.verify().entries  # while it writes on
        finally:
            (folder / "stop").touch()
        count = int(writer.stdout.readline())
        assert writer.wait(timeout=120) == 0
    assert done.attachments in (3, 0)  # none, where only the -wal file was left to be emptied
    assert held == []
    assert scene.holds(SECRET) == []
    report = scene.verify()
    assert (report.ok, report.anchored, report.in_doubt) == (True, True, ())
    assert report.entries >= before
    assert len(scene.calls()) == count


def test_without_the_admin_key_nothing_is_erased(scene):
    guard = scene.open()
    call(guard, login(guard), CLEAR, SECRET)
    (scene.settings.state / "keys" / "admin").unlink()
    with pytest.raises(Exception, match="admin"):
        erase(scene)
    assert scene.holds(SECRET) == ["log.sqlite"]


def test_files_stay_private(scene):
    guard = scene.redacting(every=["/args"]).open()
    call(guard, login(guard), CLEAR, SECRET)
    erase(scene)
    kept = [path for path in scene.settings.state.rglob("*") if path.is_file()]
    modes = {Path(path).name: path.stat().st_mode & 0o077 for path in kept}
    assert not any(modes.values()), modes
