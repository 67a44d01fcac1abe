"""A delegation in threads, tasks, generators and forks: never a wider authority, never another's.

Two agents see to that. ``worker`` acts only under a delegation: where a context is lost, it is
denied. ``robot`` may act by itself: where a context is lost, it would have more than was lent, and
where one leaks, somebody else's.
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
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from datetime import UTC, datetime
from typing import Any

import pytest
from preloaded import Talk

from agentguard import Decision, Denied, Guard, verify_evidence
from agentguard.audit import statements
from agentguard.audit.calls import read_authorization
from agentguard.audit.entry import parse_entry
from agentguard.delegation import access_token
from agentguard.domain import config
from agentguard.signing.canonical import loads_object

MAX_SCOPE = ["read", "write", "secret"]
AGENTS = {
    "robot": {"authority": "own", "max_scope": MAX_SCOPE},
    "worker": {"max_scope": MAX_SCOPE},
    "helper": {"max_scope": ["read"]},
}
FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"
USERS = [f"user:{number:03}" for number in range(100 if FULL else 40)]


@pytest.fixture
def asked():
    return []


FOR_WHOM: ContextVar[Any] = ContextVar("for_whom")


@pytest.fixture
def guard(asked):
    def policy(document):
        asked.append(document)
        delegation = document.get("delegation")
        FOR_WHOM.set(delegation and delegation["subject"])
        return Decision.allow()

    with Guard.ephemeral(policy, config={"agents": AGENTS}) as opened:
        yield opened


@pytest.fixture
def robot(guard):
    return guard.new_agent("robot")


@pytest.fixture
def worker(guard):
    return guard.new_agent("worker")


@pytest.fixture
def whoami(guard):
    """Says for whom a call with it is made, by the policy's input to it: None for nobody."""
    return guard.tool(name="whoami", requires=["read"])(lambda: FOR_WHOM.get())  # noqa: PLW0108


@pytest.fixture
def acts(robot, worker, whoami) -> Callable[[], tuple[Any, Any]]:
    """For whom the robot acts here, and the worker; the code where they are denied."""

    def attempt(agent):
        try:
            return agent.call(whoami)
        except Denied as denied:
            return denied.code

    return lambda: (attempt(robot), attempt(worker))


@pytest.fixture
def alice(guard):
    return guard.delegate("user:alice", scope=["read"])


@pytest.fixture
def bob(guard):
    return guard.delegate("user:bob", scope=["read"])


ALICE = ("user:alice", "user:alice")
BOB = ("user:bob", "user:bob")
NOBODY = (None, "delegation.missing")
ENDED = ("delegation.ended", "delegation.ended")


def test_the_twins(acts, alice, bob):
    assert acts() == NOBODY
    with alice:
        assert acts() == ALICE
        with bob:
            assert acts() == BOB
        assert acts() == ALICE
    assert acts() == NOBODY


# --- threads --------------------------------------------------------------------------------------


def test_a_thread_takes_no_context_along_and_a_bound_function_does(acts, alice):
    with ThreadPoolExecutor(2) as pool, alice:
        assert pool.submit(acts).result() == NOBODY
        assert pool.submit(alice.bind(acts)).result() == ALICE
        assert pool.submit(copy_context().run, acts).result() == ALICE
        assert pool.submit(acts).result() == NOBODY  # nothing stays in the thread
        found: list[Any] = []
        for target in (acts, alice.bind(acts)):
            thread = threading.Thread(target=lambda target=target: found.append(target()))
            thread.start()
            thread.join()
        assert found == [NOBODY, ALICE]


def test_a_pool_that_was_made_in_a_block_remembers_nothing_of_it(acts, alice, bob):
    with alice:
        pool = ThreadPoolExecutor(1)
        assert pool.submit(alice.bind(acts)).result() == ALICE
    with pool, bob:
        assert pool.submit(acts).result() == NOBODY
        assert pool.submit(bob.bind(acts)).result() == BOB


