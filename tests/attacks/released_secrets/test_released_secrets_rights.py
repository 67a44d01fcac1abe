"""A secret is released to a running call of a tool that the configuration names, and to no other.

Each test that is refused has its twin, which gets the value from the same source.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from embedded_parts import runtime_of
from langchain_core.tools import StructuredTool
from private_calls import PASSPHRASE
from secret_calls import NAME, OTHER, VALUE

from agentguard import Decision, Denied, SecretError, UnguardedCallError, secret
from agentguard.delegation import context
from agentguard.domain import administration
from agentguard_langchain import guard_tools


def refused(function, *arguments, code="secret.refused", match=None):
    """Call a function that is not given the secret; return the error, which tells no value."""
    with pytest.raises(SecretError, match=match) as caught:
        function(*arguments)
    assert caught.value.code == code
    error: BaseException | None = caught.value
    while error is not None:
        assert VALUE not in repr(error)
        assert VALUE not in str(error)
        error = error.__cause__ or error.__context__
    return caught.value


def asks(guard, name, secret_name=NAME):
    """A guarded tool that asks for a secret and returns it."""
    return guard.tool(name=name)(lambda: secret(secret_name))


def asks_async(guard, name):
    async def tool():
        await asyncio.sleep(0)
        return await asyncio.to_thread(secret, NAME)

    return guard.tool(name=name)(tool)


# --- which tool, and whose authority --------------------------------------------------------------


def test_a_tool_that_is_named_gets_the_secret(scene):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        assert agent.call(asks(guard, "deploy")) == VALUE
        assert asyncio.run(agent.acall(asks_async(guard, "deploy"))) == VALUE
        assert len(scene.entries()) == 2


def test_another_tool_gets_none(scene):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        refused(agent.call, asks(guard, "read"), match=r"\[secrets.TOKEN\]")
        for name in ("Deploy", "deploy ", "deploy2", "*"):
            refused(agent.call, asks(guard, name))
        with pytest.raises(SecretError):
            asyncio.run(agent.acall(asks_async(guard, "read")))
        assert scene.entries() == []


def test_a_secret_that_is_not_configured_is_unknown(scene):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        for name in ("TOKEN2", "token", "", "../token", "\0"):
            tool = asks(guard, "deploy", name)
            refused(agent.call, tool, code="secret.unknown", match="agentguard.toml|configuration")
        assert scene.entries() == []


def test_nobody_gets_a_secret_outside_of_a_guarded_call(scene):
    with scene.open() as guard:
        with pytest.raises(UnguardedCallError) as caught:
            secret(NAME)
        assert caught.value.code == "tool.unguarded"
        tool = asks(guard, "deploy")
        with pytest.raises(UnguardedCallError):
            tool()
        assert guard.new_agent("reader").call(tool) == VALUE


def test_a_denied_call_gets_none(scene):
    with scene.open(lambda _: Decision.deny("no")) as guard:
        with pytest.raises(Denied):
            guard.new_agent("reader").call(asks(guard, "deploy"))
        assert scene.entries() == []


@pytest.mark.parametrize(
    ("lent", "gets"), [(["deploy:write"], True), (["docs:read"], False), ([], False)]
)
def test_the_authority_needs_the_scope_of_the_secret(scene, lent, gets):
    scene.scope = ("deploy:write",)
    with scene.open() as guard:
        tool, agent = asks(guard, "deploy"), guard.new_agent("writer")
        with guard.delegate("user:alice", scope=lent):
            if gets:
                assert agent.call(tool) == VALUE
            else:
                refused(agent.call, tool, match="deploy:write")
        assert len(scene.entries()) == gets


def test_an_agents_own_authority_needs_the_scope_too(scene):
    scene.scope = ("deploy:write",)
    with scene.open() as guard:
        assert guard.new_agent("reader").call(asks(guard, "deploy")) == VALUE
    scene.scope = ("money:move",)
    with scene.open() as guard:
        refused(guard.new_agent("reader").call, asks(guard, "deploy"), match="money:move")


@pytest.mark.parametrize("frozen", [True, False])
def test_after_a_freeze_a_running_call_gets_none(scene, frozen):
    settings = scene.settings

    def tool():
        if frozen:
            administration.freeze(
                settings, PASSPHRASE, frozen=True, note="stop", now=datetime.now(UTC)
            )
        return secret(NAME)

    with scene.open() as guard:
        deploy = guard.tool(name="deploy")(tool)
        agent = guard.new_agent("reader")
        if frozen:
            refused(agent.call, deploy, match="frozen")
        else:
            assert agent.call(deploy) == VALUE


# --- for how long ---------------------------------------------------------------------------------


def test_a_thread_that_outlives_its_call_gets_none(scene):
    go, got = threading.Event(), list[object]()

    def late():
        go.wait(30)
        try:
            got.append(secret(NAME))
        except SecretError as error:
            got.append(error.code)

    def tool():
        early = threading.Thread(target=contextvars.copy_context().run, args=(take,))
        early.start()
        early.join()
        thread = threading.Thread(target=contextvars.copy_context().run, args=(late,))
        thread.start()
        return thread

    def take():
        got.append(secret(NAME))

    with scene.open() as guard:
        threads = list[threading.Thread]()
        deploy = guard.tool(name="deploy")(lambda: threads.append(tool()))
        guard.new_agent("reader").call(deploy)
        go.set()
        threads[0].join()
        assert got == [VALUE, "secret.refused"]  # the thread within the call, and the late one
        assert len(scene.entries()) == 1


async def test_a_task_that_outlives_its_call_gets_none(scene):
    go, tasks = asyncio.Event(), list[asyncio.Task[str]]()

    async def late():
        await go.wait()
        return secret(NAME)

    async def tool():
        tasks.append(asyncio.create_task(late()))
        return await asyncio.create_task(asyncio.to_thread(secret, NAME))

    with scene.open() as guard:
        deploy = guard.tool(name="deploy")(tool)
        assert await guard.new_agent("reader").acall(deploy) == VALUE
        go.set()
        with pytest.raises(SecretError, match="has ended"):
            await tasks[0]


def test_a_call_that_ends_during_the_look_up_gets_none(scene, monkeypatch):
    """The source answers once the tool has returned: the value is dropped, and not on record."""
    reached, go, got = threading.Event(), threading.Event(), list[object]()
    read = os.read

    def slow(number, most):
        if threading.current_thread().name == "late":
            reached.set()
            go.wait(30)
        return read(number, most)

    def late():
        try:
            got.append(secret(NAME))
        except SecretError as error:
            got.append(error.code)

    def tool():
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(late,), name="late")
        thread.start()
        assert reached.wait(30)
        threads.append(thread)

    threads = list[threading.Thread]()
    with scene.open() as guard:
        monkeypatch.setattr(os, "read", slow)
        guard.new_agent("reader").call(guard.tool(name="deploy")(tool))
        go.set()
        threads[0].join()
    assert got == ["secret.refused"]
    assert scene.entries() == []
    assert scene.verify().ok


def test_the_end_of_a_call_waits_for_the_entry_of_a_release(scene, put_faults):
    """A release that is being put on record stands in the log before the call's outcome."""
    got, threads = list[object](), list[threading.Thread]()

    def late():
        try:
            got.append(secret(NAME))
        except SecretError as error:
            got.append(error.code)

    with scene.open() as guard:
        faults = put_faults(guard)

        def tool():
            faults.entered.clear()
            faults.gate = threading.Event()
            threads.append(threading.Thread(target=contextvars.copy_context().run, args=(late,)))
            threads[0].start()
            assert faults.entered.wait(30)  # the entry is being written now
            threading.Timer(0.2, faults.gate.set).start()

        guard.new_agent("reader").call(guard.tool(name="deploy")(tool))
        threads[0].join()
    assert got in (["secret.refused"], [VALUE])  # whichever was quicker: the end, or the entry
    assert len(scene.entries()) == 1
    assert scene.verify().ok


