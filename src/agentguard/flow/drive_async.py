"""The async driver of the line: ``drive.py``'s, on an event loop.

The driver runs fsync and look-ups on an executor of the guard's own, off the loop: an application's
sync tools must not starve them. A write that has begun is finished even if its task is cancelled
meanwhile, since a future of an executor is not cancelled with the tasks of a loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import Executor, wait
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from agentguard.delegation import context
from agentguard.flow.drive import Executors, Flow, finished, perform
from agentguard.flow.effects import CallListener, Do, Effect, Evaluate, Line, LookUp, Run

T = TypeVar("T")


async def arun(
    flow: Flow[T], line: Line, tool: Callable[[], Any], listener: CallListener, executors: Executors
) -> T:
    """Drive ``flow`` to its end on the event loop; ``tool`` may return an awaitable."""
    try:
        result = await _run(flow, line, tool, listener, executors)
    except BaseException as error:
        listener.end(error)
        raise
    listener.end(None)
    return result


async def _run(
    flow: Flow[T], line: Line, tool: Callable[[], Any], listener: CallListener, executors: Executors
) -> T:
    closed: GeneratorExit | None = None
    try:
        effect = next(flow)
        while True:
            try:
                result = await _perform(effect, line, tool, listener, executors)
            except GeneratorExit as error:
                # the coroutine is closed: to the flow, whose generators would read this as their
                # own end, it is a cancellation; what it still does then does not wait
                closed = error
                effect = flow.throw(asyncio.CancelledError())
            except BaseException as error:  # noqa: BLE001  the flow decides what it means
                effect = flow.throw(error)
            else:
                effect = flow.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    except asyncio.CancelledError:
        if closed is not None:
            raise closed from None
        raise


async def _perform(
    effect: Effect,
    line: Line,
    tool: Callable[[], Any],
    listener: CallListener,
    executors: Executors,
) -> Any:
    if isinstance(effect, Do):
        return await _finish(executors.log, effect)
    if isinstance(effect, Run):
        with (
            listener,
            context.Running(effect.invocation_id, effect.nested_calls, effect.authority.lends),
        ):
            result = tool()
            return finished(await result if inspect.isawaitable(result) else result)
    if isinstance(effect, LookUp):
        with listener:
            return await _look_up(effect, executors.facts)
    if isinstance(effect, Evaluate) and line.engine.waits:
        loop = asyncio.get_running_loop()
        with listener:
            ask = partial(copy_context().run, line.engine.evaluate, effect.document)
        return await loop.run_in_executor(executors.engine, ask)
    return perform(effect, line, tool, listener)


async def _look_up(effect: LookUp, executor: Executor) -> Any:
    if inspect.iscoroutinefunction(effect.facts):
        return await effect.facts(effect.values)
    loop = asyncio.get_running_loop()
    look_up = partial(copy_context().run, effect.facts, effect.values)
    found = await loop.run_in_executor(executor, look_up)
    return await found if inspect.isawaitable(found) else found


async def _finish(executor: Executor, work: Callable[[], T]) -> T:
    """Wait for what writes to its end; a cancellation is raised once its result is known."""
    try:
        future = executor.submit(work)
    except RuntimeError:  # the guard is closed, or the interpreter on its way out: the log says so
        return work()
    waiter = asyncio.wrap_future(future)
    cancelled: asyncio.CancelledError | None = None
    while not waiter.done():
        try:
            await asyncio.wait([waiter])
        except asyncio.CancelledError as error:
            cancelled = error
        except GeneratorExit:
            if not future.cancel():  # it has begun: what follows must know how it ended
                wait([future])
            raise
    if cancelled is not None:
        if not waiter.cancelled():
            waiter.exception()  # read, so that asyncio does not report it as lost
        raise cancelled
    return waiter.result()


async def in_thread(function: Callable[[], T]) -> T:
    """Run a sync tool in a worker thread of the event loop, with this context's variables."""
    result = await asyncio.to_thread(function)
    return await result if inspect.isawaitable(result) else result