def test_a_bound_function_brings_its_own_and_no_other(acts, alice, bob):
    bound = alice.bind(acts)
    with bob:
        assert bound() == ALICE
        assert acts() == BOB
    assert bound() == ALICE  # it is a delegation of its own, past any block
    assert acts() == NOBODY


async def test_executors_of_the_loop(acts, alice):
    loop = asyncio.get_running_loop()
    with alice:
        assert await loop.run_in_executor(None, acts) == NOBODY
        assert await loop.run_in_executor(None, alice.bind(acts)) == ALICE
        assert await asyncio.to_thread(acts) == ALICE
    assert await asyncio.to_thread(acts) == NOBODY


def test_a_thread_that_outlives_its_block(acts, alice, bob):
    left = threading.Event()

    def later():
        assert left.wait(60)
        return acts()

    with ThreadPoolExecutor(2) as pool:
        with bob, alice:
            copied = pool.submit(copy_context().run, later)
            bound = pool.submit(alice.bind(later))
        left.set()
        assert copied.result() == ENDED  # and not bob, who was outside
        assert bound.result() == ALICE


def test_one_delegation_in_many_threads(acts, alice, bob):
    """Entered and left in all of them at once, alone and inside another's."""
    start = threading.Barrier(16)
    wrong: list[Any] = []

    def work(number):
        start.wait()
        for _ in range(6):
            for outer in (None, bob):
                with ExitStack() as stack:
                    if outer is not None:
                        stack.enter_context(outer)
                    with alice:
                        found = acts() if number % 2 else (alice.bind(acts))()
                        wrong.extend([found] if found != ALICE else [])
                    found = acts()
                    wrong.extend([found] if found != (BOB if outer else NOBODY) else [])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert wrong == []
    assert alice._blocks == bob._blocks == []  # and nothing is held on to


def test_left_in_another_thread_than_it_was_entered_in(acts, alice, bob):
    with ThreadPoolExecutor(1) as pool, bob:
        pool.submit(alice.__enter__).result()
        assert pool.submit(acts).result() == ALICE
        alice.__exit__(None, None, None)
        assert pool.submit(acts).result() == ENDED
        assert acts() == BOB  # where it was left, nothing has changed
    assert acts() == NOBODY


# --- tasks ----------------------------------------------------------------------------------------


async def test_tasks_take_it_along_and_keep_apart(acts, alice, bob):
    async def inside(delegation):
        with delegation:
            await asyncio.sleep(0)
            first = acts()
            await asyncio.sleep(0)
            return first, await asyncio.create_task(inner()), acts()

    async def inner():
        await asyncio.sleep(0)
        return acts()

    found = await asyncio.gather(*(inside(one) for one in (alice, bob) * 20))
    assert list(found) == [(ALICE,) * 3, (BOB,) * 3] * 20
    assert acts() == NOBODY
    with alice:
        assert list(await asyncio.gather(inner(), inner())) == [ALICE, ALICE]
        async with asyncio.TaskGroup() as group:
            task = group.create_task(inner())
        assert task.result() == ALICE


async def test_a_task_that_outlives_its_block(acts, alice, bob):
    """It finds that what was in force has ended, and never what was in force outside."""
    left = asyncio.Event()

    async def later():
        await left.wait()
        return acts()

    async def again():
        await left.wait()
        with bob:
            inside = acts()
        return inside, acts()

    with bob:
        with alice:
            tasks = [asyncio.create_task(later()), asyncio.create_task(again())]
            bound = asyncio.create_task(alice.bind(later)())
            await asyncio.sleep(0)
        left.set()
        assert await tasks[0] == ENDED
        assert await tasks[1] == (BOB, ENDED)
        assert await bound == ALICE
        assert acts() == BOB


async def test_callbacks_that_outlive_it(acts, alice, bob):
    loop, found = asyncio.get_running_loop(), []
    done = asyncio.Event()
    with bob, alice:
        loop.call_soon(lambda: found.append(acts()))
        await asyncio.sleep(0)
        loop.call_later(0.01, lambda: found.append(acts()))
        loop.call_later(0.02, done.set)
    await done.wait()
    assert found == [ALICE, ENDED]


