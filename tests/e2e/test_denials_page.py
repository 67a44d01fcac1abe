"""how-to/denials.md as a reader follows it: its programs, what they print, and its commands."""

from __future__ import annotations

import re

import docs_pages
import pytest

from agentguard import Decision, adapters

PAGE = docs_pages.text("how-to/denials")
ID = re.compile(r"[0-9a-f]{32}")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def ids_as(text, invocation):
    return ID.sub(invocation, text)


@pytest.fixture
def project(project):
    assert project.run("init").returncode == 0
    with (project.folder / "agentguard.toml").open("a") as file:
        file.write("[tools.send_mail]\n")
    return project


def test_the_program_prints_what_the_page_says_and_the_command_too(project):
    program, _json = blocks("python")
    printed, *_others = blocks("text")
    ran = project.python("-W", "error", "-c", program)
    assert ran.stderr == ""
    (invocation, *_same) = ID.findall(ran.stdout)
    assert ran.stdout == ids_as(printed, invocation)
    (console,) = blocks("console")
    command, _, answer = ids_as(console, invocation).partition("\n")
    shown, asked = (words.split()[1:] for words in command.removeprefix("$ ").split(" | "))
    given = project.run(*shown)
    told = project.run(*asked, input=given.stdout)
    assert (given.returncode, told.returncode) == (0, 1)
    assert told.stdout == answer


def test_the_lines_are_json_with_the_formatter_of_the_page(project):
    program, formatter = blocks("python")
    printed = blocks("text")[-1]
    changed = re.sub(
        r"^logging.basicConfig.*\n", lambda _line: formatter, program, flags=re.MULTILINE
    )
    assert changed != program
    ran = project.python("-W", "error", "-c", changed)
    (invocation,) = ID.findall(ran.stdout)
    assert ran.stdout == ids_as(printed, invocation)
    assert "no rule of the policy (policies/authz.rego)" in ran.stderr


def test_the_lines_are_switched_off_as_the_page_says(project):
    (switch,) = re.findall(r"^`(logging\.getLogger\(.*?\)\.setLevel\(.*?\))`", PAGE, re.MULTILINE)
    program, _json = blocks("python")
    changed = program.replace("\nwith Guard", f"\n{switch}\n\nwith Guard")
    ran = project.python("-W", "error", "-c", changed)
    assert "denied code=" not in ran.stdout
    assert "no rule of the policy (policies/authz.rego)" in ran.stdout


def test_a_model_is_told_what_the_page_says():
    decision = Decision.refusal("make the call inside a block", code="delegation.missing")
    assert adapters.denial_text("send_mail", decision) + "\n" == blocks("text")[1]
