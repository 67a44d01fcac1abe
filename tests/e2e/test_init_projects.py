"""``agentguard init --langgraph | --crewai | --fastapi``: each project runs at once, offline.

Each is made in a folder of its own and run as a newcomer would run it, in a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agentguard.cli.setup import starter

ROOT = Path(__file__).parents[2]
NEEDS = {
    "langgraph": ["langchain", "langgraph", "agentguard_langchain"],
    "crewai": ["crewai", "agentguard_crewai"],
    "fastapi": ["fastapi", "uvicorn", "langgraph", "agentguard_langchain"],
}
AGENT = """\
look_up_order: order A-17: a kettle, 4200 cents
refund: refunded 4200 cents of order A-17
refund: Denied: refund was not run. Reason: a refund is of 1 to 5000 cents [policy.denied]. \
Do not retry: repeating the same call will not help.
close_account: Denied: close_account was not run. Reason: agent assistant, acting for user:alice, \
lacks the scope accounts:close [scope.exceeded]. \
Do not retry: repeating the same call will not help.
assistant: Order A-17 is refunded. The rest was refused.
"""
PRINTS = {
    "langgraph": AGENT,
    "crewai": "the crew: The customer is told.\nwhat each agent did: agentguard trace --last\n",
    "fastapi": f"alice asks:\n{AGENT}mallory asks:\n"
    "403: principal.unknown: nothing can be done for user:mallory\n",
}
CALLS = {
    "langgraph": ["look_up_order", "refund", "refund", "close_account"],
    "crewai": ["look_up_order", "refund", "refund", "send_mail", "send_mail"],
    "fastapi": ["look_up_order", "refund", "refund", "close_account"],
}
KINDS = [
    "langgraph",
    pytest.param("crewai", marks=pytest.mark.slow("it imports CrewAI")),
    pytest.param("fastapi", marks=pytest.mark.slow("it starts a web server")),
]
EACH = pytest.mark.parametrize("kind", KINDS)


def made(project, kind):
    """Make the project of a kind; skip where its packages are not installed."""
    for module in NEEDS[kind]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed here")
    created = project.run("init", f"--{kind}")
    assert (created.returncode, created.stderr) == (0, "")
    return created.stdout


@EACH
def test_a_project_runs_at_once_and_its_policy_tests_and_doctor_are_content(project, kind):
    shown = made(project, kind)
    command = starter.PROJECTS[kind].runs[0]
    assert f"\n  {command}\n" in shown
    assert "pip install" not in shown  # nothing is missing here
    environment = {"CREWAI_STORAGE_DIR": str(project.home / "crewai")}
    ran = project.interpreter(command.split()[1], env=project.environment | environment)
    assert (ran.returncode, ran.stdout) == (0, PRINTS[kind]), ran.stderr
    calls = project.lines("audit", "list", "--kind", "call")
    assert [call["tool"] for call in calls] == CALLS[kind]
    assert {call["principal"] for call in calls} == {"user:alice"}
    assert project.run("policy", "test").returncode == 0
    checks = project.json("doctor")["checks"]
    assert [check["check"] for check in checks if check["status"] != "ok"] == []
    assert project.json("audit", "verify")["ok"] is True
    assert [one["tool"] for one in project.json("trace", "--last")["calls"]] == CALLS[kind]


@EACH
def test_before_its_first_run_a_project_is_sound_as_well(project, kind):
    made(project, kind)
    tested = project.run("policy", "test")
    assert (tested.returncode, tested.stderr) == (0, "")
    assert tested.stdout.splitlines()[-1].startswith("passed: ")
    assert project.run("policy", "check").stderr == ""
    checks = project.json("doctor")["checks"]
    assert [check["check"] for check in checks if check["status"] != "ok"] == []


@pytest.mark.slow("mypy reads the frameworks")
@pytest.mark.parametrize("kind", ["langgraph", "crewai", "fastapi"])
def test_the_code_of_a_project_passes_ruff_and_mypy(project, kind):
    made(project, kind)
    modules = sorted(project.folder.glob("*.py"))
    for command, folder in (
        (["ruff", "check", "--isolated"], project.folder),
        (["ruff", "format", "--isolated", "--check"], project.folder),
        (["mypy"], ROOT),  # strict there; the cache of the lint has the frameworks
    ):
        checked = subprocess.run(
            [sys.executable, "-m", *command, *modules],
            cwd=folder,
            env={**os.environ, "MYPYPATH": str(project.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_test_of_the_policy_fails_once_the_policy_says_otherwise(project):
    made(project, "langgraph")
    policy = project.folder / "policies" / "authz.rego"
    policy.write_text(policy.read_text().replace("5000", "500000"))
    tested = project.run("policy", "test")
    assert tested.returncode == 1
    assert "a large one may not" in tested.stdout


@pytest.mark.parametrize("kind", ["langgraph", "crewai", "fastapi"])
def test_nothing_is_overwritten_and_a_second_init_makes_nothing(project, kind):
    files = list(map(str, starter.PROJECTS[kind].templates))
    for name in files:
        path = project.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        refused = project.run("init", f"--{kind}")
        assert refused.returncode == 2
        assert f"{name} exists already, and nothing is overwritten" in refused.stderr
        assert path.read_text() == "mine"
        assert not project.state.exists()
        path.unlink()
    assert project.run("init", f"--{kind}").returncode == 0
    before = {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()}
    again = project.run("init", f"--{kind}")
    assert again.returncode == 2
    assert "exists already, and a project brings its own" in again.stderr
    assert "exists already" in project.run("init").stderr
    after = {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()}
    assert after == before


def test_the_page_shows_what_a_project_prints():
    page = Path(__file__).parents[2] / "docs" / "reference" / "cli" / "setup.md"
    assert f"$ python agent.py\n{AGENT}$ agentguard policy test\n" in page.read_text("utf-8")


def test_one_project_at_a_time(project):
    refused = project.run("init", "--crewai", "--fastapi")
    assert refused.returncode == 2
    assert "make two projects: name one of them" in " ".join(refused.stderr.split())
    assert not list(project.folder.iterdir())


@pytest.mark.slow("it runs each project without what the project needs, in processes")
def test_what_is_missing_is_named_with_the_command_that_installs_it(project):
    script = """