async def test_a_cancelled_task_leaves_nothing(acts, alice):
    begun = asyncio.Event()

    async def forever():
        async with alice:
            begun.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(forever())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert acts() == NOBODY
    assert alice._blocks == []


async def test_what_a_tool_starts_has_its_agents_authority_until_the_call_is_over(
    guard, worker, acts, alice, asked
):
    over = asyncio.Event()

    async def later():
        await over.wait()
        return acts()

    async def at_once():
        return acts()

    found: list[Any] = []

    @guard.tool(requires=["read"])
    async def start():
        found.append(await asyncio.create_task(at_once()))
        found.append(asyncio.create_task(later()))

    with alice:
        await worker.acall(start)
        assert found[0] == ALICE
        assert worker.id in asked[-2]["delegation"]["chain"][1:-1]  # the robot's, through it
        over.set()
        assert await found[1] == ENDED  # though alice's block goes on
        assert acts() == ALICE


def test_in_a_context_of_its_own_nothing_is_in_force(acts, alice):
    with alice:
        assert Context().run(acts) == NOBODY
        assert copy_context().run(acts) == ALICE


# --- generators (more of them in test_delegation_generators.py) -----------------------------------


def test_a_generator_without_a_block_acts_for_whoever_asks(acts, alice, bob):
    def stream():
        while True:
            yield acts()

    items = stream()
    assert next(items) == NOBODY
    with alice:
        assert next(items) == ALICE
    with bob:
        assert next(items) == BOB


def test_a_generator_with_an_agent_under_a_delegation_needs_no_block(robot, whoami, alice, bob):
    def stream(agent):
        yield agent.call(whoami)
        yield agent.call(whoami)

    with bob:
        items = stream(robot.under(alice))
        assert next(items) == "user:alice"
    assert next(items) == "user:alice"


def test_a_context_manager_that_is_written_as_a_generator(acts, alice, bob):
    @contextmanager
    def session(delegation):
        with delegation:
            yield acts()

    with session(alice) as found:
        assert found == acts() == ALICE
        with session(bob):
            assert acts() == BOB
        with ExitStack() as stack:
            stack.enter_context(session(bob))
            assert acts() == BOB
        assert acts() == ALICE
    assert acts() == NOBODY


async def test_an_async_one(acts, alice, bob):
    @asynccontextmanager
    async def session(delegation):
        async with delegation:
            await asyncio.sleep(0)
            yield acts()

    async with session(alice) as found:
        assert found == acts() == ALICE
        async with session(bob):
            assert acts() == BOB
        assert acts() == ALICE
    assert acts() == NOBODY


async def test_a_context_manager_that_is_left_in_another_task(acts, alice, bob):
    """It is its own block that is left there, and not the task's; the first one's has ended."""

    @asynccontextmanager
    async def session():
        async with alice:
            yield

    first = session()
    with bob:
        await first.__aenter__()

        async def leave():
            with alice:
                await first.__aexit__(None, None, None)
                return acts()

        assert await asyncio.create_task(leave()) == ALICE
        assert acts() == ENDED
    assert alice._blocks == []


def test_a_context_manager_in_threads_of_a_pool(acts, alice, bob):
    """As a server does it: entered and left in copies of the context, and in other threads."""

    @contextmanager
    def session():
        with alice:
            yield acts()

    with bob, ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        sessions = [session() for _ in range(3)]
        for one in sessions:
            assert first.submit(copy_context().run, one.__enter__).result() == ALICE
            assert acts() == BOB
        for one in sessions:
            second.submit(copy_context().run, one.__exit__, None, None, None).result()
            assert acts() == BOB
    assert alice._blocks == []


# --- blocks that are not left in their order ------------------------------------------------------


