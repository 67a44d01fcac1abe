"""CrewAI builds the flow definition of an executor's class once: in one thread, and past a fork."""

from __future__ import annotations

import os
import threading

import pytest
from crewai.agents.agent_executor import AgentExecutor

from agentguard_crewai.executor import define_flow


def test_threads_that_start_at_once_build_the_definition_one_after_the_other():
    overlap = threading.Event()
    building: list[object] = []

    class Executor(AgentExecutor):
        @classmethod
        def flow_definition(cls):
            building.append(cls)
            if len(building) > 1:
                overlap.set()
            overlap.wait(0.1)  # for as long as another thread has to come in
            building.pop()

    threads = [threading.Thread(target=define_flow, args=(Executor,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not overlap.is_set()


@pytest.mark.filterwarnings(
    "ignore:This process:DeprecationWarning"
)  # Python 3.12 warns of threads
def test_a_fork_while_another_thread_builds_the_definition_goes_on():
    begun, goes_on = threading.Event(), threading.Event()

    class Executor(AgentExecutor):
        @classmethod
        def flow_definition(cls):
            begun.set()
            goes_on.wait(60)

    thread = threading.Thread(target=define_flow, args=(Executor,))
    thread.start()
    assert begun.wait(60)
    threading.Timer(0.1, goes_on.set).start()
    child = os.fork()
    if child == 0:
        threading.Timer(30, os._exit, args=(1,)).start()
        goes_on.set()
        define_flow(AgentExecutor)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    thread.join(60)
