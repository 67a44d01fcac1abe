"""Delegations of a hundred users at once, limits on calls, and forks.

No call runs for another user, no limit is passed under eight threads or in several processes, and a
fork acts for the same user as an instance of its own.
"""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from delegated_agents import AGENTS
from denial_lines import without_denials
from preloaded import Talk

from agentguard import Decision, Denied, Guard, verify_evidence
from agentguard.audit.kinds import parse_entry
from agentguard.audit.kinds.calls import CallEntry
from agentguard.audit.kinds.identities import DelegationEntry
from agentguard.delegation import access_token
from agentguard.domain import config
from agentguard.signing.canonical import loads_object

FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"
USERS = [f"user:{number:03}" for number in range(100 if FULL else 40)]

# --- 100 users at once ----------------------------------------------------------------------------


def whole(guard):
    """Every call on record: its arguments, its statement, and the chain that it names."""
    chains: dict[str, Any] = {}
    found = []
    for stored in guard.reader().stored():
        parsed = parse_entry(stored.body)
        if isinstance(parsed, DelegationEntry):
            chain = parsed.verified(guard.trust, int(now().timestamp()))
            chains[chain.sha256] = chain
        elif isinstance(parsed, CallEntry):
            (arguments,) = [
                loads_object(kept.data) for kept in stored.attachments if kept.role == "arguments"
            ]
            found.append((arguments, parsed, chains[parsed.chain_sha256 or ""]))
    return found


def now():
    return datetime.now(UTC)


@pytest.fixture
def scene(guard, worker, asked):
    """``outer`` (of the worker) calls ``inner`` (of a helper); both are told for whom they are."""
    helper = guard.new_agent("helper")

    @guard.tool(requires=["read"])
    def inner(user):
        return user

    @guard.tool(requires=["read", "write"])
    def outer(user):
        return helper.call(inner, user)

    @guard.tool(name="outer", requires=["read", "write"])
    async def aouter(user):
        await asyncio.sleep(0)
        first = await helper.acall(inner, user)
        await asyncio.sleep(0)
        return first

    return worker, helper, outer, aouter


def check_that_none_is_mixed_up(guard, asked, worker, helper):
    seen: Counter[str] = Counter()
    for document in asked:
        delegation = document["delegation"]
        assert delegation["subject"] == document["args"]["user"] == delegation["chain"][0]
        seen[document["args"]["user"]] += 1
    records = whole(guard)
    for arguments, call, chain in records:
        user = arguments["user"]
        assert call.principal == chain.principal == user
        through = [user, "service:ci", worker.id, *([helper.id] if call.tool == "inner" else [])]
        assert list(chain.members) == through
        assert call.predicate["task_id"] == f"task of {user}"
    assert Counter(arguments["user"] for arguments, _call, _chain in records) == seen
    assert set(seen) == set(USERS)
    assert len({chain.sha256 for _arguments, _call, chain in records}) == 2 * len(USERS)
    assert guard.verify().problems == ()
    for arguments, call, chain in records[::31]:
        proved = verify_evidence(guard.prove(str(call.invocation_id)), guard.trust)
        assert proved.chain is not None
        assert proved.chain.sha256 == chain.sha256
        assert proved.chain.principal == proved.call.principal == arguments["user"]


def lend(guard, user):
    return guard.delegate(
        user, scope=["read", "write"], via="service:ci", task_id=f"task of {user}"
    )


def test_many_users_in_threads(guard, scene, asked):
    worker, helper, outer, _aouter = scene
    start = threading.Barrier(len(USERS))

    def work(user):
        with lend(guard, user):
            start.wait()
            assert [worker.call(outer, user) for _ in range(2)] == [user, user]
            return worker.access_token()

    with ThreadPoolExecutor(len(USERS)) as pool:
        made = list(pool.map(work, USERS))
    check_that_none_is_mixed_up(guard, asked, worker, helper)
    for user, issued in zip(USERS, made, strict=True):
        verified = access_token.verify(
            issued.token, issued.chain, guard.trust, at=int(now().timestamp())
        )
        assert verified.chain.principal == user


async def test_many_users_in_tasks(guard, scene, asked):
    worker, helper, _outer, aouter = scene

    async def work(user):
        async with lend(guard, user):
            first = await worker.acall(aouter, user)
            await asyncio.sleep(0)
            second = await asyncio.create_task(worker.acall(aouter, user))
            return (first, second) == (user, user)

    assert all(await asyncio.gather(*map(work, USERS)))
    check_that_none_is_mixed_up(guard, asked, worker, helper)


