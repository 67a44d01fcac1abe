"""A decorated function runs with the arguments that the policy decided on, or not at all."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest

from agentguard import ConfigError, Decision, Denied, Guard


def only_tmp(call: Any) -> Decision:
    path = call["args"].get("path", "")
    return Decision.allow() if path.startswith("tmp/") else Decision.deny("only below tmp")


def with_session(function: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> str:
        return function("session", *args, **kwargs)

    return wrapper


def retrying(function: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> str:
        try:
            return function(*args, **kwargs)
        except OSError:
            return function(*args, **kwargs)

    return wrapper


@pytest.fixture
def guard():
    with Guard.ephemeral(only_tmp) as guard:
        yield guard


def test_a_default_does_not_stand_in_for_what_a_decorator_moved(guard):
    ran = []

    @guard.tool(resource="file:{path}")
    @with_session
    def delete(session, path="tmp/scratch"):
        ran.append(path)
        return path

    agent = guard.new_agent("a")
    with pytest.raises(Denied, match="pass them by name") as caught:
        agent.call(delete, "/etc/passwd")
    assert caught.value.code == "arguments.invalid"
    with pytest.raises(Denied):
        agent.call(delete, path="/etc/passwd")
    assert ran == []


def test_a_decorator_that_passes_on_keeps_working_by_name(guard):
    ran = []

    @guard.tool(resource="file:{path}")
    @retrying
    def delete(path, *, force=False):
        ran.append(path)
        if ran == ["tmp/a"]:
            raise OSError
        return f"{path} {force}"

    agent = guard.new_agent("a")
    for refused in (lambda: agent.call(delete, path="/etc"), lambda: agent.call(delete, "tmp/a")):
        with pytest.raises(Denied):
            refused()
    assert ran == []
    assert agent.call(delete, path="tmp/a") == "tmp/a False"
    assert asyncio.run(agent.acall(delete, path="tmp/b", force=True)) == "tmp/b True"
    assert ran == ["tmp/a", "tmp/a", "tmp/b"]


def test_what_can_not_be_named_is_refused_when_it_is_guarded(guard):
    def delete(path: str) -> str:
        return path

    @functools.wraps(delete)
    def wrapper(*args: str) -> str:
        return delete(*args)

    with pytest.raises(ConfigError, match="state its parameters"):
        guard.tool(wrapper)
    assert guard.new_agent("a").call(guard.tool(delete), "tmp/a") == "tmp/a"


def test_its_description_is_that_of_what_it_wraps(guard):
    def delete(path: str) -> str:
        """Delete."""
        return path

    plain, decorated = guard.tool(delete), guard.tool(retrying(delete))
    assert decorated.spec == plain.spec
    assert decorated.spec.digest == plain.spec.digest
