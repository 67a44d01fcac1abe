"""The files that commands write for a person: private, whole or not at all, never overwritten."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from agentguard.cli.terminal import files
from agentguard.errors import StorageError


@pytest.fixture(params=["export", "prove", "trust"])
def command(request, told):
    """The words of a command that takes ``-o FILE`` and ``--force``."""
    if request.param == "trust":
        return ["trust", "export"]
    if request.param == "export":
        return ["audit", "export"]
    listed = told.run("audit", "list", "--json", "--tool", "read_file", "-n", "1")
    call = listed.stdout.partition('"invocation_id": "')[2][:32]
    return ["evidence", "make", call]


def test_it_is_private_and_not_overwritten(told, tmp_path, command):
    file = tmp_path / "out"
    before = os.umask(0)
    try:
        written = told.run(*command, "-o", file)
    finally:
        os.umask(before)
    assert (written.returncode, written.stderr) == (0, "")
    assert written.stdout.startswith(f"{file} ")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    data = file.read_bytes()
    assert data
    file.write_bytes(b"mine")
    refused = told.run(*command, "-o", file)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"error [storage.exists]: {file} exists already: name another file, or overwrite it with "
        "--force\n"
    )
    assert file.read_bytes() == b"mine"
    assert told.run(*command, "-o", file, "--force").returncode == 0
    assert file.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_file_is_never_replaced(told, tmp_path, command):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "pipe", "link"):
        for force in ([], ["--force"]):
            refused = told.run(*command, "-o", tmp_path / name, *force)
            assert (refused.returncode, refused.stdout) == (2, "")
            assert "and is not a file: name another path" in refused.stderr
            assert "--force" not in refused.stderr
            assert refused.stderr.startswith("error [storage.exists]: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]
    assert (tmp_path / "link").is_symlink()


def test_a_folder_that_is_not_there(told, tmp_path, command):
    result = told.run(*command, "-o", tmp_path / "none" / "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error [storage.readonly]: ")


def test_a_dash_is_stdout(told, tmp_path, command):
    file = tmp_path / "out"
    assert told.run(*command, "-o", file).returncode == 0
    streamed = told.run(*command, "-o", "-")
    assert (streamed.returncode, streamed.stderr) == (0, "")
    assert streamed.stdout.encode() == file.read_bytes()
    assert not (told.folder / "-").exists()


WRITE = """
import os, sys
from pathlib import Path
from agentguard.cli.terminal import files

path = Path(sys.argv[1])
with files.new(path, force=len(sys.argv) > 2) as file:
    file.write(b"half")
    file.flush()
    {then}
"""


@pytest.mark.parametrize("then", ["os.kill(os.getpid(), 9)", "raise KeyboardInterrupt"])
@pytest.mark.parametrize("force", [[], ["force"]])
def test_who_is_interrupted_leaves_no_half_of_it(tmp_path, then, force):
    file = tmp_path / "out"
    if force:
        file.write_bytes(b"before")
    ended = subprocess.run(
        [sys.executable, "-c", WRITE.format(then=then), str(file), *force],
        capture_output=True,
        check=False,
    )
    assert ended.returncode != 0
    assert (file.read_bytes() if file.exists() else None) == (b"before" if force else None)


def write(file, meanwhile):
    with files.new(file, force=False) as written:
        written.write(b"ours")
        meanwhile()


def test_what_comes_meanwhile_is_not_overwritten(tmp_path):
    file = tmp_path / "out"
    with pytest.raises(StorageError, match="exists already"):
        write(file, lambda: file.write_bytes(b"theirs"))
    assert file.read_bytes() == b"theirs"
    file.unlink()
    write(file, lambda: None)
    assert file.read_bytes() == b"ours"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
