"""``agentguard audit verify --against`` with traces: a trace store as a witness of the log.

The traces have the form in which Jaeger's query API returns them; ``test_traces_in_jaeger.py`` has
real ones. Each state that was tampered with has its twin, which verifies against the same file.
"""

from __future__ import annotations

import json
import shutil
from contextlib import closing

import pytest

from agentguard.audit import head as heads
from agentguard.audit import merkle
from agentguard.audit.checkpoint import Checkpoint
from agentguard.store.reader import StoredLog

READ = r"""
import sys
from agentguard import Guard

with Guard.open("agentguard.toml") as guard:
    @guard.tool(requires=["files:read"], resource="file:{path}")
    def read_file(path: str) -> str:
        return path

    assistant = guard.new_agent("assistant")
    for path in sys.argv[1:]:
        assistant.call(read_file, path=path)
"""
ATTRIBUTE = "agentguard.audit.checkpoint"
TRACE = "0af7651916cd43dd8448eb211c80319c"


def read_files(project, *paths):
    called = project.python("-c", READ, *paths)
    assert called.returncode == 0, called.stderr


def checkpoints(project):
    """A checkpoint of every size that the log has had."""
    with closing(StoredLog.of(project.state)) as reader:
        log, tree, points = heads.parse(reader.head()).log, merkle.CompactRange(), []
        for _index, body in reader.entries():
            tree.append(merkle.leaf_hash(body))
            points.append(Checkpoint(log, tree.size, tree.root()))
    return points


def span_of(tags, number=1):
    listed = [{"key": key, "type": "string", "value": value} for key, value in tags.items()]
    return {
        "traceID": TRACE,
        "spanID": f"{number:016x}",
        "operationName": "execute_tool read_file",
        "references": [],
        "startTime": 1_700_000_000_000_000,
        "duration": 3,
        "tags": [{"key": "gen_ai.tool.name", "type": "string", "value": "read_file"}, *listed],
        "logs": [],
        "processID": "p1",
        "warnings": None,
    }


def answer(*spans):
    """What ``/api/traces`` answers: one trace."""
    process = {"serviceName": "agents", "tags": []}
    trace = {"traceID": TRACE, "spans": [*spans], "processes": {"p1": process}, "warnings": None}
    return {"data": [trace], "total": 0, "limit": 0, "offset": 0, "errors": None}


def reporting(points):
    return answer(
        *(span_of({ATTRIBUTE: point.line()}, number) for number, point in enumerate(points, 1))
    )


@pytest.fixture
def against(tmp_path):
    """``against(project, ANSWER)`` is the report of verifying against it, without an anchor."""

    def run(project, written, *args):
        file = tmp_path / "traces.json"
        file.write_text(written if isinstance(written, str) else json.dumps(written))
        result = project.run("audit", "verify", "--anchor", "", "--against", file, "--json", *args)
        if result.returncode == 2:
            assert result.stdout == ""
            return result.stderr
        report = json.loads(result.stdout)
        assert result.returncode == (0 if report["ok"] else 1)
        return report

    return run


def places(report):
    return [problem["index"] for problem in report["problems"]]


def rolled_back(project, folder):
    """Take state and anchors back to when the copy was made, as a restored backup does."""
    for now, then in ((project.state, folder / "state"), (project.anchor, folder / "anchor")):
        shutil.rmtree(now)
        shutil.copytree(then, now)


@pytest.fixture
def backed_up(changed, tmp_path):
    """A project, and a folder with a copy of its state and of its anchors."""
    shutil.copytree(changed.state, tmp_path / "backup" / "state")
    shutil.copytree(changed.anchor, tmp_path / "backup" / "anchor")
    return changed, tmp_path / "backup"


def test_checkpoints_on_spans_anchor_the_log_as_reported_by_the_trace_store(against, changed):
    points = checkpoints(changed)
    report = against(changed, reporting(points))
    assert (report["ok"], report["witness"], report["problems"]) == (True, "outside", [])
    (said,) = report["unchecked"]
    assert f"{len(points)} checkpoints in " in said
    assert "only the trace store vouches for them" in said
    older = against(changed, reporting(points[:1]))
    assert (older["ok"], older["witness"]) == (True, "outside")
    indented = against(changed, json.dumps(reporting(points), indent=2))
    assert indented == report


def test_people_are_told_that_the_trace_store_has_no_signatures(changed, tmp_path):
    file = tmp_path / "traces.json"
    file.write_text(json.dumps(reporting(checkpoints(changed))))
    shown = changed.run("audit", "verify", "--anchor", "", "--against", file)
    assert shown.returncode == 0
    assert "NOT CHECKED: who wrote the" in shown.stdout
    assert "UNANCHORED" not in shown.stdout


