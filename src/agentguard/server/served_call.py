"""``ServedCall``: one call of a client, whose steps run here and whose tool runs at the client.

The steps are the generator of ``flow/guarded_call.py``. This module is its third driver, beside
``flow/drive.py`` and ``flow/drive_async.py``. The driver carries out each effect here but two: the
tool, and the look-up of facts that the application has. There the generator waits until the client
reports what has come of the effect. No thread waits with the generator.
"""

from __future__ import annotations

import inspect
import logging
import re
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import UnionType
from typing import Any, Final, NamedTuple

from agentguard import paths
from agentguard.approvals.nested import NestedCalls
from agentguard.approvals.request import ApprovalPending
from agentguard.call.decision import Decision, Denied
from agentguard.call.evaluation import Evaluation
from agentguard.call.releases import Releases
from agentguard.call.tool import FactsInput
from agentguard.delegation.handle import Delegation
from agentguard.errors import DecodeError, EncodeError
from agentguard.flow import endings
from agentguard.flow.drive import Flow, perform
from agentguard.flow.effects import Ask, Begin, Effect, LookUp, NotRun, Run
from agentguard.flow.reported import ReportedError, ReportedFailure, ReportedResult
from agentguard.wire import values
from agentguard.wire.frame import Frame
from agentguard.wire.reports import Recorder

Lend = Callable[[Delegation], tuple[dict[str, Any], list[bytes]]]
"""Returns a delegation for the client: a description, and the chain where the client lacks it."""

_LOGGER = logging.getLogger("agentguard")

TYPE_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,512}")
"""The name of a type that a client may send; the name of a generic class has brackets."""

_FAILED: Final = Decision.refusal("the guard server failed", code="server.failed")
_INTERRUPTED: Final = Decision.refusal(
    "the call was interrupted before its tool began", code="call.interrupted"
)
_FACTS: ContextVar[Any] = ContextVar("agentguard_client_facts")


def client_facts(_values: FactsInput) -> Any:
    """Return the facts that the client has looked up: the look-up of each served tool."""
    return _FACTS.get()


class ClientCodec:
    """The codec of results in the server: the bytes are the client's, and stay bytes."""

    def dumps(self, result: ReportedResult) -> bytes:
        """Return the result as the client has written it; raises ``EncodeError`` for none."""
        if result.journal is None:
            raise EncodeError("the client can't write this result for a replay")
        return result.journal

    def loads(self, data: bytes) -> bytes:
        """Return the bytes, which the client decodes."""
        return data


class CallRequest(NamedTuple):
    """What a client's request says of a call.

    ``agent`` is the agent's name. ``is_traced`` says whether the client has spans. ``folder`` is
    the client's working directory, None for a client whose files this process does not see.
    ``sha256`` tells the request from others, and ``size`` is the number of bytes of the request.
    """

    agent: str
    is_traced: bool
    folder: str | None
    sha256: str
    size: int


