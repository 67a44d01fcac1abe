"""Releases beside the end of their call, beside each other, and in a process that dies."""

from __future__ import annotations

import asyncio
import contextvars
import multiprocessing
import os
import threading
import traceback

import pytest
from secret_calls import NAME, VALUE

from agentguard import SecretError, secret
from agentguard.delegation import context
from agentguard.errors import StorageError


def answer(got):
    """Ask for the secret, and note the value or the code of the refusal."""
    try:
        got.append(secret(NAME))
    except SecretError as error:
        got.append(error.code)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_the_end_of_an_async_call_waits_for_the_entry_of_a_release(
    scene, put_faults, cancelled
):
    """The tool returns while a thread has its release written; the task may be cancelled, too."""
    got, pending, returns = list[object](), list[asyncio.Future[None]](), asyncio.Event()
    with scene.open() as guard:
        faults = put_faults(guard)

        async def tool():
            faults.entered.clear()
            faults.gate = threading.Event()
            pending.append(asyncio.ensure_future(asyncio.to_thread(answer, got)))
            assert await asyncio.to_thread(faults.entered.wait, 30)
            returns.set()
            return "done"

        deploy = guard.tool(name="deploy")(tool)
        call = asyncio.create_task(guard.new_agent("reader").acall(deploy))
        await returns.wait()
        assert faults.gate is not None
        await asyncio.sleep(0.05)  # the flow waits for the entry by now, as a rule
        if cancelled:
            call.cancel()
            await asyncio.sleep(0.05)
        assert not call.done()
        faults.gate.set()
        if cancelled:
            with pytest.raises(asyncio.CancelledError):
                await call
        else:
            assert await call == "done"
        await pending[0]
    assert got == ["secret.refused"]  # on record, and not handed out: the call had ended
    assert len(scene.entries()) == len(scene.entries("outcome")) == 1
    assert scene.verify().ok


def test_many_releases_at_once_are_all_on_record(scene):
    with scene.open() as guard:
        deploy, agent = guard.tool(name="deploy")(lambda: secret(NAME)), guard.new_agent("reader")
        got = list[str]()

        def calls():
            for _ in range(10):
                got.append(agent.call(deploy))

        threads = [threading.Thread(target=calls) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == [VALUE] * 80
    assert len(scene.entries()) == 80
    assert scene.verify().ok
    assert scene.holds(VALUE) == []


def test_threads_of_one_call_get_the_secret_side_by_side(scene):
    def tool():
        got = list[object]()
        runs = [contextvars.copy_context().run for _ in range(8)]
        threads = [threading.Thread(target=run, args=(answer, got)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return got

    with scene.open() as guard:
        deploy = guard.tool(name="deploy")(tool)
        assert guard.new_agent("reader").call(deploy) == [VALUE] * 8
    assert len(scene.entries()) == 8
    assert scene.verify().ok


def test_a_process_that_dies_with_the_secret_is_on_record(scene):
    def die():
        guard = scene.open()

        def tool():
            secret(NAME)
            os._exit(7)

        guard.new_agent("reader").call(guard.tool(name="deploy")(tool))

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join(60)
    assert process.exitcode == 7
    assert [entry.members["tool"] for entry in scene.entries()] == ["deploy"]
    report = scene.verify()
    assert (report.ok, len(report.in_doubt)) == (True, 1)
    assert scene.holds(VALUE) == []


def test_the_values_are_dropped_at_the_end_of_the_call(scene):
    """A task that outlives the call keeps its context, and so the call's object."""
    kept = list[context.RunningCall]()

    def tool():
        running = context.running_call()
        assert running is not None
        kept.append(running)
        secret(NAME)
        assert {one.reveal().decode() for one in running.releases.held} == {VALUE}

    with scene.open() as guard:
        agent = guard.new_agent("reader")
        deploy = guard.tool(name="deploy")(tool)
        agent.call(guard.tool(name="outer")(lambda: agent.call(deploy)))
    assert [running.releases.held for running in kept] == [()]


@pytest.mark.parametrize("way", ["another tool", "no record", "no file", "an end"])
def test_a_traceback_with_its_variables_shows_no_value(scene, put_faults, way):
    """Reports of errors (Sentry, rich, pytest -l) show the variables of each frame."""
    errors = list[SecretError]()

    def tool():
        if way == "no record":
            faults.before = StorageError("full", code="storage.full")
        elif way == "no file":
            scene.put(b"\xff" + VALUE.encode())
        elif way == "an end":
            running = context.running_call()
            assert running is not None
            running.releases.end()
        try:
            secret(NAME)
        except SecretError as error:
            errors.append(error)
        faults.before = None

    with scene.open() as guard:
        faults = put_faults(guard)
        name = "read" if way == "another tool" else "deploy"
        guard.new_agent("reader").call(guard.tool(name=name)(tool))
    report = traceback.TracebackException.from_exception(errors[0], capture_locals=True)
    text = "".join(report.format())
    assert "desk.py" in text
    assert VALUE not in text
    assert repr(VALUE.encode())[2:-1] not in text
