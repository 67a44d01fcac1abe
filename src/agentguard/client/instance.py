"""``ClientInstance``: an agent instance whose key is in a server, as this process uses it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from agentguard.approvals.nested import NestedCalls
from agentguard.call.decision import Decision
from agentguard.call.evaluation import Evaluation
from agentguard.call.invocation import Invocation
from agentguard.call.options import CallOptions
from agentguard.client.calls import ClientCall, Exchange
from agentguard.client.delegations import ClientDelegations, current_delegation
from agentguard.client.link import Link
from agentguard.client.names import Name, in_session
from agentguard.client.releases import ClientReleases
from agentguard.client.tools import ClientTools
from agentguard.delegation import context
from agentguard.delegation.access_token import IssuedToken
from agentguard.delegation.claim import Claim
from agentguard.delegation.handle import Delegation
from agentguard.domain.config.agents import AgentConfig
from agentguard.errors import AgentguardError, DelegationError
from agentguard.flow.authority import Authority
from agentguard.flow.drive import Flow
from agentguard.flow.listener import CallListener
from agentguard.flow.ports import OnRequest
from agentguard.telemetry import AgentRun
from agentguard.telemetry.silence import is_silent
from agentguard.wire import values
from agentguard.wire.frame import Frame


class Identity(NamedTuple):
    """Who acts (``flow.authority.AgentIdentity``)."""

    name: str
    uri: str
    type: str


class ClientInstance:
    """An agent instance in a server. A server that was started anew gets another instance.

    The methods may be called from any thread.
    """

    def __init__(
        self,
        config: AgentConfig,
        link: Link,
        tools: ClientTools,
        delegations: ClientDelegations,
        on_request: OnRequest | None,
    ) -> None:
        self._config = config
        self._link = link
        self._tools = tools
        self._delegations = delegations
        self._on_request = on_request
        self._made = Name(link, self._make)
        self._identity = self._made()[1]

    def _make(self) -> tuple[str, Identity]:
        name = self._config.name
        made = self._link.request({"op": "instance", "name": name}).header
        uri = values.text(made.get("uri"))
        return values.text(made.get("name")), Identity(name, uri, self._config.type)

    @property
    def actor(self) -> Identity:
        """The name, the identifier and the type of the instance.

        Without the server, they are those of the last session: the call itself is denied then.
        """
        with suppress(AgentguardError):
            self._identity = self._made()[1]
        return self._identity

    def __del__(self) -> None:
        """Let the server forget the instance, with the next request."""
        self._made.forget(lambda made: self._link.release(made[0]))

    def abandon(self) -> None:
        """Do nothing: the key is in the server, and a forked process has a session of its own."""

    def guarded_call(
        self,
        invocation: Invocation,
        listener: CallListener,
        options: CallOptions,
        delegation: Delegation | DelegationError | None,
    ) -> Flow[Any]:
        """Return the steps of a guarded call, inside the call that runs here, if any."""
        return self._call(invocation, listener, options, delegation).run()

    def evaluate(
        self,
        invocation: Invocation,
        listener: CallListener,
        options: CallOptions,
        delegation: Delegation | DelegationError | None,
    ) -> Flow[Decision]:
        """Return the steps that lead to the decision on a call, and run nothing."""
        return self._call(invocation, listener, options, delegation).evaluate()

    def authorize(
        self,
        invocation: Invocation,
        listener: CallListener,
        delegation: Delegation | DelegationError | None,
    ) -> Flow[Evaluation]:
        """Return the steps that lead to a signed decision on a call, and run nothing."""
        return self._call(invocation, listener, CallOptions(), delegation).authorize()

    def _call(
        self,
        invocation: Invocation,
        listener: CallListener,
        options: CallOptions,
        delegation: Delegation | DelegationError | None,
    ) -> ClientCall:
        current, around = current_delegation(delegation), context.running_call()
        principal = f"agent:{self._config.name}"
        claim: Claim | None = None
        if isinstance(current, Delegation):
            principal = current.chain.principal
        elif current is not None:
            claim = self._delegations.claim(current.delegation)
            principal = principal if claim is None else claim.principal
        request_id = os.urandom(16).hex()
        outer = None if around is None else around.releases
        return ClientCall(
            self.actor,
            Authority(principal, None, frozenset(), refused=claim),
            invocation,
            listener,
            options,
            NestedCalls(None if around is None else around.nested_calls),
            self._exchange(invocation, current),
            request_id,
            None if around is None else around.invocation_id,
            not is_silent(),
            ClientReleases(self._link, request_id, outer),
            self._on_request,
        )

    def _exchange(
        self, invocation: Invocation, current: Delegation | DelegationError | None
    ) -> Exchange:
        link = self._link

        def begin(about: Mapping[str, Any], arguments: bytes) -> Frame:
            def ask(is_lost: bool) -> Frame:  # noqa: FBT001
                names = {
                    "agent": self._made()[0],
                    "tool": self._tools.name(invocation.tool),
                    "delegation": self._delegations.name(current, is_lost=is_lost),
                    "folder": _working_folder(),
                }
                blobs = () if "error" in about else (arguments,)
                return link.request({**about, **names}, *blobs)

            def drop() -> None:
                self._made.drop()
                self._tools.drop(invocation.tool)

            return in_session(ask, drop)

        def end(about: Mapping[str, Any], blobs: Sequence[bytes], waits: bool) -> Frame | None:  # noqa: FBT001
            if waits:
                return link.request(about, *blobs)
            link.report(about, *blobs)
            return None

        def withdraw(request_id: str, waits: bool) -> None:  # noqa: FBT001
            link.withdraw(request_id, waits=waits)

        made = self._delegations
        return Exchange(begin, link.request, end, made.read, made.known, made.fetch, withdraw)

    def describe_run(self, delegation: Delegation | DelegationError | None) -> AgentRun:
        """Describe a run of this agent under ``delegation``, or else the one in force here."""
        current, own = current_delegation(delegation), f"agent:{self._config.name}"
        if not isinstance(current, Delegation):
            return AgentRun(own, (), None)
        chain = current.chain
        # otherwise the first call adds a hop to this agent
        is_accepted = chain.leaf.delegatee == self.actor.uri
        actors = chain.actors if is_accepted else [*chain.actors, own]
        return AgentRun(chain.principal, actors, chain.root.task_id)

    def access_token(self, delegation: Delegation | DelegationError | None) -> IssuedToken | None:
        """Return the access token of a delegation, None where none is given or in force."""
        current = current_delegation(delegation)
        if current is None:
            return None
        if isinstance(current, DelegationError):
            raise current

        def ask(is_lost: bool) -> IssuedToken:  # noqa: FBT001
            asked = {
                "op": "access_token",
                "agent": self._made()[0],
                "delegation": self._delegations.name(current, is_lost=is_lost),
            }
            answer = self._link.request(asked)
            return values.reads(
                "token", lambda: IssuedToken(values.text(answer.header["token"]), answer.blobs[0])
            )

        return in_session(ask, self._made.drop)


def _working_folder() -> str | None:
    """Return where this process's relative paths start; None where that has no UTF-8 form."""
    try:
        folder = os.getcwd()  # noqa: PTH109  a text
        folder.encode()
    except (OSError, UnicodeError):
        return None
    return folder
