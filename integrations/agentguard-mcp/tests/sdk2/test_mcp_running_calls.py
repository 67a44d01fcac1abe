"""What a tool does while its guarded call runs: it asks, reports progress, and is cancelled."""

from __future__ import annotations

import anyio
import anyio.from_thread
import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_scene import code_of
from mcp_types import ElicitResult
from pydantic import BaseModel

from agentguard_mcp import current_caller


class Sure(BaseModel):
    """An answer."""

    sure: bool


async def accept(_ctx, _params):
    return ElicitResult(action="accept", content={"sure": True})


async def test_a_tool_asks_its_user_and_reports_progress_inside_a_guarded_call(make):
    """With the handshake, the server itself sends a request while the call runs."""
    scene = make("sdk")

    @scene.server.tool()
    async def ask(ctx: Context) -> str:
        """Asks."""
        await ctx.report_progress(1, 2)
        answer = await ctx.elicit("Sure?", Sure)
        caller = current_caller()
        return f"{answer.action} for {None if caller is None else caller.principal}"

    seen: list[float] = []

    async def note(progress, _total, _message):
        seen.append(progress)

    async with scene.connect("legacy", elicitation_callback=accept) as client:
        result = await scene.within(lambda: client.call_tool("ask", {}, progress_callback=note))
    assert result.content[0].text == "accept for user:alice"
    assert seen == [1]
    assert scene.log.outcomes() == ["ok"]


async def test_a_cancelled_call_has_an_unknown_outcome_and_the_next_call_runs(scene, mode):
    started = anyio.Event()

    @scene.server.tool()
    async def wait() -> str:
        """Waits."""
        started.set()
        await anyio.sleep(30)
        return "late"

    async with scene.connect(mode) as client:

        async def cut_short():
            with anyio.move_on_after(20) as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.call_tool, "wait", {})
                    await started.wait()
                    scope.cancel()

        await scene.within(cut_short)
        result = await scene.call(client, "pay", {"cents": 3})
        assert code_of(result) is None
    assert sorted(scene.log.outcomes()) == ["ok", "unknown"]


async def test_many_calls_at_once_each_run_once(scene, mode):
    async with scene.connect(mode) as client:

        async def several():
            results: list[str] = []

            async def one(cents):
                answer = await client.call_tool("pay", {"cents": cents})
                results.append(answer.content[0].text)

            async with anyio.create_task_group() as tasks:
                for cents in (1, 2, 3, 4, 6, 7, 8, 9):
                    tasks.start_soon(one, cents)
            return results

        results = await scene.within(several)
    assert sorted(results) == [f"paid {cents} for user:alice" for cents in (1, 2, 3, 4, 6, 7, 8, 9)]
    assert sorted(cents for cents, _user in scene.runs) == [1, 2, 3, 4, 6, 7, 8, 9]


async def test_a_call_from_a_thread_of_the_sdk_waits_for_no_thread_of_the_sdk(make):
    """The SDK runs sync tools in threads, of which this test leaves one: the call itself has it."""
    scene = make("sdk")

    @scene.server.tool()
    async def look_again() -> str:
        """Looks."""
        return "seen"

    limiter = anyio.to_thread.current_default_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, 1
    try:
        async with scene.connect() as client:

            def call():
                return anyio.from_thread.run(client.call_tool, "look_again", {})

            with anyio.fail_after(20):
                result = await scene.within(lambda: anyio.to_thread.run_sync(call))
    finally:
        limiter.total_tokens = before
    assert result.content[0].text == "seen"
