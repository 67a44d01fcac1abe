"""A guard proves requests for a running call alone, in this process and through a guard server."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
from tool_servers import SCOPE, guard_in_memory, in_call, send, tool_server

from agentguard import ProofError, UnguardedCallError
from agentguard.delegation.context import running_call
from agentguard.proof.presentation import prove_request

URL = "https://payments.example"


@pytest.fixture
def guard():
    with guard_in_memory() as guard:
        yield guard


def prove():
    return prove_request("POST", f"{URL}/pay", b"")


def code_of(function, *arguments):
    with pytest.raises(ProofError) as caught:
        function(*arguments)
    return caught.value.code


def test_a_running_tool_gets_a_proof_and_code_outside_gets_none(guard):
    with pytest.raises(UnguardedCallError):
        prove()
    assert in_call(guard, prove, audience=[URL]).proof.count(".") == 2
    with (
        guard.delegate("user:alice", scope=SCOPE, audience=[URL]),
        pytest.raises(UnguardedCallError),
    ):
        prove()


def test_a_call_that_has_ended_gets_none(guard):
    kept: list[Any] = []
    in_call(guard, lambda: kept.append((running_call(), prove())), audience=[URL])
    assert kept[0][1].proof
    assert code_of(kept[0][0].releases.prove, "POST", f"{URL}/pay", "0" * 64) == "proof.refused"


def test_a_thread_of_the_call_gets_none_after_the_end(guard):
    may_go, found = threading.Event(), []

    def late(releases):
        may_go.wait(30)
        found.append(code_of(releases.prove, "POST", f"{URL}/pay", "0" * 64))

    def tool():
        running: Any = running_call()
        thread = threading.Thread(target=late, args=(running.releases,))
        thread.start()
        return thread

    tool_spec = guard.tool(name="pay")(lambda: threads.append(tool()))
    threads: list[threading.Thread] = []
    with guard.delegate("user:alice", scope=SCOPE, audience=[URL]):
        guard.new_agent("payer").call(tool_spec)
    may_go.set()
    threads[0].join()
    assert found == ["proof.refused"]


def test_an_agent_on_its_own_authority_has_nothing_to_show(guard):
    alone = guard.tool(name="pay")(prove)
    assert code_of(guard.new_agent("alone").call, alone) == "proof.refused"
    assert in_call(guard, prove, audience=[URL]).access_token


def test_the_inner_call_proves_for_itself(guard, tmp_path):
    with tool_server(guard, tmp_path) as server:

        def ask():
            return send(f"{server.url}/pay", server.url).json()

        inner = guard.tool(name="inner")(ask)

        def outer():
            return guard.new_agent("other").call(inner), ask()

        within, around = in_call(guard, outer, audience=[server.url], agent="lead")
    assert within["actors"][-2:] == ["agent:lead", "agent:other"]
    assert around["actors"][-1] == "agent:lead"
    assert within["invocation_sha256"] != around["invocation_sha256"]


def test_a_narrowed_delegation_lends_no_wider_token(guard, tmp_path):
    with tool_server(guard, tmp_path) as server:
        task = guard.delegate("user:alice", scope=SCOPE, audience=[server.url])
        tool = guard.tool(name="pay")(lambda: send(f"{server.url}/pay", server.url).json()["scope"])
        with task:
            assert guard.new_agent("payer").call(tool) == SCOPE
        with task.narrowed(scope=[]):
            assert guard.new_agent("payer").call(tool) == []


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of a fork beside threads
def test_a_forked_process_proves_nothing_for_a_call_of_its_parent(guard):
    def forked():
        prove()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                prove()
                os.write(writing, b"proved")
            except ProofError as error:
                os.write(writing, error.code.encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            found = answer.read()
        os.waitpid(child, 0)
        return found

    assert in_call(guard, forked, audience=[URL]) in ("proof.refused", "proof.failed")
