"""A trace store that never ends its answer, and traces made to hang or break who reads them.

What writes into a trace store is not the guards alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jaeger_export
import pytest
import waterfall

ROOT = Path(__file__).parents[2]
TRACE = "0af7651916cd43dd8448eb211c80319c"


def trace_of(**members: Any) -> dict[str, Any]:
    span = {
        "traceID": TRACE,
        "spanID": "b7ad6b7169203331",
        "operationName": "execute_tool push",
        "references": [],
        "startTime": 1_795_642_648_000_000,
        "duration": 5,
        "tags": [],
        "logs": [],
        "processID": "p1",
    }
    processes = {"p1": {"serviceName": "agents"}}
    return {"traceID": TRACE, "spans": [{**span, **members}], "processes": processes}


@pytest.fixture
def jaeger():
    """A server that answers each question with the ``parts`` it is given."""

    class Answers(BaseHTTPRequestHandler):
        server: Any

        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            try:
                for part in self.server.parts():
                    self.wfile.write(part)
            except OSError:
                self.server.left.set()

        def log_message(self, *_said): ...

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.left = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def export(server, file):
    with httpx.Client(
        base_url=f"http://127.0.0.1:{server.server_port}", mounts=jaeger_export._DIRECTLY
    ) as client:
        found = jaeger_export.ask_for_traces(client, f"/api/traces/{TRACE}", {})
    file.write_text(json.dumps(found))


def endless():
    yield b'{"data":['
    while True:
        yield b'{"traceID":"a","spans":[]},' * 40_000


def test_an_answer_that_never_ends_is_not_kept(jaeger, tmp_path):
    jaeger.parts = endless
    with pytest.raises(jaeger_export.ExportError, match="more than 64 MiB: ask for fewer"):
        export(jaeger, tmp_path / "traces.json")
    jaeger.left.wait()
    assert not [*tmp_path.iterdir()]


def test_an_answer_that_takes_too_long_is_not_waited_for(jaeger, tmp_path, monkeypatch):
    monkeypatch.setattr(jaeger_export, "_TIMEOUT", -1.0)
    jaeger.parts = endless
    with pytest.raises(jaeger_export.ExportError, match="goes on answering"):
        export(jaeger, tmp_path / "traces.json")


@pytest.mark.parametrize(
    "found",
    ["[" * 100_000, '{"data":[1]}', '{"data":[{"spans":[]}]}', '{"data":[{"traceID":"a"}]}'],
)
def test_what_is_no_trace_is_not_exported(jaeger, tmp_path, found):
    jaeger.parts = lambda: [found.encode()]
    with pytest.raises(jaeger_export.ExportError, match="no trace"):
        export(jaeger, tmp_path / "traces.json")


def test_a_trace_is_exported(jaeger, tmp_path):
    jaeger.parts = lambda: [json.dumps({"data": [trace_of()]}).encode()]
    export(jaeger, tmp_path / "traces.json")
    assert json.loads((tmp_path / "traces.json").read_text()) == [trace_of()]


# --- the picture


def tags(**said: str) -> list[dict[str, str]]:
    return [{"key": f"agentguard.{name}", "value": value} for name, value in said.items()]


def test_long_texts_are_cut_before_they_are_measured():
    """Measured for each character that is cut, they would take hours or minutes."""
    long = trace_of(
        operationName="\u4e2d\u0301" * 100_000,
        tags=tags(**{"delegation.chain": "agent:x>" * 20_000, "principal.id": "x" * 100_000}),
    )
    picture = waterfall.draw(long)
    shown = [line for line in picture.split("\n") if line.startswith("<text")]
    assert max(len(line.rpartition("</title>")[2]) for line in shown) < 200
    assert picture.count("…</text>") == 3


@pytest.mark.parametrize(
    "members",
    [
        {"startTime": 10**20},
        {"startTime": -(10**17)},
        {"startTime": float("inf")},
        {"startTime": float("nan")},
        {"duration": 10**400},
        {"duration": 1e300},
        {"logs": [{"timestamp": float("inf"), "fields": []}]},
    ],
    ids=lambda members: str(members)[:30],
)
def test_times_that_are_none_are_an_error_of_the_trace(members):
    with pytest.raises(waterfall.DrawingError, match="not as Jaeger's query API has it"):
        waterfall.draw(trace_of(**members))


@pytest.mark.parametrize(
    "members",
    [
        {"startTime": 0},
        {"startTime": 253_402_300_799_000_000},
        {"duration": -1},
        {"logs": [{"timestamp": 10**400, "fields": []}]},
    ],
    ids=lambda members: str(members)[:30],
)
def test_times_at_the_ends_are_drawn(members):
    assert "execute_tool push" in waterfall.draw(trace_of(**members))


@pytest.mark.parametrize("other", [{"traceID": "ff"}, {"traceID": "ff", "spans": 1}, {}, 1])
def test_a_trace_without_spans_beside_another_is_said_in_one_line(tmp_path, other):
    file = tmp_path / "traces.json"
    file.write_text(json.dumps({"data": [trace_of(), other]}))
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "waterfall.py", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "scripts/waterfall: expected traces as Jaeger's query API returns them\n"
    )
