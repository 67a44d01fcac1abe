"""The sync driver of a guarded call: carries out the effects, and throws exceptions back in.

The driver blocks until each effect is carried out. The async driver is in ``drive_async.py``, so
that a program without an event loop does not import asyncio.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Executor
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Final, NamedTuple, TypeVar

from agentguard.delegation import context
from agentguard.errors import ConfigError, FactsError
from agentguard.flow.effects import Ask, Begin, Do, Effect, Enqueue, Evaluate, LookUp, Run
from agentguard.flow.listener import CallListener

T = TypeVar("T")


class Executors(NamedTuple):
    """Threads that keep the event loop free.

    ``log`` is for what waits for a disk, ``facts`` for look-ups, ``engine`` for policies that a
    server evaluates. Each has threads of its own. A look-up may be slow, or make guarded calls,
    whose writes still find a thread; and a slow policy server leaves threads for the outcomes of
    the calls that the server has allowed. ``log_waits`` is False where the log and all stores are
    in memory: the event loop then writes there itself.
    """

    log: Executor
    facts: Executor
    engine: Executor
    log_waits: bool = True

    def shutdown(self) -> None:
        """Let the threads end; those that work end when they are done."""
        for executor in (self.log, self.facts, self.engine):
            executor.shutdown(wait=False)


Flow = Generator[Effect, Any, T]


class Closed(BaseException):
    """Stands in a flow for a ``GeneratorExit`` of foreign code.

    A ``GeneratorExit`` that is thrown into a generator ends the generators inside, which then can't
    record what the exception has interrupted. The driver raises the ``GeneratorExit`` itself once
    the flow is over.
    """


# the log names the exception that was raised by its type
Closed.__name__ = Closed.__qualname__ = GeneratorExit.__name__
Closed.__module__ = GeneratorExit.__module__


def run(flow: Flow[T], tool: Callable[[], Any], listener: CallListener) -> T:
    """Drive ``flow`` to its end, return its result, and tell ``listener`` of the end.

    ``tool`` is called where the flow yields ``Run``, in the context of ``listener``.
    """
    try:
        result = _run(flow, tool, listener)
    except BaseException as error:
        listener.end(error)
        raise
    listener.end(None)
    return result


def _run(flow: Flow[T], tool: Callable[[], Any], listener: CallListener) -> T:
    thrown: BaseException | None = None
    closed: GeneratorExit | None = None
    try:
        effect = next(flow)
        while True:
            try:
                result = perform(effect, tool, listener)
            except GeneratorExit as error:
                closed = error
                effect = flow.throw(Closed())
            except BaseException as error:  # noqa: BLE001  the flow decides what it means
                thrown = error
                effect = flow.throw(error)
            else:
                effect = flow.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    except Closed:
        raise closed or GeneratorExit from None
    except RuntimeError as error:
        # the tool's own StopIteration, which a generator turns into a RuntimeError (PEP 479)
        if isinstance(thrown, StopIteration) and error.__cause__ is thrown:
            raise thrown from None
        raise


def perform(effect: Effect, tool: Callable[[], Any], listener: CallListener) -> Any:
    """Carry out an effect, however long it takes, and return what to send back."""
    if type(effect) is Do:
        return effect()
    if type(effect) is Enqueue:
        return effect.log.enqueue(effect.outcome)
    if type(effect) is Evaluate:
        with listener:  # an OPA server is sent the trace
            return effect.engine.evaluate(effect.document)
    if type(effect) is Run:
        with listener, running(effect):
            return require_value(tool())
    if type(effect) is Begin:
        return effect.listener.begin(effect.authority, effect.task_id, effect.paused)
    return _perform_rare(effect, listener)


def _perform_rare(effect: Ask | Do | LookUp, listener: CallListener) -> Any:
    if isinstance(effect, Ask):
        return effect.listener.asks()
    if isinstance(effect, Do):  # a Tell
        return effect()
    with listener:
        return _look_up(effect)


def running(effect: Run) -> context.RunningCall:
    """Return the context in which the tool runs, with the delegation in force there."""
    lends = effect.authority.lends
    return context.RunningCall(effect.invocation_id, effect.nested_calls, lends, effect.releases)


_NOT_RUN: Final = (GeneratorType, AsyncGeneratorType, Awaitable)
"""The types of what a call of a coroutine function or of a generator function returns."""


def require_value(result: T) -> T:
    """Return ``result``; raise ``ConfigError`` for a coroutine or a generator, which has not run.

    Its effects would come after the call's outcome is logged.
    """
    if not isinstance(result, _NOT_RUN):
        return result
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        message = "the tool returned a coroutine, which was not run: use acall, or an async tool"
        raise ConfigError(message, code="tool.async")
    if inspect.isgenerator(result):
        result.close()
    message = "the tool returned a generator, which was not run: return a list instead"
    raise ConfigError(message, code="tool.generator")


def _look_up(effect: LookUp) -> Any:
    facts = effect.function(effect.facts_input)
    if inspect.iscoroutine(facts):
        facts.close()
        message = "the look-up of facts is a coroutine function: use acall, arun or aevaluate"
        raise FactsError(message)
    return facts