class ServedCall:
    """The steps of a call, and where they stand.

    ``around`` takes the place of the call around this one, which is at the client: what the steps
    tell ``around`` goes to the client.
    ``reply`` is the frame that says where the steps stand, sent again for a request that comes
    again. ``is_unheard`` says that the client can't have got the reply that lets the tool run,
    since the client had closed each connection before. ``invocation_id``
    and ``releases`` (the tool's secrets) are known once the tool may run. ``size`` is the number of
    bytes that the client has sent: the request, and the facts. The methods may be called
    from any thread, by one at a time.
    """

    def __init__(
        self,
        flow: Flow[Any],
        recorder: Recorder,
        around: NestedCalls,
        lend: Lend,
        request: CallRequest,
    ) -> None:
        self.request = request
        self.size = request.size
        self.lock = threading.Lock()
        self.reply: Frame | None = None
        self.invocation_id: str | None = None
        self._heard = 0
        self.is_unheard = False
        self.releases: Releases | None = None
        self._flow = flow
        self._recorder = recorder
        self._around = around
        self._lend = lend
        self._effect: Effect | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether the steps wait for the client."""
        return self._effect is not None

    @property
    def runs(self) -> bool:
        """Whether the client runs the tool now."""
        return isinstance(self._effect, Run)

    @property
    def reply_size(self) -> int:
        """The length of the reply, about: a header may have texts without a JSON form."""
        if self.reply is None:
            return 0
        return len(repr(self.reply.header)) + sum(map(len, self.reply.blobs))

    def start(self) -> Frame:
        """Begin the steps, unless they have begun; return where they stand."""
        return self.reply or self._advance(lambda: next(self._flow))

    def take_span(self, traceparent: str | None) -> Frame:
        """Go on with the span that the client has begun (W3C ``traceparent``)."""
        self._waiting_for(Begin | Ask)
        return self._advance(lambda: self._flow.send(traceparent))

    def require_look_up(self) -> None:
        """Raise ``DecodeError`` (``frame.malformed``) unless the call waits for facts."""
        self._waiting_for(LookUp)

    def take_facts(self, facts: Any) -> Frame:
        """Go on with the facts that the client has looked up."""
        effect = self._waiting_for(LookUp)

        def look_up() -> Effect:
            token = _FACTS.set(facts)
            try:
                found = self._perform(effect)
            except Exception as error:  # noqa: BLE001  the flow decides what it means
                return self._flow.throw(error)
            finally:
                _FACTS.reset(token)
            return self._flow.send(found)

        return self._advance(look_up)

    def fail_facts(self, error: BaseException) -> Frame:
        """Go on after the client's look-up of facts has raised ``error``."""
        self._waiting_for(LookUp)
        return self._advance(lambda: self._flow.throw(error))

    def finish(self, result: ReportedResult) -> Frame:
        """End the call: the tool has returned ``result``."""
        self._waiting_for(Run)
        return self._advance(lambda: self._flow.send(result))

    def fail(self, error: ReportedError | NotRun) -> Frame:
        """End the call: the tool has raised, or has not run."""
        self._waiting_for(Run)
        return self._advance(lambda: self._flow.throw(error))

    def hears(self, *, has_failed: bool) -> None:
        """Note the beginning of a reply that lets the tool run, or that the reply has failed."""
        self._heard += -1 if has_failed else 1
        self.is_unheard = self._heard == 0

    def withdraw(self) -> Frame:
        """End a call that its client does not run."""
        if self.runs:
            return self.fail(NotRun(_INTERRUPTED))
        self.abandon()
        return Frame({"step": "ended"})

    def abandon(self) -> None:
        """End the steps of a lost client's call, which stays in doubt where its tool had begun."""
        if self.is_under_way:
            self._advance(lambda: self._flow.throw(ReportedError(endings.ABANDONED, "")))

    def _waiting_for(self, kind: type[Any] | UnionType) -> Any:
        if not isinstance(self._effect, kind):
            raise DecodeError("the call does not wait for this", code="frame.malformed")
        return self._effect

    def _advance(self, go_on: Callable[[], Effect]) -> Frame:
        """Carry out effects until the client has the next, or the steps are over."""
        self._effect = None
        try:
            effect = go_on()
            while not self._is_for_client(effect):
                try:
                    result = self._perform(effect)
                except BaseException as error:  # noqa: BLE001  the flow decides what it means
                    effect = self._flow.throw(error)
                else:
                    effect = self._flow.send(result)
            self._effect = effect
            step, blobs = self._ask(effect)
        except StopIteration as stop:
            step, blobs = _end(stop.value)
        except ReportedError:  # what the client has reported, which the client raises itself
            step, blobs = _end(None)
        except Denied as denied:
            step, blobs = _denial(denied.decision)
        except ApprovalPending as pending:
            step = {"step": "pending", "missing": pending.missing}
            blobs = [pending.request.dumps()]
        except Exception:
            _LOGGER.exception("a call of a client failed in the server, and is denied")
            step, blobs = _denial(_FAILED)
        except BaseException:  # noqa: BLE001  what has interrupted the client's look-up of facts
            step, blobs = {"step": "interrupted"}, []
        self.reply = Frame({**step, **self._standing()}, blobs)
        return self.reply

    def _perform(self, effect: Effect) -> Any:
        """Carry out an effect; no event loop runs in this thread, so a coroutine gets one."""
        if not isinstance(effect, LookUp):
            return perform(effect, _no_tool, self._recorder)
        with paths.starting_at(self.request.folder):
            if not inspect.iscoroutinefunction(effect.function):
                return perform(effect, _no_tool, self._recorder)
            import asyncio  # noqa: PLC0415  few look-ups of facts are coroutine functions

            return asyncio.run(effect.function(effect.facts_input))

    def _is_for_client(self, effect: Effect) -> bool:
        if isinstance(effect, Begin | Ask):
            return self.request.is_traced
        if isinstance(effect, LookUp):
            return effect.function is client_facts
        return isinstance(effect, Run)

    def _ask(self, effect: Effect) -> tuple[dict[str, Any], list[bytes]]:
        if isinstance(effect, Ask):
            return {"step": "asks"}, []
        if isinstance(effect, Begin):
            authority = effect.authority
            who = {"principal": authority.principal, "actors": [*authority.actors]}
            return {"step": "begin", **who, "task_id": effect.task_id, "paused": effect.paused}, []
        if isinstance(effect, LookUp):
            about = effect.facts_input
            asked = {"principal": about.principal, "task_id": about.task_id}
            return {"step": "look_up", **asked}, []
        assert isinstance(effect, Run)  # noqa: S101  _is_for_client has said so
        self.invocation_id, self.releases = effect.invocation_id, effect.releases
        step = {"step": "run", "invocation_id": effect.invocation_id, "lends": None}
        if not isinstance(effect.authority.lends, Delegation):
            return step, []
        lent, blobs = self._lend(effect.authority.lends)
        return {**step, "lends": lent}, blobs

    def _standing(self) -> Mapping[str, Any]:
        """Return the reports so far, and what the steps have told the call around."""
        around = self._around
        return {
            "reports": self._recorder.take(),
            "waits": around.waits,
            "is_journalled": around.is_repeatable,
        }


