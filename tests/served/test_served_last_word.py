"""What a client knows of its outcomes once a server has ended, or was killed."""

from __future__ import annotations

import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentguard import Guard
from agentguard.client.connection import Connection
from agentguard.wire.frame import Frame
from agentguard.wire.stream import EndedError, Stream


def test_a_client_knows_which_outcomes_a_server_has_that_has_ended(place, caplog):
    """No request follows the outcomes of an idle client's last calls, on four connections."""
    guard: Guard = place.connect()
    meeting = threading.Barrier(4)
    agent = guard.new_agent("clerk")

    @guard.tool(name="note")
    def note(text: str) -> str:
        if text == "together":
            meeting.wait(20)
        return text

    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            for call in [pool.submit(agent.call, note, "together") for _ in range(4)]:
                call.result()
            place.stop(signal.SIGTERM)
            place.start()
            agent.call(note, "after")
    guard.close()
    assert "did not reach" not in caplog.text
    assert "lacks outcomes" not in caplog.text
    place.stop(signal.SIGTERM)
    kinds = [entry.kind for entry in place.entries()]
    assert kinds.count("call") == kinds.count("outcome") == 10


def test_of_a_server_that_was_killed_a_client_knows_nothing(place, caplog):
    guard: Guard = place.connect()
    agent = guard.new_agent("clerk")
    note = guard.tool(name="note")(lambda text: text)
    agent.call(note, "before")
    place.stop(signal.SIGKILL)
    place.start()
    agent.call(note, "after")
    assert caplog.text.count("did not reach the guard server") == 1


@pytest.mark.parametrize(("taken", "left"), [(0, 3), (1, 2), (3, 0), (-1, 3), (True, 3), ("3", 3)])
def test_the_last_word_of_a_server_says_how_many_reports_it_has(taken, left):
    here, there = socket.socketpair()
    connection, server = Connection(Stream(here)), Stream(there)
    connection.reports = [Frame({"op": "outcome", "call": str(number)}) for number in range(3)]
    server.write(Frame({"taken": taken}))
    server.close()
    connection.hear_last_word(EndedError("the connection has ended"))
    calls = [report.header["call"] for report in connection.take_reports()]
    assert calls == ["0", "1", "2"][3 - left :]
    connection.stream.close()
