"""Small files that must be there after a power cut: what is synced before what is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from agentguard import StorageError
from agentguard.storage import files


@pytest.fixture
def steps(monkeypatch):
    """What reaches the disk or is named, in its order: syncs of files and folders, and renames."""
    done = []
    fsync, rename, unlink = os.fsync, os.replace, os.unlink

    def synced(opened):
        fsync(opened)
        path = Path(f"/proc/self/fd/{opened}").readlink()
        done.append(("sync", path.name))

    def renamed(source, target):
        rename(source, target)
        done.append(("name", Path(target).name))

    def unlinked(path, **options):
        unlink(path, **options)
        done.append(("forget", Path(path).name))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "unlink", unlinked)
    return done


def test_a_new_file_is_durable_with_its_name(tmp_path, steps):
    files.write_new(tmp_path / "there", b"x")
    assert steps == [("sync", "there"), ("sync", tmp_path.name)]
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o600
    with pytest.raises(StorageError, match="not overwritten") as caught:
        files.write_new(tmp_path / "there", b"y")
    assert caught.value.code == "storage.exists"
    assert (tmp_path / "there").read_bytes() == b"x"


def test_the_folders_that_are_made_for_it_are_too(tmp_path, steps):
    files.write_new(tmp_path / "a" / "b" / "there", b"x")
    assert steps == [("sync", tmp_path.name), ("sync", "a"), ("sync", "there"), ("sync", "b")]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_file_is_replaced_after_it_is_durable_and_before_what_follows(tmp_path, steps):
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "there.new").write_bytes(b"of somebody who died")
    (tmp_path / "there.new").chmod(0o644)
    files.replace(tmp_path / "there", b"new")
    assert steps == [
        ("forget", "there.new"),
        ("sync", "there.new"),
        ("name", "there"),
        ("sync", tmp_path.name),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_bytes() == b"new"
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o600


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "there").symlink_to(tmp_path / "victim")
    (tmp_path / "there.new").symlink_to(tmp_path / "victim")
    files.replace(tmp_path / "there", b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (tmp_path / "there").is_symlink()


def test_moves_and_removals_are_durable(tmp_path, steps):
    (tmp_path / "next").write_bytes(b"x")
    files.move(tmp_path / "next", tmp_path / "there")
    files.remove(tmp_path / "there")
    assert steps == [
        ("name", "there"),
        ("sync", tmp_path.name),
        ("forget", "there"),
        ("sync", tmp_path.name),
    ]
    assert list(tmp_path.iterdir()) == []
    files.remove(tmp_path / "there")  # there is none, and that is fine


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_syncs_no_folders_is_used_and_one_that_fails_is_not(
    tmp_path, monkeypatch, number
):
    fsync = os.fsync

    def refuses(opened):
        if Path(f"/proc/self/fd/{opened}").is_dir():
            raise OSError(number, os.strerror(number))
        fsync(opened)

    monkeypatch.setattr(os, "fsync", refuses)
    if number == errno.EIO:
        with pytest.raises(StorageError):
            files.write_new(tmp_path / "there", b"x")
    else:
        files.write_new(tmp_path / "there", b"x")


def test_what_can_not_be_written_says_so(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"folder can't be replaced"):
        files.replace(tmp_path / "folder", b"x")
    with pytest.raises(StorageError, match=r"none can't be replaced|there can't be replaced"):
        files.move(tmp_path / "none", tmp_path / "there")


@pytest.mark.parametrize(
    ("number", "code", "advice"),
    [
        (errno.ENOSPC, "storage.full", "make room"),
        (errno.EACCES, "storage.readonly", "give this user the right"),
    ],
)
@pytest.mark.parametrize("write", [files.write_new, files.replace])
def test_a_full_disk_is_no_matter_of_rights(tmp_path, monkeypatch, write, number, code, advice):
    def refuses(_opened):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuses)
    with pytest.raises(StorageError, match=advice) as refused:
        write(tmp_path / "folder" / "there", b"x")
    assert refused.value.code == code
    assert not (tmp_path / "folder" / "there").exists() or write is files.write_new


@pytest.mark.parametrize("write", [files.write_new, files.replace])
def test_a_system_that_writes_a_part_at_a_time_writes_all_of_it(tmp_path, monkeypatch, write):
    whole, parts = os.write, []

    def partly(opened, data):
        parts.append(bytes(data[:4]))
        return whole(opened, data[:4])

    monkeypatch.setattr(os, "write", partly)
    path = tmp_path / "folder" / "file"
    write(path, b"0123456789")
    monkeypatch.undo()
    assert path.read_bytes() == b"0123456789"
    assert parts == [b"0123", b"4567", b"89"]


# --- whether something is there -----------------------------------------------------------------


def test_what_is_there_is_there_and_what_is_missing_is_not(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    assert files.exists(tmp_path)
    assert files.exists(file)
    missing = [tmp_path / "none", tmp_path / "none" / "none", file / "below", tmp_path / "loop"]
    for path in missing:
        assert not files.exists(path)


def test_what_the_system_can_not_tell_is_an_error_and_not_missing(tmp_path):
    with pytest.raises(OSError, match="File name too long"):
        files.exists(tmp_path / ("long" * 100))


def test_a_state_is_not_asked_with_a_function_that_takes_an_error_for_a_missing_file():
    """Since Python 3.14, ``Path.exists`` returns False where the system fails."""
    source = Path(files.__file__).parents[1]
    careless = [
        str(path.relative_to(source))
        for folder in ("storage", "domain", "guard", "server", "service", "approvals")
        for path in sorted((source / folder).rglob("*.py"))
        if ".exists()" in path.read_text("utf-8")
    ]
    assert careless == []
