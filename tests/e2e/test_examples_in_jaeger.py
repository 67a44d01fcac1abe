"""The examples with a real Jaeger beside them: no span has a warning on its page.

Each example sends its spans by the variables of OpenTelemetry alone. ``test_jaeger.py`` looks at
the traces of the demo, of ``examples/jaeger`` and of the crew with identities more closely.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
DIRECTLY = build_opener(ProxyHandler({}))
LANGCHAIN = (
    "langchain_tools.py",
    "langgraph_approvals.py",
    "stategraph_approvals.py",
    "subagents.py",
)
PLAIN = (
    "async_agent.py",
    "custom_policy/main.py",
    "delegation.py",
    "deploy_secret.py",
    "idempotency.py",
    "plain_function.py",
    "resume_later.py",
)


def traces_of(query, service):
    """Return the traces of a service, once Jaeger has kept some of its spans."""
    asked = urlencode({"service": service, "limit": 1000})
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with DIRECTLY.open(f"{query}/api/traces?{asked}", timeout=10) as answer:
            found = json.loads(answer.read())["data"]
        if found:
            return found
        time.sleep(0.1)
    return pytest.fail(f"Jaeger has no trace of {service}")


@pytest.mark.slow("runs an example in a process of its own")
@pytest.mark.parametrize("example", [*PLAIN, *LANGCHAIN])
def test_no_span_of_an_example_has_a_warning(jaeger_urls, tmp_path, example):
    query, otlp = jaeger_urls
    service = f"example-{os.urandom(4).hex()}"
    named = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp, "OTEL_SERVICE_NAME": service}
    ran = subprocess.run(
        [sys.executable, EXAMPLES / example],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), **named},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    spans = [span for trace in traces_of(query, service) for span in trace["spans"]]
    assert any(span["operationName"].startswith("execute_tool ") for span in spans)
    assert [span["warnings"] for span in spans if span["warnings"]] == []
