"""how-to/server.md as a reader follows it: the set-up on one host, all under one user."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
import tempfile

import docs_pages
import pytest

PAGE = docs_pages.text("how-to/server")
SOCKET = "/run/agentguard/guard.sock"


@pytest.mark.slow("a server in a process of its own")
def test_the_first_program_prints_what_the_page_says(project):
    tables, program = re.findall(r"<<'END'.*?\n(.*?)^END$", PAGE, re.DOTALL | re.MULTILINE)
    printed, *_others = docs_pages.blocks(PAGE, "text")
    assert project.run("init").returncode == 0
    user = pwd.getpwuid(os.getuid()).pw_name
    with tempfile.TemporaryDirectory() as short:  # a socket's path has to be short
        socket = f"{short}/guard.sock"
        with (project.folder / "agentguard.toml").open("a") as file:
            file.write(tables.replace(SOCKET, socket).replace('"reviewer"', f'"{user}"'))
        command = [sys.executable, "-m", "agentguard.cli", "serve"]
        with subprocess.Popen(
            command,
            cwd=project.folder,
            env=project.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as server:
            try:
                assert server.stdout is not None
                said = server.stdout.readline()
                assert said.startswith("serving "), said + server.stdout.read()
                ran = project.python("-c", program.replace(SOCKET, socket))
            finally:
                server.terminate()
    assert ran.stdout == printed, ran.stderr
