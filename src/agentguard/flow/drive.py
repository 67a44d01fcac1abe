"""The driver of the line: it carries out the line's effects, and throws what goes wrong back in.

It blocks. Its async twin stands in ``drive_async.py``, so that a program without an event loop
does not import asyncio.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

from agentguard.approvals.request import ApprovalRequest
from agentguard.call.journal import Journal
from agentguard.delegation import context
from agentguard.errors import ConfigError, FactsError
from agentguard.flow.effects import (
    Append,
    Ask,
    Begin,
    Confirm,
    Consume,
    Effect,
    Enqueue,
    Evaluate,
    Finish,
    Forget,
    Line,
    Look,
    LookUp,
    Obtain,
    Recall,
    Run,
    Spend,
    Watch,
    Withdraw,
)

T = TypeVar("T")

_LOGGER = logging.getLogger("agentguard")


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

Waiting = (
    Append
    | Obtain
    | Consume
    | Confirm
    | Look
    | Begin
    | Finish
    | Forget
    | Recall
    | Ask
    | Spend
    | Withdraw
)
"""The effects that may wait for a disk."""


def run(flow: Flow[T], line: Line, tool: Callable[[], Any], watch: Watch) -> T:
    """Drive ``flow`` to its end, running ``tool`` where it says so, in the context of ``watch``."""
    try:
        result = _run(flow, line, tool, watch)
    except BaseException as error:
        watch.end(error)
        raise
    watch.end(None)
    return result


def _run(flow: Flow[T], line: Line, tool: Callable[[], Any], watch: Watch) -> T:
    thrown: BaseException | None = None
    try:
        effect = next(flow)
        while True:
            try:
                result = perform(effect, line, tool, watch)
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


def perform(effect: Effect, line: Line, tool: Callable[[], Any], watch: Watch) -> Any:
    """Carry out an effect, however long it takes."""
    match effect:
        case Evaluate():
            with watch:  # a server is told the trace
                return line.engine.evaluate(effect.document)
        case Run():
            with (
                watch,
                context.Running(effect.invocation_id, effect.inside, effect.authority.lends),
            ):
                return finished(tool())
        case Enqueue():
            line.log.enqueue(effect.record)
            return None
        case LookUp():
            with watch:
                return _look_up(effect)
    return work(effect, line)


def work(effect: Waiting, line: Line) -> Any:
    """Carry out an effect that may wait for a disk."""
    match effect:
        case Append():
            return line.log.append(effect.record)
        case Obtain():
            return effect.obtain(effect.at)
        case Consume():
            return line.revocations.consume(effect.limits)
        case Confirm():
            return _confirm(effect, line)
        case Look() | Begin() | Finish() | Forget():
            return _journal(effect, line.journal)
        case Recall() | Ask() | Spend() | Withdraw():
            return _people(effect, line)


def _confirm(effect: Confirm, line: Line) -> str | None:
    if effect.limits and not line.revocations.is_within(effect.limits):
        return "calls.exceeded"
    if effect.request is not None and not line.approvals.is_alone(effect.request):
        return "approval.consumed"
    return None


def _journal(effect: Look | Begin | Finish | Forget, journal: Journal) -> Any:
    match effect:
        case Look():
            return journal.look(effect.key)
        case Begin():
            return journal.begin(effect.key, effect.invocation_id)
        case Finish():
            return journal.finish(effect.key, effect.page)
        case Forget():
            return journal.forget(effect.key)


def _people(effect: Recall | Ask | Spend | Withdraw, line: Line) -> Any:
    match effect:
        case Recall():
            return line.approvals.recall(effect.key)
        case Ask():
            return _ask(effect, line)
        case Spend():
            return line.approvals.spend(effect.request, effect.approval_ids)
        case Withdraw():
            return line.approvals.withdraw(effect.key)


def _ask(effect: Ask, line: Line) -> ApprovalRequest:
    """Lay a request where approvers find it, and tell of it; who is told can't refuse it."""
    standing = line.approvals.ask(effect.key, effect.request)
    if line.on_request is not None and standing.request_id == effect.request.request_id:
        try:
            line.on_request(standing)
        except Exception:
            _LOGGER.exception(
                "on_request failed: request %s waits all the same", standing.request_id
            )
    return standing


def finished(result: T) -> T:
    """Refuse a result whose effects are still to come: nobody would watch them."""
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
