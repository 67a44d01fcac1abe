"""The async driver of a guarded call, on an event loop; the sync one is in ``drive.py``.

The driver waits for disks, look-ups and policy servers in threads of the guard's own, off the
loop: an application's sync tools must not starve them. What a guard keeps in memory is written on
the loop, because nobody waits there. A write that has begun is finished even if its task is
cancelled meanwhile, since a future of an executor is not cancelled with the tasks of a loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import Executor, wait
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from agentguard.flow.drive import Closed, Executors, Flow, perform, require_value, running
from agentguard.flow.effects import Do, Effect, Evaluate, LookUp, Run, Tell
from agentguard.flow.listener import CallListener

T = TypeVar("T")


async def arun(
    flow: Flow[T], tool: Callable[[], Any], listener: CallListener, executors: Executors
) -> T:
    """Drive ``flow`` as ``drive.run`` does, on the event loop; ``tool`` may return an awaitable."""
    try:
        result = await _run(flow, tool, listener, executors)
    except BaseException as error:
        listener.end(error)
        raise
    listener.end(None)
    return result


async def _run(
    flow: Flow[T], tool: Callable[[], Any], listener: CallListener, executors: Executors
) -> T:
    closed: GeneratorExit | None = None
    try:
        effect = next(flow)
        while True:
            try:
                if closed is not None:  # a closed coroutine may not await anything
                    result = perform(effect, tool, listener)
                else:
                    result = await _perform(effect, tool, listener, executors)
            except GeneratorExit as error:  # foreign code has raised it, or the coroutine is closed
                closed = error
                effect = flow.throw(Closed())
            except BaseException as error:  # noqa: BLE001  the flow decides what it means
                effect = flow.throw(error)
            else:
                effect = flow.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    except Closed:
        raise closed or GeneratorExit from None


async def _perform(
    effect: Effect, tool: Callable[[], Any], listener: CallListener, executors: Executors
) -> Any:
    if isinstance(effect, Do):
        if executors.log_waits or type(effect) is Tell:
            return await _finish(executors.log, effect)
        return effect()
    if isinstance(effect, Run):
        with listener, running(effect):
            result = tool()
            return require_value(await result if inspect.isawaitable(result) else result)
    if isinstance(effect, LookUp):
        with listener:
            return await _look_up(effect, executors.facts)
    if isinstance(effect, Evaluate) and effect.engine.waits:
        loop = asyncio.get_running_loop()
        with listener:
            evaluate = partial(
                copy_context().run, _without_stop, effect.engine.evaluate, effect.document
            )
        return await loop.run_in_executor(executors.engine, evaluate)
    return perform(effect, tool, listener)


async def _look_up(effect: LookUp, executor: Executor) -> Any:
    if inspect.iscoroutinefunction(effect.function):
        return await effect.function(effect.facts_input)
    loop = asyncio.get_running_loop()
    look_up = partial(copy_context().run, _without_stop, effect.function, effect.facts_input)
    facts = await loop.run_in_executor(executor, look_up)
    return await facts if inspect.isawaitable(facts) else facts


async def _finish(executor: Executor, function: Callable[[], T]) -> T:
    """Call ``function`` in a thread and wait for its end; only then raise a cancellation."""
    try:
        future = executor.submit(_without_stop, function)
    except RuntimeError:  # the guard is closed, or the interpreter ends: the log raises for that
        return function()
    ended = asyncio.Event()  # a cancellation ends the wait for it, and not the work
    future.add_done_callback(partial(_set, ended, asyncio.get_running_loop()))
    cancelled: asyncio.CancelledError | None = None
    while not ended.is_set():
        try:
            await ended.wait()
        except asyncio.CancelledError as error:
            cancelled = error
        except GeneratorExit:
            if not future.cancel():  # it has begun: the flow must know how it ended
                wait([future])
            raise
    if cancelled is not None:
        raise cancelled
    return future.result()


def _set(event: asyncio.Event, loop: asyncio.AbstractEventLoop, _future: object) -> None:
    """Set an event of ``loop`` from another thread; nobody waits in a loop that is closed."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)


async def in_thread(function: Callable[[], T]) -> T:
    """Run a sync tool in a worker thread of the event loop, with this context's variables."""
    result = await asyncio.to_thread(_without_stop, function)
    return await result if inspect.isawaitable(result) else result


def _without_stop(function: Callable[..., T], *arguments: Any) -> T:
    """Call ``function``; raises ``RuntimeError`` in the place of a ``StopIteration`` (PEP 479).

    No future of an event loop can hold a ``StopIteration``: its call would never end.
    """
    try:
        return function(*arguments)
    except StopIteration as error:
        raise RuntimeError("a function raised StopIteration") from error