def test_a_forked_process_gets_none(scene):
    def tool():
        fork = multiprocessing.get_context("fork")
        answers = fork.Queue()

        def ask():
            try:
                answers.put(secret(NAME))
            except SecretError as error:
                answers.put(error.code)

        process = fork.Process(target=ask)
        process.start()
        answer = answers.get(timeout=60)
        process.join()
        return [answer, secret(NAME)]

    with scene.open() as guard:
        found = guard.new_agent("reader").call(guard.tool(name="deploy")(tool))
    assert found == ["secret.refused", VALUE]
    assert len(scene.entries()) == 1


# --- a call inside --------------------------------------------------------------------------------


def test_a_call_inside_has_its_own_right(scene):
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        deploy, read = asks(guard, "deploy"), asks(guard, "read")
        outer = guard.tool(name="outer")(lambda: agent.call(deploy))
        assert agent.call(outer) == VALUE  # the inner tool may have it, and the outer one may not
        refused(agent.call, guard.tool(name="outer")(lambda: (agent.call(deploy), secret(NAME))))

        def deploys():
            value = secret(NAME)
            refused(agent.call, read)  # what is around may have it, and the inner tool may not
            return value, secret(NAME)

        assert agent.call(guard.tool(name="deploy")(deploys)) == (VALUE, VALUE)


