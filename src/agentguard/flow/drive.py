"""The driver of the line: it carries out the line's effects, and throws what goes wrong back in.

It blocks. Its async twin stands in ``drive_async.py``, so that a program without an event loop
does not import asyncio.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

from agentguard.delegation import context
from agentguard.errors import ConfigError, FactsError
from agentguard.flow.effects import CallListener, Do, Effect, Enqueue, Evaluate, Line, LookUp, Run

T = TypeVar("T")


class Executors(NamedTuple):
    """Threads that keep the event loop free.

    ``log`` is for what writes, ``facts`` for look-ups, ``engine`` for policies that a server
    evaluates. They are three, so that slow look-ups, or ones that make guarded calls of their own,
    leave threads for what those calls ask and write; and a slow server leaves some for the outcomes
    of calls that it has allowed.
    """

    log: Executor
    facts: Executor
    engine: Executor


Flow = Generator[Effect, Any, T]


def run(flow: Flow[T], line: Line, tool: Callable[[], Any], listener: CallListener) -> T:
    """Drive ``flow`` to its end; ``tool`` runs in the context of ``listener``."""
    try:
        result = _run(flow, line, tool, listener)
    except BaseException as error:
        listener.end(error)
        raise
    listener.end(None)
    return result


def _run(flow: Flow[T], line: Line, tool: Callable[[], Any], listener: CallListener) -> T:
    thrown: BaseException | None = None
    try:
        effect = next(flow)
        while True:
            try:
                result = perform(effect, line, tool, listener)
            except BaseException as error:  # noqa: BLE001  the flow decides what it means
                thrown = error
                effect = flow.throw(error)
            else:
                effect = flow.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    except RuntimeError as error:
        # a tool's own StopIteration, which no generator lets out as it is (PEP 479)
        if isinstance(thrown, StopIteration) and error.__cause__ is thrown:
            raise thrown from None
        raise


def perform(effect: Effect, line: Line, tool: Callable[[], Any], listener: CallListener) -> Any:
    """Carry out an effect, however long it takes."""
    match effect:
        case Do():
            return effect()
        case Evaluate():
            with listener:  # a server is told the trace
                return line.engine.evaluate(effect.document)
        case Run():
            with (
                listener,
                context.Running(effect.invocation_id, effect.nested_calls, effect.authority.lends),
            ):
                return finished(tool())
        case Enqueue():
            line.log.enqueue(effect.record)
            return None
        case LookUp():
            with listener:
                return _look_up(effect)


def finished(result: T) -> T:
    """Refuse a result whose effects are still to come: nobody would listener them."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        message = "the tool returned a coroutine, which was not run: use acall, or an async tool"
        raise ConfigError(message, code="tool.async")
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        if inspect.isgenerator(result):
            result.close()
        message = "the tool returned a generator, which was not run: return a list instead"
        raise ConfigError(message, code="tool.generator")
    return result


def _look_up(effect: LookUp) -> Any:
    found = effect.facts(effect.values)
    if inspect.iscoroutine(found):
        found.close()
        message = "the look-up of facts is a coroutine function: use acall, arun or aevaluate"
        raise FactsError(message)
    return found