async def test_many_users_one_handle_and_no_blocks(guard, scene, asked):
    worker, helper, _outer, aouter = scene
    handles = {user: worker.under(lend(guard, user)) for user in USERS}
    calls = [handles[user].acall(aouter, user) for user in USERS * 2]
    assert await asyncio.gather(*calls) == USERS * 2
    check_that_none_is_mixed_up(guard, asked, worker, helper)


def test_access_tokens_while_delegations_come_and_go(guard, worker):
    """One instance, many threads: each gets the token of its own user."""
    wrong: list[Any] = []

    def work(user):
        for _ in range(3):
            with guard.delegate(user, scope=["read"]):
                issued = worker.access_token()
            verified = access_token.verify(
                issued.token, issued.chain, guard.trust, at=int(now().timestamp())
            )
            if verified.chain.principal != user:
                wrong.append(user)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, USERS))
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


def test_a_chain_that_another_thread_has_just_had_made(clock, ran):
    """A call that looked at the clock a moment before is not older, in the log, than its chain."""
    with Guard.ephemeral(lambda _d: Decision.allow(), config={"agents": AGENTS}) as guard:
        worker = guard.new_agent("worker")
        tool = guard.tool(name="tool")(lambda: ran.append(1))
        clock.advance(seconds=2)
        clock.now = clock.now.replace(microsecond=900_000)
        with guard.delegate("user:alice", scope=["read"]):
            clock.advance(seconds=0.2)
            worker.access_token()
            clock.advance(seconds=-0.2)
            worker.call(tool)
        assert ran == [1]
        assert guard.verify().problems == ()


# --- so many calls and no more --------------------------------------------------------------------


def allowed(agent, tool, attempts):
    done = 0
    for _ in range(attempts):
        with suppress(Denied):
            agent.call(tool)
            done += 1
    return done


@pytest.fixture
def durable(place):
    """The place, with these agents."""
    tables = {**loads_object(place.config.encoded), "agents": AGENTS}
    place.config = config.parse(tables, source="agentguard.toml", base=place.config.base)
    return place


def test_exactly_so_many_under_eight_threads(durable, ran):
    with durable.open() as guard:
        agents = [guard.new_agent("worker"), guard.new_agent("helper")]
        tool = guard.tool(name="tool", requires=["read"])(lambda: ran.append(1))
        lent = guard.delegate("user:alice", scope=["read"], max_calls=25)
        with ThreadPoolExecutor(8) as pool:
            counts = list(
                pool.map(lambda n: allowed(agents[n % 2].under(lent), tool, 10), range(8))
            )
        assert sum(counts) == len(ran) == 25
        with pytest.raises(Denied) as caught:
            agents[0].under(lent).call(tool)
        assert caught.value.code == "calls.exceeded"
        codes = Counter(code for _decision, code in durable.seen().codes)
        assert codes["calls.exceeded"] == 80 - 25 + 1
        assert guard.verify().problems == ()


OPEN = """
    import os, signal, sys, threading
    from pathlib import Path
    from agentguard import Decision, Denied, Guard
    from agentguard.guard.embedded import Embedded
    from agentguard.domain import config
    from agentguard.domain import domain
    from agentguard.policy.function import FunctionEngine

    folder = Path(sys.argv[1])
    scope = ["read", "write", "secret"]
    tables = {"trust_domain": "acme.example", "state": str(folder / "state"),
              "anchor": str(folder / "anchor"),
              "policy": {"engine": "function", "path": "unused:unused"},
              "agents": {"robot": {"authority": "own", "max_scope": scope},
                         "worker": {"max_scope": scope}, "helper": {"max_scope": ["read"]}}}
    settings = config.parse(tables, source="agentguard.toml", base=folder)
    home = domain.take_up(settings, b"correct horse battery staple")
    seen = []

    def policy(document):
        seen.append(document.get("delegation"))
        return Decision.allow()

    guard = Guard(Embedded(settings, FunctionEngine(policy), home))

    @guard.tool(requires=["read"])
    def whoami():
        return seen[-1] and seen[-1]["subject"]

    def attempt(agent):
        try:
            return agent.call(whoami)
        except Denied as denied:
            return denied.code

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def fork(work):
        child = os.fork()
        if child == 0:
            signal.alarm(120)
            try:
                work()
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, "the child failed"
"""


def program(text: str) -> str:
    return textwrap.dedent(OPEN) + textwrap.dedent(text)