def test_a_state_that_was_rolled_back_as_a_whole_is_found(against, backed_up):
    """Its own anchor went back with it, so nothing else can tell."""
    project, backup = backed_up
    before = checkpoints(project)[-1]
    read_files(project, "new.txt")
    traces = reporting(checkpoints(project))
    assert against(project, traces)["ok"] is True
    rolled_back(project, backup)
    assert project.run("audit", "verify").returncode == 0
    report = against(project, traces)
    assert (report["ok"], report["anchored"]) == (False, False)
    assert places(report) == [before.size]
    (problem,) = report["problems"]
    assert "its tail is cut off" in problem["what"]
    assert "the trace store's unsigned checkpoint (span 00" in problem["what"]


def test_a_forked_log_is_found_where_it_forks(against, backed_up):
    """Rolled back and written on: by whoever has the keys, so every signature holds."""
    project, backup = backed_up
    before = checkpoints(project)[-1]
    read_files(project, "seen.txt", "seen.txt")
    traces = reporting(checkpoints(project))
    assert against(project, traces)["ok"] is True
    rolled_back(project, backup)
    read_files(project, "told.txt", "told.txt", "told.txt")
    assert project.run("audit", "verify").returncode == 0
    report = against(project, traces)
    assert report["ok"] is False
    assert places(report) == [before.size]
    assert f"of trace {TRACE}" in report["problems"][0]["what"]


def test_a_root_that_was_edited_in_the_trace_store_is_found(against, changed):
    """A disagreement says that one of the two was changed, and names the span."""
    points = checkpoints(changed)
    edited = Checkpoint(points[-1].origin, points[-1].size, b"\1" * 32)
    report = against(changed, reporting([*points[:-1], edited]))
    assert report["ok"] is False
    assert places(report) == [points[-2].size]
    assert f"span {len(points):016x}" in report["problems"][0]["what"]
    assert against(changed, reporting(points))["ok"] is True


def test_traces_of_other_logs_as_well_are_said_and_left_out(against, changed):
    points = checkpoints(changed)
    other = Checkpoint("elsewhere.example/log/9/0", 7, b"\2" * 32)
    report = against(changed, reporting([*points, other]))
    assert (report["ok"], report["witness"]) == (True, "outside")
    assert len(report["unchecked"]) == 2
    assert "1 span has checkpoints of elsewhere.example/log/9/0" in report["unchecked"][1]
    refused = against(changed, reporting([other]))
    assert refused.startswith("error [checkpoint.origin]: ")
    assert "elsewhere.example/log/9/0, and none of project.internal/" in refused


def test_a_file_that_was_cut_off_is_an_error(against, changed):
    whole = json.dumps(reporting(checkpoints(changed)))
    assert against(changed, whole)["ok"] is True
    for cut in (whole[: len(whole) // 2], whole[:-1]):
        assert "not JSON" in against(changed, cut)


def lines(point):
    good = point.line()
    origin, size, root = good.split()
    yield from (good + " ", good + "\n", f"{origin} {size}", f"{origin} 0{size} {root}")
    yield from (f"{origin} -1 {root}", f"{origin} {10**19} {root}", f"{origin} {size} {root[:-1]}")
    yield from (f"{origin} {size} {point.root.hex()}", f"{origin}\t{size} {root}", "", "\u202e")
    yield f"{origin} 0 {root}"


@pytest.mark.parametrize("number", range(12))
def test_a_malformed_checkpoint_is_an_error_that_names_its_span(against, changed, number):
    points = checkpoints(changed)
    bad = span_of({ATTRIBUTE: [*lines(points[-1])][number]}, 0xBAD)
    refused = against(changed, answer(span_of({ATTRIBUTE: points[0].line()}), bad))
    assert "span 0000000000000bad of trace" in refused
    assert refused.count("\n") == 1
    assert refused.isascii()


def test_what_is_no_answer_of_jaeger_is_an_error(against, changed):
    good = reporting(checkpoints(changed))
    assert against(changed, good)["ok"] is True
    partial = good | {"errors": [{"code": 500, "msg": "a part of the storage is down"}]}
    assert "a part of the storage is down" in against(changed, partial)
    nothing = answer(span_of({}))
    assert f"no span has {ATTRIBUTE}" in against(changed, nothing)
    (trace,) = good["data"]
    for wrong in (
        good | {"data": None},
        good | {"data": []},
        good | {"data": [[]]},
        good | {"data": [trace | {"spans": None}]},
        good | {"data": [trace | {"spans": [{"spanID": "1"}]}]},
        answer(span_of({}) | {"traceID": "\x1b[2J"}),
        answer(span_of({ATTRIBUTE: 7})),
        answer(span_of({}) | {"tags": ["tag"]}),
    ):
        assert against(changed, wrong).startswith("error [")
