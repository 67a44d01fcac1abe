"""The metrics of guarded calls and of approvals, as an SDK exports them. Spans are in
test_telemetry_spans.py.
"""

from __future__ import annotations

import pytest
from exported import Place, answer
from opentelemetry import trace
from opentelemetry.sdk.metrics.export import Sum
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from agentguard import ApprovalPending, Decision, Denied, adapters


def points(reader, name):
    """The data points of a metric, by their attributes."""
    data = reader.get_metrics_data()
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    found = [metric for scope in scopes for metric in scope.metrics if metric.name == name]
    return [
        (dict(point.attributes), point) for metric in found for point in metric.data.data_points
    ]


@pytest.fixture(params=["no spans", "sampled out", "recording"])
def sampling(request, monkeypatch):
    """Whether there are spans beside the metrics, and whether they record."""
    if request.param != "no spans":
        sampler = ALWAYS_OFF if request.param == "sampled out" else ALWAYS_ON
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider(sampler=sampler))


def counts(metrics):
    """What has been counted by now: one agent's calls of one tool, by the other attributes."""
    common = {"gen_ai.agent.name": "reviewer", "gen_ai.tool.name": "push"}
    found = points(metrics, "agentguard.calls")
    assert all(about.items() >= common.items() for about, _ in found)
    left = [(about.items() - common.items(), point.value) for about, point in found]
    told = [(dict(about), value) for about, value in left]
    return sorted(told, key=lambda one: one[0]["agentguard.policy.decision"])


@pytest.mark.usefixtures("sampling")
def test_calls_are_counted_by_their_answer_with_and_without_spans(metrics):
    place = Place()
    place.call()
    place.call()
    with pytest.raises(Denied):
        place.call("main")
    place.ask()
    assert counts(metrics) == [
        ({"agentguard.policy.decision": "allow"}, 2),
        ({"agentguard.policy.decision": "approval"}, 1),
        (
            {
                "agentguard.policy.decision": "deny",
                "agentguard.policy.code": "policy.denied",
                "error.type": "policy.denied",
            },
            1,
        ),
    ]
    took = points(metrics, "agentguard.decision.duration")
    assert [(about, point.count) for about, point in sorted(took, key=str)] == [
        ({"agentguard.policy.decision": "allow"}, 2),
        ({"agentguard.policy.decision": "approval"}, 1),
        ({"agentguard.policy.decision": "deny"}, 1),
    ]


@pytest.mark.usefixtures("sampling")
def test_a_look_up_is_counted_once_where_people_are_asked(metrics):
    place = Place()
    adapters.evaluate(place.agent, place.bound("fix"))
    adapters.evaluate(place.agent, place.bound("main"))
    assert counts(metrics) == []
    for _ in range(2):  # the second one asks nobody
        with pytest.raises(ApprovalPending):
            adapters.evaluate(place.agent, place.bound("release"))
    assert counts(metrics) == [({"agentguard.policy.decision": "approval"}, 1)]


@pytest.mark.usefixtures("sampling")
def test_what_is_only_observed_is_counted_as_decided_and_as_no_error(metrics):
    policy = {"engine": "function", "path": "unused:unused", "mode": "observe"}
    place = Place(policy=policy)
    for branch in ("fix", "main", "release"):
        place.call(branch)
    observed = {"agentguard.policy.enforced": False}
    assert counts(metrics) == [
        ({"agentguard.policy.decision": "allow", **observed}, 1),
        (
            {
                "agentguard.policy.decision": "approval",
                "agentguard.policy.code": "approval.required",
                **observed,
            },
            1,
        ),
        (
            {
                "agentguard.policy.decision": "deny",
                "agentguard.policy.code": "policy.denied",
                **observed,
            },
            1,
        ),
    ]


def test_what_waits_adds_up_and_an_answer_has_its_time(metrics):
    place, other = (Place(trust_domain="waiting.example") for _ in range(2))

    def waiting():
        found = points(metrics, "agentguard.approvals.pending")
        ours = {"agentguard.trust_domain": "waiting.example"}  # guards of other tests may be there
        return [point.value for about, point in found if about == ours]

    request = place.ask()
    assert waiting() == [1]
    other.ask()
    assert waiting() == [2]
    (waits,) = (
        metric
        for resource in metrics.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "agentguard.approvals.pending"
    )
    assert isinstance(waits.data, Sum)  # an UpDownCounter, not a Gauge
    assert not waits.data.is_monotonic
    place.guard.approvals.approve(request, place.bob)
    place.call("release")
    ((about, point),) = points(metrics, "agentguard.approval.duration")
    assert about == {"agentguard.approval.status": "approved", "gen_ai.tool.name": "push"}
    assert (point.count, point.sum >= 0) == (1, True)
    assert waiting() == [1]
    place.guard.close()
    other.guard.close()
    assert waiting() == []


def test_the_time_of_an_answer_that_settles_nothing_is_not_recorded(metrics):
    frozen: list[bool] = []

    def decide(document):
        return Decision.deny("frozen") if frozen and "approval" in document else answer(document)

    place = Place(decide)
    request = place.ask()
    place.guard.approvals.approve(request, place.bob)
    frozen.append(True)
    with pytest.raises(Denied) as denied:
        place.call("release")
    assert denied.value.code == "policy.denied"
    assert points(metrics, "agentguard.approval.duration") == []
    frozen.clear()
    place.call("release")
    ((about, point),) = points(metrics, "agentguard.approval.duration")
    assert (about["agentguard.approval.status"], point.count) == ("approved", 1)