def test_the_outer_one_is_left_first(acts, alice, bob):
    outer, inner = ExitStack(), ExitStack()
    outer.enter_context(alice)
    inner.enter_context(bob)
    assert acts() == BOB
    outer.close()
    assert acts() == BOB
    inner.close()
    assert acts() == NOBODY


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)])
def test_in_whatever_order_they_are_left_it_ends_with_nothing(acts, alice, bob, guard, order):
    carol = guard.delegate("user:carol", scope=["read"])
    entered = (alice, bob, carol)
    stacks = [ExitStack() for _ in entered]
    for stack, delegation in zip(stacks, entered, strict=True):
        stack.enter_context(delegation)
    names = ["user:alice", "user:bob", "user:carol"]
    here = {0, 1, 2}
    for number in order:
        stacks[number].close()
        here.discard(number)
        innermost = names[max(here)] if here else None
        assert acts() == ((innermost, innermost) if innermost else NOBODY)
    with alice:
        assert acts() == ALICE
    assert acts() == NOBODY


def test_a_task_of_an_inner_block_when_the_outer_is_left_first(acts, alice, bob):
    outer, inner = ExitStack(), ExitStack()
    outer.enter_context(alice)
    context_of_alice = copy_context()
    inner.enter_context(bob)
    context_of_bob = copy_context()
    outer.close()
    assert context_of_alice.run(acts) == ENDED
    assert context_of_bob.run(acts) == BOB
    inner.close()
    assert context_of_bob.run(acts) == ENDED  # and not what its context had outside
    assert acts() == NOBODY


def test_left_in_another_function_than_it_was_entered_in(acts, alice, bob):
    def enter(stack):
        stack.enter_context(alice)

    def leave(stack):
        stack.close()

    stack = ExitStack()
    with bob:
        enter(stack)
        assert acts() == ALICE
        leave(stack)
        assert acts() == BOB
    assert alice._blocks == []


def test_what_was_left_elsewhere_is_not_passed_where_it_was_entered(acts, alice, bob):
    """Only what was left first *here* leads to what is outside of it."""
    here = copy_context()
    here.run(bob.__enter__)
    here.run(alice.__enter__)
    inner = here.copy()
    inner.run(bob.__enter__)
    here.run(alice.__exit__, None, None, None)
    assert here.run(acts) == BOB
    inner.run(bob.__exit__, None, None, None)
    assert inner.run(acts) == ENDED  # alice's, and not bob, who was outside of her
    here.run(bob.__exit__, None, None, None)
    assert here.run(acts) == NOBODY


def test_left_once_too_often(acts, alice, bob):
    with bob, alice:
        alice.__exit__(None, None, None)
        assert acts() == BOB
    assert acts() == NOBODY


# --- another guard --------------------------------------------------------------------------------


def test_another_guards_delegation_is_refused_and_hides_the_own_one(acts, alice):
    other = Guard.ephemeral(lambda _d: Decision.allow(), config={"agents": AGENTS})
    with other, alice, other.delegate("user:alice", scope=MAX_SCOPE):
        assert acts() == ("key.unknown", "key.unknown")
    assert acts() == NOBODY


# --- 100 users at once ----------------------------------------------------------------------------


def whole(guard):
    """Every call on record: its arguments, its statement, and the chain that it names."""
    chains: dict[str, Any] = {}
    found = []
    for stored in guard.reader().stored(0):
        parsed = parse_entry(stored.body)
        if parsed.kind == "delegation":
            chain = statements.check_delegation(parsed, guard.trust, int(now().timestamp()))
            chains[chain.sha256] = chain
        elif parsed.kind == "authorization":
            call = read_authorization(parsed)
            (arguments,) = [
                loads_object(kept.data) for kept in stored.attachments if kept.role == "arguments"
            ]
            found.append((arguments, call, chains[call.chain_sha256 or ""]))
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
    for user, token in zip(USERS, made, strict=True):
        verified = access_token.verify(token, guard.trust, at=int(now().timestamp()))
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
                token = worker.access_token()
            verified = access_token.verify(token, guard.trust, at=int(now().timestamp()))
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

    guard = Guard(settings, FunctionEngine(policy), home)

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
    assert (process.returncode, err) == (0, "")
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
    report = durable.examine()
    assert report.problems == ()
    assert sum(used for shard in report.shards for _j, _m, used in shard.call_counts) == 20


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
