"""Ways past a guard: none of what a guarded function offers runs it without an agent.

Python hides nothing from code that wants to see it: the function lies under the mangled name
``_GuardedFunction__function`` and whoever reaches for that does so on purpose (records.md, "What
this can and can't promise"). What is shown here is that nothing leads there by accident, or from a
model.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle
import threading
from types import FunctionType

import pytest

from agentguard import ConfigError, Denied, Guard, UnguardedCallError
from agentguard.call.decision import Decision


@pytest.fixture
def effect(guard, ran):
    """A guarded tool, and the function under it."""

    def effect(text: str = "") -> str:
        """Have an effect."""
        ran.append(text)
        return text

    return guard.tool(effect), effect


def test_calling_a_tool_raises_and_does_not_run_it(effect, ran, guard):
    tool, _function = effect
    for call in (
        functools.partial(tool, text="x"),
        functools.partial(tool, "x"),
        lambda: list(map(tool, ["x"])),
        lambda: tool.__call__("x"),
        lambda: type(tool).__call__(tool, "x"),
        functools.partial(copy.copy(tool), "x"),
    ):
        with pytest.raises(UnguardedCallError, match=r"agent\.call\(effect") as caught:
            call()
        assert caught.value.code == "tool.unguarded"
    assert ran == []
    assert guard.new_agent("a").call(tool, "x") == "x"
    assert ran == ["x"]


async def test_calling_an_async_tool_raises_at_once(guard, ran):
    @guard.tool
    async def effect():
        ran.append(1)

    with pytest.raises(UnguardedCallError):
        effect()  # and leaves no coroutine behind that somebody could await
    assert ran == []


def reachable(value: object, depth: int, seen: set[int]) -> list[object]:
    """All that public attributes, closures, defaults and partials lead to."""
    if depth == 0 or id(value) in seen or isinstance(value, str | bytes | int | type(None)):
        return []
    seen.add(id(value))
    found: list[object] = [value]
    below: list[object] = []
    if isinstance(value, FunctionType):
        below += [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        below += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    elif isinstance(value, dict):
        below += list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        below += list(value)
    else:
        names = [name for name in dir(value) if not name.startswith("_")]
        below += [inspect.getattr_static(value, name) for name in names]
        below += [getattr(value, name) for name in names if not inspect.isclass(value)]
    for item in below:
        found += reachable(item, depth - 1, seen)
    return found


def _filled(cell: object) -> bool:
    try:
        cell.cell_contents  # type: ignore[attr-defined]  # noqa: B018
    except ValueError:
        return False
    return True


def test_no_public_attribute_and_no_closure_leads_to_the_function(effect):
    tool, function = effect
    found = reachable(tool, 6, set())
    assert tool in found
    assert not any(item is function for item in found)
    assert not any(getattr(item, "__code__", None) is function.__code__ for item in found)


def test_the_search_would_find_it(effect):
    """The twin: a wrapper as it is usually written gives its function away."""
    _tool, function = effect

    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    assert any(item is function for item in reachable(wrapper, 6, set()))
    assert inspect.unwrap(wrapper) is function


def test_nothing_unwraps_a_tool(effect):
    tool, function = effect
    assert inspect.unwrap(tool) is tool
    for name in ("__wrapped__", "func", "coroutine", "__func__", "function", "run", "invoke"):
        assert not hasattr(tool, name), name
    assert (
        vars(tool)["_GuardedFunction__function"] is function
    )  # deliberate access, and the only place


def test_public_methods_of_a_tool_run_nothing(effect, ran):
    tool, _function = effect
    for name in [name for name in dir(tool) if not name.startswith("_")]:
        attribute = getattr(tool, name)
        if callable(attribute):
            for arguments in [(), ("x",), (("x",), {}), ((), {"text": "x"})]:
                try:
                    result = attribute(*arguments)
                    result()
                except Exception:  # noqa: BLE001, S112  whatever it says, it must not run
                    continue
    assert ran == []


def test_a_tool_is_not_pickled_with_its_function(effect):
    tool, _function = effect
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        pickle.dumps(tool)


def test_a_tool_of_another_guard_obeys_the_agents_policy(ran):
    strict = Guard.ephemeral(lambda _: Decision.deny("no"))
    loose = Guard.ephemeral(lambda _: Decision.allow())
    tool = loose.tool(ran.append)
    with pytest.raises(Denied):
        strict.new_agent("a").call(tool, 1)
    assert ran == []
    loose.new_agent("a").call(tool, 2)
    assert ran == [2]


def test_a_subclass_of_an_agents_arguments_does_not_replace_the_call(guard, ran):
    """What runs is what was bound: an argument can't be another thing when it is read again."""

    class Two(str):
        __slots__ = ()
        reads = 0

        def __str__(self):
            type(self).reads += 1
            return "safe" if self.reads == 1 else "dangerous"

        __repr__ = __str__

    tool = guard.tool(ran.append)
    with pytest.raises(Denied) as caught:
        guard.new_agent("a").call(tool, Two("x"))
    assert caught.value.code == "arguments.unencodable"
    assert ran == []


def generator():
    yield 1


async def async_generator():
    yield 1


async def coroutine(x):
    return x


class CallsItself:
    async def __call__(self):
        return 1


@pytest.mark.parametrize(
    "function",
    [
        generator,
        async_generator,
        functools.partial(coroutine, 1),
        functools.partial(generator),
        CallsItself(),
    ],
    ids=["generator", "async generator", "partial", "partial of a generator", "object"],
)
def test_what_would_run_after_its_call_is_over_is_no_tool(guard, function):
    """Their bodies run later, past the record that says how the call ended."""
    with pytest.raises(ConfigError):
        guard.tool(function)


