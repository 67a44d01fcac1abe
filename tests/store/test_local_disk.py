"""A log lies on a disk of this machine: locks on a shared file system keep nobody else out."""

from __future__ import annotations

import pytest
from store_place import add

from agentguard.errors import StorageError
from agentguard.storage import local_disk


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """Have the system say that a file system is mounted at a path."""
    lines = ["1 0 8:1 / / rw - ext4 /dev/sda1 rw"]

    def mount(point, kind):
        escaped = str(point).replace(" ", "\\040")
        lines.append(f"{len(lines) + 1} 1 0:9 / {escaped} rw,relatime shared:1 - {kind} source rw")
        table.write_text("\n".join(lines) + "\n")

    table = tmp_path / "mountinfo"
    mount(tmp_path, "ext4")
    monkeypatch.setattr(local_disk, "_MOUNTS", table)
    return mount


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse", "fuse.sshfs"])
def test_a_log_on_a_shared_file_system_takes_no_entry(on_disk, mounted, kind):
    mounted(on_disk.path.parent, kind)
    with pytest.raises(StorageError, match="agentguard serve") as refused:
        add(on_disk.open(), "first")
    assert refused.value.code == "storage.remote"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "fuseblk"])
def test_a_log_on_a_disk_of_this_machine_does(on_disk, mounted, kind):
    mounted(on_disk.path.parent, kind)
    assert add(on_disk.open(), "first") == 0


def test_the_file_system_is_the_one_of_the_nearest_mount(on_disk, mounted, tmp_path):
    mounted(tmp_path / "elsewhere", "nfs")
    mounted(f"{tmp_path}x", "nfs")
    mounted(tmp_path.parent, "nfs")
    assert add(on_disk.open(), "first") == 0
    mounted(tmp_path, "nfs")  # over the one that was there
    with pytest.raises(StorageError):
        add(on_disk.open(), "second")
    mounted(tmp_path, "ext4")
    assert add(on_disk.open(), "second") == 1


def test_a_mount_with_a_space_and_a_link_to_it_are_found(mounted, tmp_path):
    shared, link = tmp_path / "a share", tmp_path / "link"
    shared.mkdir()
    link.symlink_to(shared)
    mounted(shared, "cifs")
    for folder in (shared, link, link / "state"):
        with pytest.raises(StorageError, match="cifs"):
            local_disk.require(folder)
    local_disk.require(tmp_path)


def test_where_the_system_does_not_say_nothing_is_refused(on_disk, monkeypatch, tmp_path):
    monkeypatch.setattr(local_disk, "_MOUNTS", tmp_path / "none")
    assert add(on_disk.open(), "first") == 0
