"""The calls within a running call: which of them wait for a person, or may have run."""

from __future__ import annotations

from agentguard.approvals.request import ApprovalRequest


class NestedCalls:
    """How the calls that are made within a running call were left; ``around`` is that of the call
    around it, None where no guarded call runs.

    A call *waits* that a person has not answered, that may have run, or that nothing has decided:
    the call around it is not complete either. Calls are known by their sites (64 hex digits). Its
    methods may be called from any thread.
    """  # noqa: D205  the second half names what is passed

    __slots__ = ("_around", "_site", "hands_over", "repeatable", "request", "waiting")

    def __init__(self, around: NestedCalls | None = None) -> None:
        self._around = around
        self._site: str | None = None
        self.request: ApprovalRequest | None = None
        """What the call itself asks people."""
        self.waiting: dict[str, NestedCalls] = {}
        """The calls within that wait, by their sites."""
        self.hands_over = False
        """For adapters: whether the work within is an agent's, and may be begun again."""
        self.repeatable = True
        """Whether each call that ran within is in the journal, and so is not run once more."""

    @property
    def waits(self) -> bool:
        """Whether a call within waits."""
        return bool(self.waiting)

    @property
    def requests(self) -> tuple[ApprovalRequest, ...]:
        """The requests for approvals that calls within wait for, however deep."""
        found: list[ApprovalRequest] = []
        for call in tuple(self.waiting.values()):
            found += call.requests if call.request is None else (call.request,)
        return tuple(found)

    def begins(self, site: str | None) -> None:
        """The call itself begins, at this site: from now on it waits until it has ended."""
        self._site = site
        if self._around is not None and site is not None:
            self._around.waiting[site] = self

    def asks(self, site: str | None, request: ApprovalRequest) -> None:
        """The call, at this site, waits for people to answer this request."""
        self.request = request
        self.begins(site)

    def runs(self, *, kept: bool) -> None:
        """The call's tool is about to run; ``kept`` where the journal has a page of the call."""
        if self._around is not None and not kept:
            self._around.repeatable = False

    def ends(self) -> None:
        """The call has ended; it waits all the same while a call within it does."""
        if self._around is not None and self._site is not None and not self.waiting:
            self._around.waiting.pop(self._site, None)