import importlib.util, sys
find = importlib.util.find_spec
missing = {"crewai", "agentguard_langchain", "fastapi"}
importlib.util.find_spec = lambda name, *more: None if name in missing else find(name, *more)
from agentguard.cli.commands import main
sys.argv = ["agentguard", "init", sys.argv[1], sys.argv[2]]
main()
"""
    wanted = {
        "crewai": ["pip install . ./integrations/agentguard-crewai    # in a clone of the project"],
        "langgraph": [
            "pip install . ./integrations/agentguard-langchain    # in a clone of the project"
        ],
    }
    wanted["fastapi"] = [
        *wanted["langgraph"],
        "pip install 'fastapi>=0.120,<1' 'uvicorn>=0.38,<1'",
    ]
    for kind, commands in wanted.items():
        shown = project.interpreter("-c", script, f"--{kind}", kind)
        assert shown.returncode == 0, shown.stderr
        said = [line.strip() for line in shown.stdout.splitlines() if "pip install" in line]
        assert said == commands
        assert (project.folder / kind / "agentguard.toml").is_file()


def test_the_plain_init_is_as_before_and_names_no_project(project):
    shown = project.run("init")
    assert "policies/authz.rego" in shown.stdout
    assert not list(project.folder.glob("*.py"))
    written = tomllib.loads((project.folder / "agentguard.toml").read_text())
    assert list(written["agents"]) == ["assistant"]


@pytest.mark.parametrize("kind", ["langgraph", "crewai"])
def test_a_killed_init_is_completed_by_the_same_command(project, kind):
    assert project.run("init", f"--{kind}").returncode == 0
    whole = {path.name for path in project.folder.rglob("*") if path.is_file()}
    for name in ("agentguard.toml", "tools.py"):  # which come after the state
        (project.folder / name).unlink()
    again = project.run("init", f"--{kind}")
    assert again.returncode == 0, again.stderr
    assert {path.name for path in project.folder.rglob("*") if path.is_file()} == {
        *whole,
        "state.lock",
    }


SLASHES = """\
from fastapi.testclient import TestClient
from web import app

with TestClient(app) as client:
    for thread in ("a/main", "", "main\\n", "main"):
        question = {"text": "Refund order A-17.", "thread": thread}
        print(client.post("/ask", json=question, headers={"X-User": "alice"}).status_code)
"""


@pytest.mark.slow("it imports a web application")
def test_no_thread_of_a_user_has_the_id_of_another_users(project):
    """A principal's name may have a slash: user:alice/a has threads of her own."""
    made(project, "fastapi")
    pytest.importorskip("httpx")
    ran = project.interpreter("-c", SLASHES)
    assert ran.stdout.split() == ["422", "422", "422", "200"], ran.stderr


def test_no_file_is_made_through_a_link_that_leads_out_of_the_folder(project):
    outside = project.folder.parent / "outside"
    outside.mkdir()
    (project.folder / "policies").symlink_to(outside)
    refused = project.run("init", "--langgraph")
    assert refused.returncode != 0
    assert "storage.exists" in refused.stderr
    assert [*outside.iterdir()] == []
    assert [path.name for path in project.folder.iterdir()] == ["policies"]
    (project.folder / "policies").unlink()
    assert project.run("init", "--langgraph").returncode == 0
