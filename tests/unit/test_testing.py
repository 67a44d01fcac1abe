"""The kit for adapters holds for the plainest of them, and fails one that lets calls through."""

from __future__ import annotations

import pytest

from agentguard.testing import AdapterTests

pytest_plugins = ["pytester"]


class TestPlainFunctions(AdapterTests):
    """``@guard.tool`` and ``agent.call``, as an adapter."""

    @pytest.fixture(autouse=True)
    def _guard(self, recorded):
        self.guard = recorded.guard

    def call(self, agent, function, arguments):
        return agent.call(self.guard.tool(function), **arguments)

    async def acall(self, agent, function, arguments):
        return await agent.acall(self.guard.tool(function), **arguments)


OPTIONS = ("-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function")


def test_the_fixture_is_a_guard_that_a_test_sets(pytester):
    pytester.makeconftest('pytest_plugins = ["agentguard.testing"]')
    pytester.makepyfile(
        """
        import pytest
        from agentguard import Decision, Denied

        def test_deploy(recorded_guard):
            agent = recorded_guard.guard.new_agent("a")
            tool = recorded_guard.guard.tool(name="deploy")(lambda: "done")
            assert agent.call(tool) == "done"
            recorded_guard.decide = lambda call: Decision.deny(f"no {call['action']}")
            with pytest.raises(Denied, match="no deploy"):
                agent.call(tool)
            assert [call.decision for call in recorded_guard.calls()] == ["allow", "deny"]
        """
    )
    pytester.runpytest_inprocess(*OPTIONS).assert_outcomes(passed=1)


def test_an_adapter_that_lets_calls_through_fails(pytester):
    pytester.makepyfile(
        """
        from agentguard.testing import AdapterTests

        class TestNothing(AdapterTests):
            def call(self, agent, function, arguments):
                return function(**arguments)

            async def acall(self, agent, function, arguments):
                return await function(**arguments)
        """
    )
    outcome = pytester.runpytest_inprocess(*OPTIONS).parseoutcomes()
    assert outcome["failed"] >= 12
