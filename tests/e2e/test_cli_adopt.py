"""``agentguard adopt``, as an operator meets it: a copied project, a backup put back."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest

OPEN = "from agentguard import Guard\nwith Guard.open('agentguard.toml'): pass"
NOTE = ("adopt", "--note", "the disk of the host is lost")


@pytest.fixture
def copied(changed):
    """``cp -r project copy``: the anchor below the home directory is shared."""
    assert changed.python("-c", OPEN).returncode == 0  # its anchor was copied with it, for the test
    shutil.copytree(changed.folder, changed.folder.parent / "copy")
    return replace(changed, folder=changed.folder.parent / "copy")


def test_the_message_for_a_copy_leads_to_a_command_that_works(changed, copied):
    refused = copied.python("-c", OPEN)
    assert "StorageError" in refused.stderr
    assert f"its log goes on in {changed.state.resolve()}" in refused.stderr
    assert "agentguard adopt" in refused.stderr
    (failed,) = (c for c in copied.json("doctor", code=1)["checks"] if c["status"] == "fail")
    assert (failed["check"], str(changed.state) in failed["what"]) == ("anchor", True)
    assert "A COPY: the log goes on in" in copied.run("audit", "verify").stdout
    assert changed.python("-c", OPEN).returncode == 0  # the original goes on, before the copy
    adopted = copied.run(*NOTE, "--yes")
    assert (adopted.returncode, adopted.stderr) == (0, "")
    assert "adopted: the log continues in" in adopted.stdout
    assert copied.python("-c", OPEN).returncode == 0
    assert f"its log goes on in {copied.state}" in changed.python("-c", OPEN).stderr
    assert "error [storage.copied]" in changed.run("approvals", "list").stderr
    failed = {c["check"] for c in changed.json("doctor", code=1)["checks"] if c["status"] == "fail"}
    assert {"anchor", "requests"} <= failed
    assert "was rolled back" not in changed.run("doctor").stdout


def test_a_state_behind_its_anchor_is_adopted_and_verify_tells_of_it(changed):
    shutil.copytree(changed.state, changed.folder / "backup")
    assert changed.python("-c", OPEN).returncode == 0
    shutil.rmtree(changed.state)
    (changed.folder / "backup").rename(changed.state)
    assert "agentguard adopt" in changed.python("-c", OPEN).stderr
    unasked = changed.run(*NOTE)
    assert (unasked.returncode, "--yes" in unasked.stderr) == (2, True)
    assert changed.run(*NOTE, input="n\n").returncode == 1
    refused = changed.run(*NOTE, "--json", input="n\n")
    assert (refused.returncode, refused.stdout.strip()) == (1, "")
    assert "the log goes on from" in refused.stderr  # before it asks
    assert "A lost call of a journal runs again" in refused.stderr
    assert "agentguard adopt" in changed.python("-c", OPEN).stderr  # nothing has changed
    done = changed.run(*NOTE, "--yes", "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["original"], said["unanchored"]) == (0, None, None)
    assert said["lost"].keys() == {"entries", "anchored"}
    assert changed.python("-c", OPEN).returncode == 0
    report = changed.json("audit", "verify")
    assert report["ok"]
    (told,) = report["adopted"]
    assert (told["index"], told["note"], told["lost"]) == (said["index"], NOTE[2], said["lost"])
    assert "ENTRIES WERE LOST, by entry" in changed.run("audit", "verify").stdout
    (listed,) = changed.lines("audit", "list", "--kind", "adoption")
    assert "the log goes on in this state (from " in listed["reason"]
    assert "is already the state of its log" in changed.run(*NOTE).stdout
    nothing = json.loads(changed.run(*NOTE, "--json").stdout)
    assert nothing == {
        "adopted": None,
        "original": None,
        "lost": None,
        "unanchored": None,
        "index": None,
    }


def configured(changed, key, value):
    path = changed.folder / "agentguard.toml"
    kept = re.sub(rf"(?m)^{key} = .*$", "", path.read_text("utf-8"))
    path.write_text(f'{key} = "{value}"\n{kept}', "utf-8")


def moved(changed, *, linked):
    """The state on another disk, where the operator has left a link at the old path or not."""
    elsewhere = changed.folder.parent / "disk"
    shutil.copytree(changed.state, elsewhere)  # another folder: no mv keeps its inode
    shutil.rmtree(changed.state)
    if linked:
        changed.state.symlink_to(elsewhere)
    configured(changed, "state", str(elsewhere))
    return changed


def test_a_state_whose_old_path_leads_to_it_was_moved(changed):
    assert changed.python("-c", OPEN).returncode == 0
    place = moved(changed, linked=True)
    assert "is already the state of its log" in place.run(*NOTE).stdout
    assert place.python("-c", OPEN).returncode == 0
    place.state.unlink()  # the link: the new place is on record
    assert place.python("-c", OPEN).returncode == 0


def test_a_state_of_which_nothing_is_at_the_old_path_is_adopted(changed):
    assert changed.python("-c", OPEN).returncode == 0
    place = moved(changed, linked=False)
    assert "There is no state now" in place.python("-c", OPEN).stderr
    assert place.run(*NOTE).returncode == 0
    assert place.python("-c", OPEN).returncode == 0


@pytest.mark.parametrize("anchor", ["of none", "emptied"])
def test_without_an_anchor_nobody_knows_what_is_lost_and_the_log_says_so(changed, anchor):
    shutil.copytree(changed.state, changed.folder / "backup")
    assert changed.python("-c", OPEN).returncode == 0
    shutil.rmtree(changed.state)
    (changed.folder / "backup").rename(changed.state)
    if anchor == "emptied":
        for path in changed.anchor.rglob("head"):
            path.unlink()
    else:
        configured(changed, "anchor", "")
    known = len(changed.lines("audit", "list"))
    unasked = changed.run(*NOTE)
    assert (unasked.returncode, "--yes" in unasked.stderr) == (2, True)
    assert changed.run(*NOTE, input="n\n").returncode == 1
    done = changed.run(*NOTE, "--yes", "--json")
    said = json.loads(done.stdout)
    assert (said["unanchored"]["entries"], said["lost"]) == (known, None)
    newest = said["unanchored"]["newest"]
    assert (
        f"no anchor vouches for its {known} entries, which end at {newest}: nobody knows"
        in done.stderr
    )
    assert "every call is frozen" in done.stderr
    assert changed.python("-c", OPEN).returncode == 0
    (told,) = changed.json("audit", "verify")["adopted"]
    assert (told["index"], told["unanchored"]) == (said["index"], said["unanchored"])
    assert "ENTRIES MAY BE LOST, by entry" in changed.run("audit", "verify").stdout
    (listed,) = changed.lines("audit", "list", "--kind", "adoption")
    assert "nobody knows whether later ones are lost" in listed["reason"]
    again = changed.run(*NOTE, "--yes")
    assert ("is already the state of its log" in again.stdout) is (anchor == "emptied")  # the twin
