"""``agentguard audit list`` of a log with calls through a guard server, and with calls without."""

from __future__ import annotations

import json

from served_place import BALANCE

from agentguard import Guard


def listed(place, *options: str) -> str:
    printed = place.programs.run(
        "-m", "agentguard.cli", "audit", "list", *options, cwd=place.folder
    )
    assert printed.returncode == 0, printed.stderr
    return str(printed.stdout)


def call_note(guard: Guard) -> None:
    note = guard.tool(name="note")(lambda text: text)
    guard.new_agent("clerk").call(note, "x")


def test_the_list_says_how_well_the_agent_was_kept_apart_from_the_guard(founded):
    path = founded.folder / "agentguard.toml"
    served = path.read_text("utf-8")
    path.write_text(served.partition("[server]")[0] + BALANCE + "[tools.note]\n", "utf-8")
    with founded.connect() as guard:  # a guard in this process
        call_note(guard)
    path.write_text(served, "utf-8")
    founded.start()
    with founded.connect() as guard:
        call_note(guard)
    founded.stop()

    rows = [json.loads(line) for line in listed(founded, "--json").splitlines()]
    calls = [row for row in rows if row["kind"] == "call"]
    assert [(row["isolation"], row["client"]) for row in calls] == [
        ("same-process", None),
        ("same-user", ""),
    ]
    outcomes = [row for row in rows if row["kind"] == "outcome"]
    assert [row["isolation"] for row in outcomes] == ["same-process", "same-user"]
    assert {row["isolation"] for row in rows if row["kind"] in ("config", "identity")} == {None}

    head, *lines = listed(founded, "--isolation").splitlines()
    at = head.index("isolation")
    cells = [line[at:].split()[0] for line in lines if "  call  " in line]
    assert cells == ["same-process", "same-user"]
    assert max(map(len, (head, *lines))) <= 80
    assert "isolation" not in listed(founded).splitlines()[0]
