"""A model draws agentguard's own words on a screen: where those stand, no cell holds its text.

Hostile text in every field, at any width, through the real commands into a real terminal in memory.
A few examples by default, ``AGENTGUARD_ROUNDS=full`` for many.
"""

from __future__ import annotations

import os
import re
import sys
import termios
import threading
import unicodedata
from dataclasses import replace
from functools import partial
from typing import Any

import pyte
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agentguard import ApprovalPending, ApprovalRequest, Decision, Guard, Requirement
from agentguard.cli.commands import app
from agentguard.signing import canonical
from agentguard.signing.keys import Ed25519Signer

FULL = os.environ.get("AGENTGUARD_ROUNDS") == "full"
EXAMPLES = settings(
    max_examples=60 if FULL else 10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PASSPHRASE = b"a passphrase of bob's"
SIGNER = Ed25519Signer.from_seed(bytes(32))
QUESTION = "Approve exactly this call? [y/N]: "
FORGED = [
    "Somebody is asked to approve exactly this call:",
    "tool        | harmless",
    "arguments, 2 characters",
    "what is signed",
    QUESTION,
    '{"amount": 1}',
    "  | ",
    "approved by user:bob",
    "error [storage.corrupt]: ",
    "\\",
    "\\[left out]",
]
SEPARATORS = [
    *"\n\r\t\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029",
    *(" " * n for n in (1, 2, 19, 40, 80, 200)),
]
STEERING = [
    *"\x1b\x9b\x00\x08\x7f\u202e\u2066\u200b\u200d\ufe0f\u0301\u0336\u2800\u3164\u00a0\u2423",
    "\x1b[2J",
]
LANGUAGES = ["日本", "👨‍👩‍👧", "مرحبا", "p\u0430ypal"]
text = st.lists(
    st.one_of(
        st.sampled_from([*FORGED, *SEPARATORS, *STEERING, *LANGUAGES]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.text("x", min_size=30, max_size=300),
    ),
    max_size=8,
).map("".join)
values = st.recursive(
    st.one_of(text, st.integers(-9, 9), st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
arguments = st.dictionaries(text, values, min_size=1, max_size=3)
widths = st.one_of(st.sampled_from([20, 40, 80]), st.integers(20, 200))


@pytest.fixture(scope="module")
def asked() -> ApprovalRequest:
    def policy(_call: object) -> Decision:
        return Decision.require_approval(Requirement("a person decides", roles=("owner",)))

    tables = {
        "approvers": {"olga": {"roles": ["owner"]}},
        "approvals": {"application": True, "application_roles": ["owner"]},
    }
    with Guard.ephemeral(policy, config=tables) as guard:
        agent = guard.new_agent("assistant")

        @guard.tool(resource="order:{order}")
        def refund(order: str) -> None:
            "Pay money back."

        with pytest.raises(ApprovalPending) as pending:
            agent.call(refund, "A-1")
        return pending.value.request


requests = st.fixed_dictionaries(
    {
        "agent_name": text,
        "agent": text,
        "trust_domain": text,
        "principal": text,
        "actors": st.lists(text, min_size=1, max_size=2).map(tuple),
        "requesters": st.lists(text, min_size=1, max_size=2).map(tuple),
        "tool": text,
        "description": text,
        "resource": text,
        "task_id": text,
        "unbound": st.lists(text, min_size=1, max_size=2).map(tuple),
        "requirements": st.builds(
            Requirement,
            reason=text,
            approvers=st.tuples(text),
            roles=st.tuples(text),
        ).map(lambda one: (one,)),
        "arguments": arguments,
    }
)


def rows(output: str, width: int) -> list[str]:
    """Return what a terminal shows, row by row."""
    screen = pyte.Screen(width, len(output) * 2 // width + output.count("\n") + 2)
    screen.set_mode(pyte.modes.LNM)
    pyte.Stream(screen).feed(output)
    return [row.rstrip() for row in screen.display]


def shown(folder: Any, asked: ApprovalRequest, width: int, *command: str) -> list[str]:
    file = folder / "request.json"
    file.write_bytes(asked.dumps() + b"\n")
    key = folder / "key"  # which answers before the question is asked
    key.write_bytes(SIGNER.to_openssh(PASSPHRASE, rounds=1))
    end = ("--as", "user:bob", "--key", str(key)) if command[0] == "approve" else ()
    ran = CliRunner().invoke(
        app,
        ["approvals", *command, "--request", str(file), *end],
        input="n\n",
        env={"COLUMNS": str(width), "AGENTGUARD_APPROVER_PASSPHRASE": PASSPHRASE.decode()},
    )
    assert (ran.exception is None) or isinstance(ran.exception, SystemExit), ran.exception
    assert "request.json" not in ran.output, ran.output
    return rows(ran.output, width)


BARRED = re.compile(r"(?P<head>[a-z ]{0,12}?) *\| ")


def own(drawn: list[str]) -> str:
    """Return agentguard's own words on a screen: all without a bar, or left of one.

    Spaces are left out, since a longer number may have the words after it on another row.
    """
    heads = (found["head"] if (found := BARRED.match(f"{row} ")) else row for row in drawn)
    said = "".join(heads).replace(" ", "")
    return re.sub(r"[0-9,]+", "N", said).replace("characters", "character")


def benign(asked: ApprovalRequest) -> ApprovalRequest:
    return replace(asked, actors=("a",), task_id="t", unbound=("r",), arguments=b'{"a":1}')


NOTHING: dict[str, Any] = {
    **dict.fromkeys(("agent_name", "agent", "trust_domain", "principal", "tool"), ""),
    **dict.fromkeys(("description", "resource", "task_id"), ""),
    **dict.fromkeys(("actors", "requesters", "unbound"), ("",)),
    "requirements": (Requirement(reason="", approvers=("",), roles=("",)),),
}


@EXAMPLES
@given(changed=requests, width=widths)
@example(changed={**NOTHING, "arguments": {"x" * 48: None}}, width=23)
def test_a_request_says_nothing_where_agentguard_speaks(tmp_path, asked, changed, width):
    hostile = replace(asked, **{**changed, "arguments": canonical.dumps(changed["arguments"])})
    drawn = shown(tmp_path, hostile, width, "approve")
    assert own(drawn) == own(shown(tmp_path, benign(asked), width, "approve"))
    if width >= 80:
        assert sum(row.startswith("Approve exactly this call? [y/N]:") for row in drawn) == 1
    assert "\x1b" not in "".join(drawn)


def changes(value: str) -> st.SearchStrategy[str]:
    """Texts that are close to another one, as a person sees it."""
    places = st.integers(0, len(value))
    inserted = st.tuples(places, st.sampled_from([*SEPARATORS, *STEERING, "\\", "|"]))
    return st.one_of(
        inserted.map(lambda at: value[: at[0]] + at[1] + value[at[0] :]),
        st.sampled_from([unicodedata.normalize(form, value) for form in ("NFC", "NFD", "NFKC")]),
        places.map(lambda at: value[:at] + value[at + 1 :]),
        text,
    )


pairs = text.flatmap(lambda one: st.tuples(st.just(one), changes(one)))


@EXAMPLES
@given(pair=pairs, width=widths)
@example(pair=("1\u20282", "1\x852"), width=80)  # both were a row's end, and nothing else
@example(pair=("\xc0", "A\u0300"), width=80)
@example(pair=("\u202e", r"\u202e"), width=80)
@example(pair=("x" * 8 + " ", "x" * 8), width=20)
def test_two_values_never_look_alike(tmp_path, asked, pair, width):
    one, other = pair
    assert (_looks(tmp_path, asked, one, width) == _looks(tmp_path, asked, other, width)) is (
        one == other
    )


@pytest.mark.parametrize("after", ["y" * 20, "日" * 9])
def test_spaces_at_the_end_of_a_row_are_seen(tmp_path, asked, after):
    """A row of this width has room for eleven cells of the value, and for its quotation mark."""
    for begin in (0, 8, 9, 10):
        texts = (f"{'x' * begin}{spaces}{after}" for spaces in ("", " ", "     "))
        assert len({tuple(_looks(tmp_path, asked, text, 20)) for text in texts}) == 3


def _looks(folder: Any, asked: ApprovalRequest, value: str, width: int) -> list[str]:
    """Return the rows of an argument with a value."""
    drawn = shown(folder, replace(asked, arguments=canonical.dumps({"v": value})), width, "show")
    begin = next(at for at, row in enumerate(drawn) if row.startswith("arguments"))
    return drawn[begin + 1 : drawn.index("what is signed")]


def test_what_is_left_out_is_said_outside_of_the_bar(tmp_path, asked):
    """The command that shows the rest is agentguard's; its counts and those of a text agree."""
    long = replace(asked, arguments=canonical.dumps({"note": "a\n" * 3000, "to": "bob"}))
    drawn = shown(tmp_path, long, 60, "approve")
    at = drawn.index("NOT ALL OF THE ARGUMENTS ARE SHOWN. This shows them all:")
    assert drawn[at + 1] == "agentguard approvals show --request FILE"
    assert "arguments, 9,024 characters" in drawn  # 21 around the text and its comma
    assert any(row.startswith(r'  |   "note": \[9,003 characters, of which') for row in drawn)
    whole = shown(tmp_path, long, 60, "show")
    assert "NOT ALL" not in "".join(whole)
    assert (
        sum(row.count(r"\n") for row in whole[whole.index("arguments, 9,024 characters") :]) == 3001
    )


def test_a_row_of_counting_rods_stays_behind_its_bar(tmp_path, asked):
    hostile = canonical.dumps({"what": "\U0001d360" * 22 + "xapproved by user:bob"})
    drawn = shown(tmp_path, replace(asked, arguments=hostile), 60, "show")
    assert [row for row in drawn if "user:bob" in row and not row.startswith("  |")] == []
    assert any("user:bob" in row for row in drawn)


def test_on_a_terminal_its_own_width_counts(tmp_path, asked, monkeypatch):
    """Rows are cut at what the terminal says, though ``COLUMNS`` was exported by a wider one."""
    hostile = replace(asked, tool="refund" + " " * 30 + "x" * 90, description="y\u2028z " * 30)
    file = tmp_path / "request.json"
    file.write_bytes(hostile.dumps() + b"\n")
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (50, 40))
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.extend(iter(partial(_read, ours), b"")))
    reader.start()
    monkeypatch.setenv("COLUMNS", "200")
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        app(["approvals", "show", "--request", str(file)], standalone_mode=False)
    reader.join(timeout=60)
    os.close(ours)
    output = b"".join(seen).decode()
    assert "\x1b[" in output  # it has colours, and they say nothing of their own
    quiet = shown(tmp_path, hostile, 40, "show")
    assert [row for row in rows(output, 40) if row] == [row for row in quiet if row]


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # nobody has the other end open any more
        return b""
