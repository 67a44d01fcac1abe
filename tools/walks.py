"""Draw which rooms of the package a call, an approval, a delegation and a verification enter.

``scripts/walks`` runs this file. Each walk is made once, on a trust domain in a temporary folder.
Python's profiler reports each function of agentguard that the walk enters. The picture has a row
for each room, in the layers of ``pyproject.toml``, and a column for each walk: a number says how
many files of the room the walk enters. The table in layers.md names the rooms.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final
from unittest.mock import patch

from agentguard import ApprovalPending, Guard
from agentguard.signing.keys import Ed25519Signer
from agentguard.storage import flusher

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "src" / "agentguard"
PICTURE: Final = ROOT / "docs" / "walks.svg"
PAGE: Final = ROOT / "docs" / "explanation" / "layers.md"
BEGIN: Final = "<!-- scripts/walks writes this table -->\n"
END: Final = "<!-- the end of the table -->\n"

TITLES: Final = {
    "call": "a call",
    "approval": "a call that a person approves",
    "delegation": "a delegation, to the access token",
    "verification": "a verification of the log",
}
"""Each walk, in the order of the picture's columns."""

CONFIG: Final = """
trust_domain = "acme.example"
anchor = "anchor"
[policy]
path = "authz.rego"
[agents.clerk]
max_scope = ["payment:send"]
[tools.pay]
requires = ["payment:send"]
[approvers.bob]
principal = "user:bob"
keys = ["{key}"]
"""
POLICY: Final = """
package agent.authz
default allow = false
is_small if { is_number(input.args.cents); input.args.cents < 100 }
allow if is_small
approval := {"reason": "a large payment", "approvers": ["bob"]} if not is_small
"""


# --- the walks ----------------------------------------------------------------------------------


@dataclass
class Walk:
    """The files that a walk enters, and which room calls which.

    A file is named as in ``flow/prepare``, relative to the package and without its suffix.
    """

    files: set[str] = field(default_factory=set)
    calls: set[tuple[str, str]] = field(default_factory=set)

    @property
    def rooms(self) -> list[str]:
        """The rooms that the walk enters, in the order of the layers from the top."""
        entered = {room_of(file) for file in self.files}
        return [room for layer in layers() for room in layer if room in entered]

    def files_in(self, room: str) -> int:
        """How many files of a room the walk enters."""
        return sum(room_of(file) == room for file in self.files)


def room_of(file: str) -> str:
    """Return the room of a file: its folder, or for a file of the root its own name."""
    return file.partition("/")[0]


@contextmanager
def followed(walk: Walk) -> Iterator[None]:
    """Note each function of agentguard that is entered by this thread inside the block."""

    def enter(frame: FrameType, event: str, _argument: object) -> None:
        file = named(frame)
        if event != "call" or file is None or is_import(frame):
            return
        walk.files.add(file)
        caller = frame.f_back
        while caller is not None and named(caller) is None:
            caller = caller.f_back
        before = named(caller) if caller is not None else None
        if before is not None and room_of(before) != room_of(file):
            walk.calls.add((room_of(before), room_of(file)))

    sys.setprofile(enter)
    try:
        yield
    finally:
        sys.setprofile(None)


def is_import(frame: FrameType | None) -> bool:
    """Return whether the code runs because a module is imported, which is no step of a walk."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and named(frame) is not None:
            return True
        frame = frame.f_back
    return False


def named(frame: FrameType) -> str | None:
    """Return the file of a frame as a walk names it; None where it is no file of agentguard."""
    path = frame.f_code.co_filename
    if not path.startswith(f"{PACKAGE}/"):
        return None
    return path.removeprefix(f"{PACKAGE}/").removesuffix(".py")


@contextmanager
def domain() -> Iterator[tuple[Path, Ed25519Signer]]:
    """Found a trust domain in a temporary folder; yield its configuration and an approver's key."""
    with tempfile.TemporaryDirectory() as folder:
        bob = Ed25519Signer.from_seed(secrets.token_bytes(32))
        Path(folder, "authz.rego").write_text(POLICY)
        Path(folder, "agentguard.toml").write_text(CONFIG.format(key=bob.public_key.openssh()))
        os.environ["AGENTGUARD_PASSPHRASE"] = secrets.token_hex(16)
        command = [sys.executable, "-m", "agentguard.cli", "init", folder]
        subprocess.run(command, check=True, capture_output=True)
        yield Path(folder, "agentguard.toml"), bob


