"""The processes that fork for the programs of the tests (``tests/support/preloaded.py``)."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from preloaded import Preloaded


@pytest.fixture
def started():
    made = Preloaded()
    yield made
    made.close()


def test_another_process_takes_over_from_one_that_has_ended(started, tmp_path):
    assert started.run("-c", "print(1)", cwd=tmp_path).stdout == "1\n"
    for first in started._first.values():
        os.kill(first._process.pid, signal.SIGKILL)
        first._process.wait()
    with pytest.warns(RuntimeWarning, match="has ended with the code -9"):
        result = [started.run("-c", "print(2)", cwd=tmp_path).stdout for _ in range(3)]
    assert result == ["2\n"] * 3


def test_a_question_waits_for_the_answer_to_another_threads_question(started, tmp_path):
    with ThreadPoolExecutor(8) as threads:
        printed = threads.map(
            lambda number: started.run("-c", f"print({number})", cwd=tmp_path).stdout, range(24)
        )
    assert list(printed) == [f"{number}\n" for number in range(24)]
