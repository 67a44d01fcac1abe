"""The files of ``packaging/``: systemd reads the units; sandbox and container are tight.

A machine without ``systemd-analyze`` checks the settings alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import commands
import pytest

PACKAGING = Path(__file__).parents[2] / "packaging"
SYSTEMD = PACKAGING / "systemd"
PROGRAM = "/opt/agentguard/bin/agentguard"


def settings(name: str, section: str) -> dict[str, str]:
    unit = RawConfigParser(strict=False, comment_prefixes="#")
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read(SYSTEMD / name)
    return dict(unit[section])


@pytest.fixture
def units(tmp_path):
    """The units, with a program that every machine has."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    for path in SYSTEMD.glob("agentguard.*"):
        text = path.read_text("utf-8").replace(PROGRAM, shutil.which("true") or "")
        (tmp_path / path.name).write_text(text, "utf-8")
    return tmp_path


def test_systemd_reads_the_units(units):
    names = sorted(units.iterdir())
    ran = subprocess.run(
        ["systemd-analyze", "verify", *names], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert [path.name for path in names] == ["agentguard.service", "agentguard.socket"]


def test_the_sandbox_is_tight_for_systemd(units):
    command = ["systemd-analyze", "security", "--offline=true", "--threshold"]
    unit = units / "agentguard.service"
    ran = subprocess.run([*command, "10", unit], capture_output=True, text=True, check=False)
    if "unrecognized option" in ran.stderr:
        pytest.skip("systemd-analyze is too old")
    assert ran.returncode == 0, ran.stdout
    unit.write_text(unit.read_text("utf-8").replace("NoNewPrivileges=yes", ""), "utf-8")
    unit.write_text(unit.read_text("utf-8").replace("CapabilityBoundingSet=", ""), "utf-8")
    ran = subprocess.run([*command, "10", unit], capture_output=True, text=True, check=False)
    assert ran.returncode != 0  # the twin: what is taken away is noticed


def test_the_service_runs_a_command_that_there_is(tmp_path):
    service = settings("agentguard.service", "Service")
    for key in ("ExecStart", "ExecReload"):
        program, *words = service[key].split()
        assert program == PROGRAM
        assert words[-1] == service["ExecStart"].split()[-1]
        result = commands.run([*words[:-1], tmp_path / "agentguard.toml"], cwd=tmp_path, env={})
        assert "agentguard.toml" in result.stderr  # which is missing here
        assert "No such option" not in result.stderr


def test_the_service_has_its_own_user_and_only_the_socket():
    service = settings("agentguard.service", "Service")
    assert service["User"] == "guard"
    assert service["Type"] == "notify"
    assert service["RestrictAddressFamilies"] == "AF_UNIX"
    assert "PrivateUsers" not in service  # the kernel must name the clients
    socket = settings("agentguard.socket", "Socket")
    assert (socket["DirectoryMode"], socket["SocketMode"]) == ("0755", "0666")
    assert "SocketUser" not in socket  # the folder is root's: nobody else puts a socket there


def test_the_container_installs_files_with_known_hashes_and_nothing_else():
    text = (PACKAGING / "container" / "Containerfile").read_text("utf-8")
    commands = re.findall(r"^RUN \S*pip install (.*)$", text, re.MULTILINE)
    assert commands == [
        "--no-cache-dir --require-hashes -r constraints-server.txt",
        "--no-cache-dir --no-deps --no-build-isolation .",
    ]
    copied = " ".join(re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE)).split()
    assert "constraints-server.txt" in copied
    assert all((PACKAGING.parent / name).exists() for name in copied)


def test_the_container_is_not_root_and_keeps_its_state_in_a_volume():
    text = (PACKAGING / "container" / "Containerfile").read_text("utf-8")
    stage = text.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", stage, re.MULTILINE) == ["64001:64001"]
    assert not re.findall(r"^RUN ", stage.partition("USER")[2], re.MULTILINE)
    assert "/var/lib/agentguard" in re.findall(r"^VOLUME (.*)$", stage, re.MULTILINE)[0]