@pytest.mark.parametrize("name", ["agent", "tool", "self", "args", "kwargs", "function", "guard"])
def test_arguments_may_have_any_name(guard, ran, name):
    """``call(self, tool, /, ...)``: no argument's name collides with those of the call itself."""
    namespace = {"ran": ran}
    exec(f"def effect(*, {name}): ran.append({name})", namespace)  # noqa: S102  a name for each case
    tool = guard.tool(namespace["effect"])
    guard.new_agent("a").call(tool, **{name: "x"})
    assert ran == ["x"]


def test_denied_is_no_value_that_a_tool_could_return(effect, guard, ran):
    """A policy function that breaks can't leak an allow through what it returns."""
    guard = Guard.ephemeral(lambda _: type("Sly", (), {"outcome": "allow", "allowed": True})())
    tool, _function = effect
    with pytest.raises(Denied):
        guard.new_agent("a").call(tool, "x")
    assert ran == []


# --- arguments that change between the decision and the run ---------------------------------------


def late(values: list[str], how: str) -> None:
    """Change what was decided upon; ``same`` puts an equal value there."""
    if how == "changed":
        values.append("rm -rf /")
    elif how == "same":
        values[:] = list(values)


@pytest.mark.parametrize("how", ["left alone", "same", "changed"])
@pytest.mark.parametrize("by", ["policy", "facts"])
def test_arguments_that_change_while_they_are_judged_do_not_run(ran, seen, examine, how, by):
    commands = ["ls"]

    def policy(_document):
        late(commands, how if by == "policy" else "")
        return Decision.allow()

    def facts(_arguments):
        late(commands, how if by == "facts" else "")
        return {}

    guard = Guard.ephemeral(policy)
    tool = guard.tool(facts=facts, gives=[])(ran.extend)
    agent = guard.new_agent("a")
    if how != "changed":
        agent.call(tool, commands)
        assert ran == ["ls"]
        assert seen(guard).statuses == ["ok"]
    else:
        with pytest.raises(Denied) as caught:
            agent.call(tool, commands)
        assert caught.value.code == "arguments.changed"
        assert ran == []
        assert seen(guard).statuses == ["not_run"]
    assert examine(guard).problems == ()
    assert examine(guard).in_doubt == ()


def test_arguments_that_another_thread_changes_during_the_append_do_not_run(
    guard, faults, ran, seen, examine
):
    tool = guard.tool(ran.extend)
    agent = guard.new_agent("a")
    for how, result in (("left alone", None), ("changed", "arguments.changed")):
        commands = ["ls"]
        faults.gate = threading.Event()
        faults.entered.clear()
        results: list[object] = []

        def call(commands=commands, results=results):
            try:
                results.append(agent.call(tool, commands))
            except Denied as denied:
                results.append(denied.code)

        caller = threading.Thread(target=call)
        caller.start()
        assert faults.entered.wait(60)
        late(commands, how)
        faults.gate.set()
        caller.join(60)
        faults.gate = None
        assert results == [result]
    assert ran == ["ls"]
    assert seen(guard).statuses == ["ok", "not_run"]
    assert examine(guard).problems == ()
    assert examine(guard).in_doubt == ()


@pytest.mark.parametrize("how", ["left alone", "changed"])
async def test_arguments_that_another_task_changes_during_the_append_do_not_run(
    place, put_faults, ran, how
):
    """A log on disk is written in a thread; the loop itself writes to a log in memory."""
    guard = place.open()

    @guard.tool
    async def run(commands):
        ran.extend(commands)

    agent = guard.new_agent("reader")
    faults = put_faults(guard)
    faults.gate = threading.Event()
    commands = ["ls"]
    call = asyncio.ensure_future(agent.acall(run, commands))
    assert await asyncio.to_thread(faults.entered.wait, 60)
    late(commands, how)
    faults.gate.set()
    if how == "changed":
        with pytest.raises(Denied) as caught:
            await call
        assert caught.value.code == "arguments.changed"
    else:
        await call
    guard.close()
    assert ran == ([] if how == "changed" else ["ls"])
    assert place.seen().statuses == (["not_run"] if how == "changed" else ["ok"])
    report = place.examine()
    assert (report.problems, report.in_doubt) == ((), ())


def test_facts_can_not_change_what_the_policy_and_the_tool_read(ran):
    documents = []

    def policy(document):
        documents.append(document)
        return Decision.allow()

    def facts(arguments):
        arguments["commands"].append("rm -rf /")
        return {}

    guard = Guard.ephemeral(policy)

    @guard.tool(facts=facts, gives=[], attributes={"lifted": "commands"})
    def run(commands):
        ran.extend(commands)

    guard.new_agent("a").call(run, commands=["ls"])
    assert documents[0]["args"] == {"commands": ["ls"]}
    assert documents[0]["lifted"] == ["ls"]
    assert ran == ["ls"]


# --- tools that return what is still to run -------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "code"),
    [(coroutine, "tool.async"), (lambda _x: generator(), "tool.generator")],
    ids=["coroutine", "generator"],
)
def test_a_sync_tool_that_returns_what_is_still_to_run_is_an_error(guard, seen, returned, code):
    @guard.tool
    def deferred(x):
        return returned(x)

    with pytest.raises(ConfigError) as caught:
        guard.new_agent("a").call(deferred, 1)
    assert caught.value.code == code
    assert seen(guard).statuses == ["error"]
