"""SIGKILL of the server, and of its clients, at random moments.

No effect without a durable authorization, none twice; what a client was told of is in the log;
calls without an outcome are in doubt; and the clients go on by themselves. A few kills by default,
300 of each with ``AGENTGUARD_ROUNDS=full``, and as many as ``AGENTGUARD_KILLS`` says.
"""

from __future__ import annotations

import os
import random
import signal
import textwrap
import time

import pytest
from rounds import FULL
from served_intruder import MALLORY, require_root
from served_place import founded_place

KILLS = int(os.environ.get("AGENTGUARD_KILLS", "300" if FULL else "4"))
CLIENTS = 8

POLICY = """
package agent.authz

default allow := false

allow if input.action == "effect"
"""

MORE = """
[agents.worker]
authority = "own"
max_scope = []
"""

PROGRAM = textwrap.dedent("""
    import os, sys, threading
    from pathlib import Path
    from agentguard import Denied, Guard, idempotency_key

    folder, name = Path(sys.argv[1]), sys.argv[2]
    says = os.open(folder / f"{name}.said", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.setgroups([])
    os.setresgid(int(sys.argv[3]), int(sys.argv[3]), int(sys.argv[3]))
    os.setresuid(int(sys.argv[3]), int(sys.argv[3]), int(sys.argv[3]))
    effects = os.open(folder / "effects", os.O_APPEND | os.O_WRONLY)
    guard = Guard.connect(f"unix:{folder / 's'}")
    agent = guard.new_agent("worker")

    @guard.tool
    def effect(name):
        os.write(effects, f"{idempotency_key()} {name}\\n".encode())  # seen by all after a SIGKILL
        return name

    def work(thread):
        for number in range(1_000_000):
            one = f"{name}-{thread}-{number}"
            try:
                agent.call(effect, one)
            except Denied as denied:
                os.write(says, f"denied {denied.code}\\n".encode())
            else:
                os.write(says, f"returned {one}\\n".encode())

    os.write(1, b"loaded\\n")
    for thread in range(2):
        threading.Thread(target=work, args=(thread,), daemon=True).start()
    sys.stdin.readline()
    os._exit(0)
""")
"""A client that makes calls until its end."""


@pytest.fixture
def place(programs):
    require_root()
    more = f"{MORE}\n[clients.worker]\nuid = {MALLORY}\nagents = ['worker']\n"
    with founded_place(programs, more) as place:
        place.folder.chmod(0o755)
        (place.folder / "authz.rego").write_text(POLICY, encoding="utf-8")
        (place.folder / "effects").touch(0o666)
        (place.folder / "effects").chmod(0o666)
        place.start()
        yield place


class Worker:
    """A process of another user that makes calls, and writes down which have returned."""

    def __init__(self, place, name):
        self.place, self.path = place, place.folder / f"{name}.said"
        self.talk = place.programs.talk(
            "-c", PROGRAM, place.folder, name, MALLORY, cwd=place.folder
        )

    def said(self, what):
        """Return what the process has said of calls that returned, or were denied."""
        lines = self.path.read_text().split("\n")[:-1] if self.path.exists() else []
        return [line.split()[1] for line in lines if line.startswith(what)]

    def goes_on(self):
        """Wait until one more call has returned."""
        before = len(self.said("returned"))
        self.place.wait_for(lambda: len(self.said("returned")) > before, "a call")

    def end(self):
        self.talk.kill()
        _output, errors = self.talk.communicate()
        assert "Traceback" not in errors


def said(workers, what):
    return {one for worker in workers for one in worker.said(what)}


def require_sound(place, workers):
    """Compare the effects with the log, once all processes have ended."""
    lines = (place.folder / "effects").read_text(encoding="utf-8").split("\n")[:-1]
    effects = dict(reversed(line.split(" ")) for line in lines)  # the invocation, by the name
    assert len({line.split(" ")[0] for line in lines}) == len(lines), "an effect happened twice"
    calls = {call.invocation_id: call for call in place.calls()}
    assert set(effects.values()) <= calls.keys(), "an effect without a durable authorization"
    assert {calls[one].decision for one in effects.values()} <= {"allow"}
    returned = said(workers, "returned")
    assert returned <= effects.keys(), "a call returned without its effect"
    report = place.verify()
    assert report.problems == ()
    ended = {outcome.invocation_sha256 for outcome in place.outcomes()}
    open_calls = {
        call.invocation_id
        for call in calls.values()
        if call.decision == "allow" and call.invocation_sha256 not in ended
    }
    assert set(report.in_doubt) == open_calls
    return effects


def test_kills_of_the_server_at_any_moment(place):
    workers = [Worker(place, f"w{number}") for number in range(CLIENTS)]
    for worker in workers:
        worker.goes_on()
    for _ in range(KILLS):
        time.sleep(random.random() * 0.25)  # noqa: S311  no secret
        place.stop(signal.SIGKILL)
        time.sleep(random.random() ** 3 * 0.25)  # noqa: S311
        place.start()
    for worker in workers:  # by itself, whatever it did when the server was killed
        worker.goes_on()
        worker.goes_on()
    for worker in workers:
        worker.end()
    place.stop()
    effects = require_sound(place, workers)
    assert len(effects) > KILLS + CLIENTS
    assert said(workers, "denied") <= {"server.unreachable", "server.restarted", "server.unknown"}


def test_kills_of_clients_at_any_moment(place):
    workers = [Worker(place, f"w{number}") for number in range(CLIENTS)]
    for worker in workers:
        worker.goes_on()
    ended = []
    for number in range(KILLS):
        time.sleep(random.random() * 0.1)  # noqa: S311  no secret
        ended.append(workers.pop(random.randrange(len(workers))))  # noqa: S311
        ended[-1].end()
        workers.append(Worker(place, f"n{number}"))
    for worker in workers:
        worker.goes_on()
    for worker in workers:
        worker.end()
    place.wait_for(lambda: place.status()["calls"] == 0, "lost clients are forgotten")
    assert "failed in the server" not in place.said()
    place.stop()
    effects = require_sound(place, [*ended, *workers])
    assert len(effects) > KILLS + CLIENTS
    assert said([*ended, *workers], "denied") == set()