def walks() -> dict[str, Walk]:
    """Make the four walks and return them by name."""
    done = {name: Walk() for name in TITLES}
    # on a busy machine a call would wait for the flusher, and so enter one file more
    no_flusher = patch.object(flusher, "start")
    with no_flusher, domain() as (config, bob), Guard.open(config) as guard:

        @guard.tool
        def pay(cents: int) -> str:
            return f"paid {cents}"

        clerk = guard.new_agent("clerk")
        with followed(done["delegation"]):
            delegation = guard.delegate("user:alice", scope=["payment:send"])
            clerk.under(delegation).access_token()
        agent = clerk.under(delegation)
        agent.call(pay, cents=1)  # what the first call alone does is no part of the walk
        with followed(done["call"]):
            for _ in range(5):  # on a busy machine a call may come too late for a joint signature
                agent.call(pay, cents=1)
        with followed(done["approval"]):
            try:
                agent.call(pay, cents=100)
            except ApprovalPending as pending:
                guard.approvals.approve(pending.request, bob)
            agent.call(pay, cents=100)
        guard.close()  # so that nothing is written while the log is read
        with Guard.open(config) as reopened, followed(done["verification"]):
            reopened.verify()
    return done


# --- the page and the picture -------------------------------------------------------------------


def table(done: Mapping[str, Walk]) -> str:
    """Return the rows of the page's table."""
    head = "| walk | rooms, from the upper layers to the lower | files | pairs of rooms |\n"
    rows = [
        f"| {TITLES[name]} | {' '.join(f'`{room}`' for room in walk.rooms)} "
        f"| {len(walk.files)} | {len(walk.calls)} |\n"
        for name, walk in done.items()
    ]
    return "".join([head, "|---|---|---|---|\n", *rows])


def layers() -> list[list[str]]:
    """Return the rooms of each layer, from the top, as ``pyproject.toml`` has them."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = document["tool"]["importlinter"]["contracts"]
    (rows,) = [contract["layers"] for contract in contracts if contract["id"] == "layers"]
    return [[room.strip() for room in row.split(":")] for row in rows]


ROW, COLUMN, LEFT, TOP, RADIUS = 30, 150, 190, 58, 11  # pixels
COLOURS: Final = ("#0969da", "#bf3989", "#1a7f37", "#9a6700")


def picture(done: Mapping[str, Walk]) -> str:
    """Return the picture as SVG: a row for each room, a line for each walk."""
    rooms = [(room, number) for number, layer in enumerate(layers()) for room in layer]
    heights = {room: TOP + place * ROW for place, (room, _layer) in enumerate(rooms)}
    width, height = LEFT + COLUMN * len(done), TOP + ROW * len(rooms)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"',
        f' height="{height}" font-family="sans-serif" font-size="13" fill="#1f2328">',
        "<title>The rooms that four walks enter, and how many files of each room</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for room, layer in rooms:
        top, shade = heights[room] - ROW / 2, "#f6f8fa" if layer % 2 else "#ffffff"
        parts.append(f'<rect y="{top}" width="{width}" height="{ROW}" fill="{shade}"/>')
        parts.append(f'<text x="16" y="{heights[room] + 4}">{room}</text>')
    for column, (name, walk) in enumerate(done.items()):
        parts += line(walk, name, LEFT + COLUMN * column + COLUMN / 2, COLOURS[column], heights)
    return "\n".join([*parts, "</svg>\n"])


def line(
    walk: Walk, name: str, across: float, colour: str, heights: Mapping[str, int]
) -> Iterator[str]:
    """Yield the line of one walk, with a circle in the row of each room that the walk enters."""
    entered = {room: heights[room] for room in walk.rooms}
    top, bottom = min(entered.values()), max(entered.values())
    centred = f'x="{across}" text-anchor="middle"'
    yield f'<text {centred} y="24" font-weight="600" style="fill: {colour}">{name}</text>'
    yield f'<g stroke="{colour}" stroke-width="2" fill="#ffffff">'
    yield f'<path d="M{across} {top}V{bottom}"/>'
    yield from (f'<circle cx="{across}" cy="{y}" r="{RADIUS}"/>' for y in entered.values())
    yield "</g>"
    for room, middle in entered.items():
        yield f'<text {centred} y="{middle + 4}" font-size="11">{walk.files_in(room)}</text>'


def page(done: Mapping[str, Walk]) -> str:
    """Return docs/explanation/layers.md with the table of today's code."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(done)}\n{END}{after}"


def main() -> int:
    """Write the table and the picture; with ``--check`` return 1 where they are not current."""
    done = walks()
    wanted = {PAGE: page(done), PICTURE: picture(done)}
    if "--check" not in sys.argv[1:]:
        for path, text in wanted.items():
            path.write_text(text)
        return 0
    stale = [
        path for path, text in wanted.items() if not path.is_file() or path.read_text() != text
    ]
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not current: run scripts/walks")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
