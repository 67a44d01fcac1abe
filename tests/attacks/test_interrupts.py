"""An interrupt at the start of any function of the log's commit leaves a log that goes on.

There, and at jumps back, is where CPython looks for signals.
"""

from __future__ import annotations

import gc
import sys
import threading

import pytest

from agentguard import Decision, Guard
from agentguard.examination import examine
from agentguard.storage import log as storage_log

FILE = storage_log.__file__
WAITING = {"wait", "notify", "notify_all"}


def interrupt_at(event: int):
    """Return a trace function that raises once, at that call inside the log's file."""
    left = event

    def trace(frame, _event, _argument):
        nonlocal left
        code = frame.f_code
        if code.co_filename == FILE or (
            code.co_filename == threading.__file__ and code.co_name in WAITING
        ):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    return trace


@pytest.mark.parametrize("event", range(1, 30))
def test_an_interrupt_at_any_call_of_a_call_leaves_the_log_usable(event):
    guard = Guard.ephemeral(lambda _call: Decision.allow())
    agent = guard.new_agent("a")
    tool = guard.tool(lambda x: x)
    gc.collect()  # what earlier tests have left must not end in the middle of this one
    sys.settrace(interrupt_at(event))
    try:
        agent.call(tool, 1)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    results: list[int] = []
    another = threading.Thread(target=lambda: results.append(agent.call(tool, 2)), daemon=True)
    another.start()
    another.join(timeout=20)
    assert results == [2]
    assert agent.call(tool, 3) == 3
    report = examine(guard.reader(), guard.trust)
    assert report.ok, report.problems