WAYS: dict[str, Callable[[str], object]] = {
    "as it is": str,
    "within a text": lambda value: {"auth": [f"Bearer {value}"]},
    "as a key": lambda value: {value: 1},
    "as bytes": str.encode,
    "in base64": lambda value: base64.b64encode(b"user:" + value.encode()).decode(),
    "with percents": lambda value: f"https://forge.example/?token={quote(value)}",
}


@pytest.mark.parametrize("way", [*WAYS, "not at all"])
def test_a_secret_is_no_argument_of_a_call_inside(scene, way):
    """Arguments go into the log and to the policy: a call that would bring them there is denied."""
    seen = list[str]()

    def policy(document):
        seen.append(str(document))
        return Decision.allow()

    with scene.open(policy) as guard:
        agent = guard.new_agent("reader")
        post = guard.tool(name="post")(lambda header: header)

        def deploy():
            value = secret(NAME)
            return agent.call(post, WAYS[way](value) if way in WAYS else "no secret")

        if way in WAYS:
            with pytest.raises(Denied) as caught:
                agent.call(guard.tool(name="deploy")(deploy))
            assert caught.value.code == "secret.exposed"
        else:
            assert agent.call(guard.tool(name="deploy")(deploy)) == "no secret"
    assert len(seen) == 1 + (way not in WAYS)
    assert not any(VALUE in text for text in seen)
    assert scene.holds(VALUE) == []
    assert scene.verify().ok


# --- adapters, and what is shown ------------------------------------------------------------------


def test_a_tool_of_langchain_gets_the_secret(scene):
    def deploy(where: str) -> str:
        """Deploy."""
        return f"{where}: {len(secret(NAME))}"

    async def adeploy(where: str) -> str:
        return f"{where}: {len(await asyncio.to_thread(secret, NAME))}"

    tool = StructuredTool.from_function(deploy, coroutine=adeploy)
    other = StructuredTool.from_function(deploy, name="other")
    with scene.open() as guard:
        agent = guard.new_agent("reader")
        guarded, refuses = guard_tools([tool, other], agent)
        expected = f"production: {len(VALUE)}"
        assert guarded.invoke({"where": "production"}) == expected
        assert asyncio.run(guarded.ainvoke({"where": "production"})) == expected
        refused(refuses.invoke, {"where": "production"})


def test_no_repr_shows_a_value(scene, caplog):
    caplog.set_level(logging.DEBUG)
    shown = list[str]()

    def tool():
        value = secret(NAME)
        running = context.running_call()
        assert running is not None
        shown.extend(map(repr, (running, running.releases, running.releases.held)))
        return value

    with scene.open() as guard:
        guard.new_agent("reader").call(guard.tool(name="deploy")(tool))
        refused(guard.new_agent("reader").call, asks(guard, "read"))
        shown += [repr(runtime_of(guard).current_ports().secrets), repr(scene.settings)]
    assert VALUE not in caplog.text + "".join(shown)
    assert "tool read" in caplog.text  # the operator reads who was refused


def test_each_release_looks_the_secret_up_anew(scene):
    with scene.open() as guard:
        agent, tool = guard.new_agent("reader"), asks(guard, "deploy")
        assert agent.call(tool) == VALUE
        scene.put(OTHER)
        assert agent.call(tool) == OTHER
        scene.file.unlink()
        refused(agent.call, tool, code="secret.failed", match="there is no file")
        assert len(scene.entries()) == 2
