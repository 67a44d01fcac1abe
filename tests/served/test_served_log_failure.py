"""A server whose log can't be written says so to a probe, and says when the log is well again."""

from __future__ import annotations

import json
from typing import Any

import httpcore
import pytest
from full_disk import full_disk
from ports import free_port

from agentguard import Denied

FULL = "the log can't be written [storage."

SOON = "from agentguard.store import log_probe; log_probe._TELLS_FOR = 0.2\n"
"""Code for a server in which a write tells for a moment alone that the log can be written."""


@pytest.fixture
def port(founded):
    """The port of the server's health."""
    port = free_port()
    path = founded.folder / "agentguard.toml"
    text = path.read_text("utf-8").replace("[server]", f'[server]\nhealth = "127.0.0.1:{port}"')
    path.write_text(text, "utf-8")
    return port


@pytest.fixture
def calling(founded):
    """Start the server; return what makes a call, and returns the code of its denial, if any."""
    founded.start(SOON)
    guard = founded.connect()
    agent, note = guard.new_agent("clerk"), guard.tool(name="note")(lambda: "ok")
    agent.call(note)

    def call() -> str:
        try:
            agent.call(note)
        except Denied as denied:
            return denied.code
        return "none"

    return call


def get(port: int, path: str) -> tuple[int, str]:
    answer = httpcore.request("GET", f"http://127.0.0.1:{port}{path}")
    return answer.status, answer.content.decode()


def shown(founded, *options: str) -> Any:
    return founded.programs.run(
        "-m", "agentguard.cli", "server", "status", *options, cwd=founded.folder
    )


def test_a_log_that_fails_is_told_until_it_is_written_again(founded, port, calling):
    assert get(port, "/healthz") == (200, "ok\n")
    with full_disk(founded.server):
        assert calling().startswith("storage.")
        code, text = get(port, "/healthz")
        assert (code, text[: len(FULL)]) == (503, FULL)
        assert str(founded.folder) not in text
        assert get(port, "/livez") == (200, "ok\n")  # a start anew would mend nothing
        assert "agentguard_server_log_failed 1\n" in get(port, "/metrics")[1]
        founded.wait_for(lambda: "no call can run: " in founded.said())
    founded.wait_for(lambda: get(port, "/healthz") == (200, "ok\n"))  # nobody calls meanwhile
    assert "agentguard_server_log_failed 0\n" in get(port, "/metrics")[1]
    assert "the log can be written again" in founded.said()
    assert calling() == "none"


def test_a_call_that_runs_makes_the_probe_well_at_once(founded, port, calling):
    with full_disk(founded.server):
        calling()
        assert get(port, "/healthz")[0] == 503
    assert calling() == "none"
    assert get(port, "/healthz") == (200, "ok\n")


def test_a_full_disk_is_told_before_a_call_finds_out(founded, port, calling):
    with full_disk(founded.server):
        founded.wait_for(lambda: get(port, "/healthz")[0] == 503)
        assert calling().startswith("storage.")


def test_probes_add_nothing_to_the_log(founded, port, calling):
    assert calling() == "none"
    founded.wait_for(lambda: len(founded.outcomes()) == 2)
    before, wal = len(founded.entries()), founded.folder / "state" / "log.sqlite-wal"
    written = wal.stat().st_mtime_ns

    def probe_writes() -> bool:
        assert get(port, "/healthz") == (200, "ok\n")
        return wal.stat().st_mtime_ns > written

    founded.wait_for(probe_writes)
    assert len(founded.entries()) == before
    assert [path.name for path in wal.parent.iterdir() if path.name.startswith("tmp")] == []
    assert founded.verify().ok


def test_the_status_shows_the_failure_and_exits_with_1(founded, port, calling):
    well = shown(founded)
    assert (well.returncode, "can be written" in well.stdout) == (0, True)
    assert json.loads(shown(founded, "--json").stdout)["log_failure"] is None
    with full_disk(founded.server):
        assert calling().startswith("storage.")
        failing = shown(founded, "--json")
        failure = json.loads(failing.stdout)["log_failure"]
        assert (failing.returncode, failure["code"].partition(".")[0]) == (1, "storage")
        assert str(founded.folder) in failure["message"]  # for the server's own user alone
        assert "[storage." in shown(founded).stdout
        doctor = founded.programs.run(
            "-m", "agentguard.cli", "doctor", "--json", cwd=founded.folder
        )
        found = {one["check"]: one["what"] for one in json.loads(doctor.stdout)["checks"]}
        assert found["server"].startswith("it answers, and the log can't be written: ")
    founded.wait_for(lambda: shown(founded).returncode == 0)


def test_a_server_with_a_log_that_fails_still_ends(founded, port, calling):
    with full_disk(founded.server):
        calling()
        assert get(port, "/healthz")[0] == 503
        founded.stop()