@pytest.fixture
def started(durable, programs) -> Callable[..., Talk]:
    """Start a program with a guard on the state."""

    def started(text: str, *arguments: str) -> Talk:
        base = durable.config.base
        words = ("-W", "error", "-c", program(text), base, *arguments)
        made: Talk = programs.talk(*words, cwd=base)
        return made

    return started


def finished(process: Talk, given: str = "") -> list[str]:
    out, err = process.communicate(given)
    assert (process.returncode, without_denials(err)) == (0, "")
    return out.splitlines()


RESUMED = """
    lent = guard.resume(sys.stdin.buffer.read())
    agent = guard.new_agent("worker").under(lent)
    found = [attempt(agent) for _ in range(12)]
    say(found.count("user:alice"), found.count("calls.exceeded"))
    guard.close()
"""


def test_exactly_so_many_in_several_processes(durable, started):
    with durable.open() as guard:
        lent = guard.delegate("user:alice", scope=["read"], max_calls=20)
        stored = lent.dumps().decode()
        tool = guard.tool(name="tool", requires=["read"])(lambda: None)
        processes = [started(RESUMED) for _ in range(3)]
        for process in processes:
            process.stdin.write(stored)
        own = allowed(guard.new_agent("worker").under(lent), tool, 12)
        lines = [finished(process)[0].split() for process in processes]
    counts = [tuple(map(int, line)) for line in lines]
    assert own + sum(done for done, _refused in counts) == 20
    assert all(done + refused == 12 for done, refused in counts)
    assert durable.examine().problems == ()
    assert [decision for decision, _code in durable.seen().codes].count("allow") == 20


# --- forks ----------------------------------------------------------------------------------------


def test_a_fork_inside_a_block_acts_for_the_same_user_as_an_instance_of_its_own(durable, started):
    lines = finished(
        started(
            """
            robot, worker = guard.new_agent("robot"), guard.new_agent("worker")

            def child():
                say("child", attempt(robot), attempt(worker), worker.id)
                guard.close()

            def outside():
                say("outside", attempt(robot), attempt(worker))
                guard.close()

            with guard.delegate("user:bob", scope=["read"]):
                with guard.delegate("user:alice", scope=["read"]):
                    say("parent", attempt(robot), attempt(worker), worker.id)
                    fork(child)
                say("parent", attempt(robot), attempt(worker))
            fork(outside)
            guard.close()
            """,
        )
    )
    words = [line.split() for line in lines]
    assert [found[:3] for found in words] == [
        ["parent", "user:alice", "user:alice"],
        ["child", "user:alice", "user:alice"],
        ["parent", "user:bob", "user:bob"],
        ["outside", "None", "delegation.missing"],
    ]
    assert words[0][3] != words[1][3]
    assert durable.examine().problems == ()
    assert durable.examine().in_doubt == ()


def test_a_fork_inside_a_call_can_hand_nothing_on(durable, started):
    """The key to which the chain leads is the parent's, and did not come along."""
    lines = finished(
        started(
            """
            robot, worker = guard.new_agent("robot"), guard.new_agent("worker")

            def child():
                say("child", attempt(robot), attempt(worker))
                guard.close()

            @guard.tool(requires=["read"])
            def forks():
                say("parent", attempt(robot), attempt(worker))
                fork(child)
                say("parent", attempt(robot), attempt(worker))

            with guard.delegate("user:alice", scope=["read"]):
                worker.call(forks)
            guard.close()
            """,
        )
    )
    assert lines == [
        "parent user:alice user:alice",
        "child delegation.holder delegation.holder",
        "parent user:alice user:alice",
    ]
    assert durable.examine().problems == ()


def test_the_count_goes_on_in_a_fork(durable, started):
    lines = finished(
        started(
            """
            worker = guard.new_agent("worker")

            def child():
                say(*(attempt(worker) for _ in range(3)))
                guard.close()

            with guard.delegate("user:alice", scope=["read"], max_calls=4):
                say(*(attempt(worker) for _ in range(2)))
                fork(child)
                say(attempt(worker))
            guard.close()
            """,
        )
    )
    assert lines == [
        "user:alice user:alice",
        "user:alice user:alice calls.exceeded",
        "calls.exceeded",
    ]
    assert durable.examine().problems == ()


def test_the_environment_lends_nothing(durable, started):
    """A process that is started inside a block has no delegation."""
    assert "AGENTGUARD_DELEGATION" not in os.environ
    lines = finished(started("say(attempt(guard.new_agent('worker')))\nguard.close()\n"))
    assert lines == ["delegation.missing"]
