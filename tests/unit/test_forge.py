"""The forge's workflow and the hooks of pre-commit run commands that anybody can run."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW: Any = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
HOOKS: Any = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
JOBS = WORKFLOW["jobs"]
NAMED = re.compile(r"\$\{\{ matrix\.(\w+) \}\}")


def runs(job: Any) -> list[dict[str, str]]:
    """The combinations of a job's matrix."""
    matrix = dict(job.get("strategy", {}).get("matrix", {}))
    excluded = matrix.pop("exclude", [])
    combinations = [
        dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())
    ]
    return [one for one in combinations if one not in excluded]


def commands(job: Any) -> set[str]:
    """The commands that a job runs, with the values of each combination of the matrix."""
    scripts = [step["run"].strip() for step in job["steps"] if "run" in step]
    return {filled(script, combination) for script in scripts for combination in runs(job)}


def filled(script: str, combination: dict[str, str]) -> str:
    """The script, with the values of a combination in the place of the matrix's names."""
    return NAMED.sub(lambda name: combination[name[1]], script)


def test_the_jobs_run_each_part_of_the_check_and_nothing_else():
    script = (ROOT / ".ci" / "run").read_text()
    parts = set(re.findall(r"^    (\w+)\) ", script, re.MULTILINE)) - {"all"}
    assert {command for job in JOBS.values() for command in commands(job)} == {
        f".ci/run {part}" for part in parts
    }


def pythons(project: Path) -> set[str]:
    """The versions of Python that a distribution names."""
    document = tomllib.loads((project / "pyproject.toml").read_text())
    found = re.findall(r"Python :: (3\.\d+)", " ".join(document["project"]["classifiers"]))
    return set(found)


@pytest.mark.parametrize(
    ("part", "project"),
    [
        ("core", ROOT),
        ("langchain", ROOT / "integrations" / "agentguard-langchain"),
        ("crewai", ROOT / "integrations" / "agentguard-crewai"),
        ("mcp", ROOT / "integrations" / "agentguard-mcp"),
    ],
)
def test_the_tests_run_on_each_python_that_the_distribution_names(part, project):
    on = {one["python"] for one in runs(JOBS["tests"]) if one["part"] == part}
    assert on == pythons(project)


def test_no_job_can_write_and_each_action_is_pinned_to_a_commit():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    actions = [step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step]
    assert actions
    assert [action for action in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)] == []


def test_the_hooks_run_programs_of_this_clone_and_fetch_nothing():
    assert [repository["repo"] for repository in HOOKS["repos"]] == ["local"]
    hooks = HOOKS["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    for hook in hooks:
        assert os.access(ROOT / hook["entry"].split()[0], os.X_OK), hook["entry"]
