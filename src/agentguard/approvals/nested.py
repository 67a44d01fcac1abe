"""The calls that a tool makes while its own call runs: which of them wait for a person."""

from __future__ import annotations

from agentguard.approvals.request import ApprovalRequest


class NestedCalls:
    """The state of one call and of the calls within it.

    A call *waits* while people have not answered, while nothing has decided the call, or where the
    tool may have run without an outcome; then the call around it is not complete either. ``around``
    is the call around this one, None for an outermost call. Call sites (64 hex digits) identify
    calls. All methods may be called from any thread.
    """

    __slots__ = ("_around", "_site", "hands_over", "is_repeatable", "request", "waiting")

    def __init__(self, around: NestedCalls | None = None) -> None:
        self._around = around
        self._site: str | None = None
        self.request: ApprovalRequest | None = None
        """The request of the call itself."""
        self.waiting: dict[str, NestedCalls] = {}
        """The calls within this one that wait, by their sites."""
        self.hands_over = False
        """For adapters: whether the tool runs an agent whose work may start again."""
        self.is_repeatable = True
        """Whether the journal has each call that ran within, so that none of them runs twice."""

    @property
    def waits(self) -> bool:
        """Whether a call within this one waits."""
        return bool(self.waiting)

    @property
    def requests(self) -> tuple[ApprovalRequest, ...]:
        """The requests of all calls within this one, at any depth."""
        requests: list[ApprovalRequest] = []
        for call in tuple(self.waiting.values()):
            requests += call.requests if call.request is None else (call.request,)
        return tuple(requests)

    def begins(self, site: str | None) -> None:
        """Note that the call begins, at this site; the call waits from now on until it ends."""
        self._site = site
        if self._around is not None and site is not None:
            self._around.waiting[site] = self

    def asks(self, site: str | None, request: ApprovalRequest) -> None:
        """Note that the call, at this site, waits for answers to ``request``."""
        self.request = request
        self.begins(site)

    def runs(self, *, is_journalled: bool) -> None:
        """Note that the call's tool is about to run; the journal may have the call."""
        if self._around is not None and not is_journalled:
            self._around.is_repeatable = False

    def ends(self) -> None:
        """Note that the call has ended; the call still waits while a call within it waits."""
        if self._around is not None and self._site is not None and not self.waiting:
            self._around.waiting.pop(self._site, None)
