"""Requests and refusals as JSON-RPC values, without an SDK."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentguard_mcp
from agentguard import ConfigError
from agentguard_mcp.messages import (
    GuardedRequest,
    RefusedRequestError,
    guarded_request,
    is_open,
    is_proved,
    is_unfinished,
    refused_result,
    require_no_task,
)
from agentguard_mcp.params import without_own

META = {f"dev.agentguard/{name}": "x" for name in ("token", "credential", "chain", "proof")}


@pytest.mark.parametrize(
    "method", ["initialize", "ping", "server/discover", "logging/setLevel", "tools/list"]
)
def test_a_method_that_runs_no_code_is_open(method):
    assert is_open(method)


@pytest.mark.parametrize(
    "method",
    [
        "tools/call",
        "resources/read",
        "prompts/get",
        "completion/complete",
        "tasks/get",
        "new/method",
    ],
)
def test_each_other_method_is_guarded(method):
    assert not is_open(method)


def test_a_call_of_a_tool_is_decided_under_the_name_of_the_tool():
    params = {"name": "pay", "arguments": {"cents": 3}, "_meta": META}
    assert guarded_request("tools/call", params) == GuardedRequest(
        "pay", {"cents": 3}, is_tool=True
    )
    assert guarded_request("tools/call", {"name": "look"}).arguments == {}


def test_another_request_is_decided_under_its_method():
    params = {"uri": "file:///a", "_meta": META}
    expected = GuardedRequest("mcp:resources/read", {"uri": "file:///a"}, is_tool=False)
    assert guarded_request("resources/read", params) == expected
    assert guarded_request("x/y", None) == GuardedRequest("mcp:x/y", {}, is_tool=False)


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"name": ""},
        {"name": 7},
        {"name": "mcp:resources/read"},
        {"name": "a", "arguments": 1},
    ],
)
def test_a_malformed_call_is_refused(params):
    with pytest.raises(RefusedRequestError) as caught:
        guarded_request("tools/call", params)
    assert caught.value.code == "arguments.invalid"


def test_a_task_is_refused_and_a_call_is_not():
    for method, params in (("tasks/get", {}), ("tools/call", {"name": "a", "task": {"ttl": 1}})):
        with pytest.raises(RefusedRequestError) as caught:
            require_no_task(method, params)
        assert caught.value.code == "tool.unguarded"
    require_no_task("tools/call", {"name": "a", "task": None})


@pytest.mark.parametrize("result", [{"task": {}}, {"resultType": "task"}, {"resultType": "x"}])
def test_a_result_that_names_a_task_is_unfinished(result):
    assert is_unfinished({"content": [], "isError": True, **result})
    for kind in ("complete", "input_required", None):
        assert not is_unfinished({"content": [], "isError": True, "resultType": kind})


def test_a_refused_call_is_a_result_that_says_so():
    error = RefusedRequestError("no", code="approval.pending", request_id="a" * 32)
    old = refused_result(error, "2025-11-25")
    assert old == {
        "content": [{"type": "text", "text": "no"}],
        "isError": True,
        "_meta": {"dev.agentguard/code": "approval.pending", "dev.agentguard/request": "a" * 32},
    }
    assert refused_result(error, "2026-07-28") == {**old, "resultType": "complete"}


def test_the_code_of_a_server_gets_no_tokens():
    params = {"name": "a", "_meta": {**META, "kept": 1}}
    assert without_own(params) == {"name": "a", "_meta": {"kept": 1}}
    assert without_own(None) is None
    assert without_own({"_meta": "odd"}) == {"_meta": "odd"}
    assert params["_meta"] == {**META, "kept": 1}
    assert is_proved(params)
    assert not any(map(is_proved, (None, [], {}, {"_meta": 1}, {"_meta": {"kept": 1}})))


def test_an_unsupported_sdk_is_named_at_the_first_use(monkeypatch):
    monkeypatch.setattr("agentguard.adapters.framework_versions.version", lambda _name: "3.0.0")
    monkeypatch.delitem(vars(agentguard_mcp), "guard_transport", raising=False)
    with pytest.raises(ConfigError, match=r"needs mcp<3,>=1\.24, and mcp 3\.0\.0 is installed"):
        _name = agentguard_mcp.guard_transport
    with pytest.raises(AttributeError, match="guard_transports"):
        _name = agentguard_mcp.guard_transports
    monkeypatch.undo()
    assert callable(agentguard_mcp.guard_transport)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "_meta", "dev.agentguard/code", "dev.agentguard/", "dev.agent"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_no_key_of_agentguards_own_is_left_at_any_depth_and_all_else_is(value):
    kept = without_own(value)
    paths = [path for path in paths_of(value) if not any("dev.agentguard/" in str(k) for k in path)]
    assert paths_of(kept) == paths
    assert (kept is value) is (paths == paths_of(value))


def paths_of(value, path=()):
    """Return the paths to all values within a JSON value."""
    if isinstance(value, dict):
        inner = [paths_of(one, (*path, key)) for key, one in value.items()]
    elif isinstance(value, list):
        inner = [paths_of(one, (*path, at)) for at, one in enumerate(value)]
    else:
        return [(*path, repr(value))]
    return [path, *(one for below in inner for one in below)]