def _end(value: Any) -> tuple[dict[str, Any], list[bytes]]:
    """Return the end of the steps, by what the generator has returned."""
    if isinstance(value, Decision):
        return {"step": "decision", "decision": values.decision(value)}, []
    if isinstance(value, Evaluation):
        step = {"step": "evaluation", "decision": values.decision(value.decision)}
        return {**step, "entry": value.entry}, [value.statement or b"", value.salt]
    if isinstance(value, bytes):
        return {"step": "replayed"}, [value]
    return {"step": "ended"}, []


def _denial(decision: Decision) -> tuple[dict[str, Any], list[bytes]]:
    return {"step": "denied", "decision": values.decision(decision)}, []


def _no_tool() -> Any:
    raise AssertionError("the client runs the tool")


def failure_named(name: str, *, interrupts: bool) -> BaseException:
    """Return an exception of a type with this name: what the client's look-up has raised.

    The log names the exception's type. Raises ``DecodeError`` for a text that is no name.
    """
    base: type[BaseException] = BaseException if interrupts else ReportedFailure
    failure: BaseException = _type(name, base)()
    return failure


def stand_in(name: str) -> object:
    """Return a value of a type with this name, for a value that has no JSON form."""
    return _type(name, object)()


def _type(name: str, base: type[Any]) -> type[Any]:
    if not TYPE_NAME.fullmatch(name):
        raise DecodeError("a type has no such name", code="frame.malformed")
    return type(name, (base,), {})
