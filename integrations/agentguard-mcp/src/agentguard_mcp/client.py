"""``guard_transport``: proves the requests of an MCP client at the stream that they are written to.

Each request passes there once for each time that it is sent: also in the next round of a call that
asked for input, and after a lost connection. So each has a proof of its own. The streams of the
SDKs 1 and 2 differ in one wrapper around the request, and no SDK is imported.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self

from agentguard import ConfigError, UnguardedCallError
from agentguard.proof import prove_call
from agentguard.proof.receiver import require_audience
from agentguard_mcp import messages
from agentguard_mcp.threads import in_thread


def guard_transport(
    transport: AbstractAsyncContextManager[Any], audience: str
) -> AbstractAsyncContextManager[Any]:
    """Return a transport whose requests prove their caller to the server ``audience``.

    ``transport`` is what the SDK connects with, as ``stdio_client(...)`` or
    ``streamable_http_client(...)``. ``audience`` is the server's name in the delegation and in the
    ``CallReceiver`` of the server: take the name from the configuration, and never from the server.

    A request of ``tools/call``, ``resources/read``, ``prompts/get`` and of each other method that
    runs code of the server is sent only inside a guarded call. Elsewhere the SDK's method raises
    ``UnguardedCallError`` (``tool.unguarded``), and ``ProofError`` where the guard signs no proof,
    or an argument has no canonical form. Lists have a proof inside a guarded call, and none
    elsewhere. Raises ``ConfigError`` for an audience that no delegation can name, and for what is
    no transport.
    """
    require_audience(audience)
    if not hasattr(transport, "__aenter__"):
        message = (
            f"{transport!r} is no transport: give stdio_client(...) or streamable_http_client(...)"
        )
        raise ConfigError(message)
    return _guarded(transport, audience)


@asynccontextmanager
async def _guarded(
    transport: AbstractAsyncContextManager[Any], audience: str
) -> AsyncIterator[tuple[Any, ...]]:
    async with transport as (read, write, *more):
        yield (read, ProvingStream(write, audience), *more)


class ProvingStream:
    """The stream that a client writes its messages to; each guarded request gets a fresh proof."""

    def __init__(self, stream: Any, audience: str) -> None:
        self._stream = stream
        self._audience = audience

    async def send(self, item: Any) -> None:
        """Send a message of the session (``SessionMessage``); raises as ``guard_transport`` says.

        The guard signs in a thread, because the guard may wait for a disk or for a guard server.
        """
        method = _proved_method(item)
        if method is not None:
            inner = getattr(item.message, "root", item.message)
            params = await self._proved(method, _params(inner))
            if params is not None:
                item = replace(item, message=_rebuilt(item.message, inner, params))
        await self._stream.send(item)

    def send_nowait(self, item: Any) -> None:
        """Send a message that needs no proof.

        A guard may have to wait before it signs. So a request that has a proof inside a guarded
        call raises ``UnguardedCallError`` here, and nothing is sent: use ``send``.
        """
        method = _proved_method(item)
        if method is not None:
            message = f"{method} is sent with a proof, which takes a wait: use send"
            raise UnguardedCallError(message)
        self._stream.send_nowait(item)

    def clone(self) -> ProvingStream:
        """Return another end of the stream, which proves requests as well."""
        return ProvingStream(self._stream.clone(), self._audience)

    async def _proved(self, method: str, params: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return the parameters with a proof, None for a list outside of a guarded call."""
        prove = partial(prove_call, self._audience, method, params)
        try:
            return await in_thread(prove)
        except UnguardedCallError:
            if method in messages.LISTS:
                return None
            raise

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> Any:
        return await self._stream.__aexit__(*exception)

    def __getattr__(self, name: str) -> Any:
        """Return another attribute of the stream, which sends nothing, such as ``close``."""
        return getattr(self._stream, name)


def _proved_method(item: Any) -> str | None:
    """Return the method of a request that needs a proof, None for any other message."""
    inner = getattr(item.message, "root", item.message)
    method: str | None = getattr(inner, "method", None)
    if getattr(inner, "id", None) is None or method in messages.OPEN - messages.LISTS:
        return None
    return method


def _params(request: Any) -> dict[str, Any] | None:
    """Return the parameters as the SDK writes them: a proof is bound to what is sent."""
    written = request.model_dump(mode="json", by_alias=True, exclude_unset=True)
    params: dict[str, Any] | None = written.get("params")
    return params


def _rebuilt(message: Any, request: Any, params: dict[str, Any]) -> Any:
    """Return the message with other parameters; the SDK 1 wraps the request in a root model."""
    proved = request.model_copy(update={"params": params})
    return proved if request is message else type(message)(proved)
