"""Secrets and redaction at a gateway: what neither the client nor the log gets to see."""

from __future__ import annotations

import json
import logging
from contextlib import closing

import pytest
from gateway_scene import gateway, settings, shown

from agentguard.testing import RecordedGuard
from agentguard_mcp.gateway.messages import read
from agentguard_mcp.gateway.upstream.concealed import MARK, concealed

SECRET = 's3cr3t/"t0ken"\n-é'
"""A value with characters that writers of JSON write in different ways."""


def line_of(message, *, plain=False):
    return json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=not plain)


def made(tmp_path, value=SECRET, **tables):
    """Return a guard with the secret GITLAB, and settings that give the server the secret."""
    file = tmp_path / "token"
    file.write_text(value)
    file.chmod(0o600)
    secrets = {"GITLAB": {"file": str(file), "tools": ["mcp:start"]}}
    return RecordedGuard.make(secrets=secrets, **tables), {"TOKEN": "GITLAB"}


def kept(recorded, *roles):
    """Return the data that the log keeps beside its entries, in these roles."""
    with closing(recorded.guard.reader()) as reader:
        beside = [one for entry in reader.stored() for one in entry.attachments]
    return b"".join(one.data for one in beside if one.role in roles)


async def test_what_a_server_says_does_not_show_a_secret_that_it_got(tmp_path):
    recorded, secrets = made(tmp_path)
    text = f"my token is {SECRET}, again {SECRET}"
    notice = {"method": "notifications/message", "params": {"data": text}}
    request = {"id": SECRET, "method": "sampling/createMessage", "params": {"prompt": text}}
    result = {"content": [{"type": "text", "text": text}], "structuredContent": {SECRET: [text]}}
    options = {
        "before": {
            "tools/call": [line_of(notice), line_of(request), line_of({"id": 1, "result": result})],
            "completion/complete": [
                line_of({"id": 2, "error": {"code": -1, "message": text, "data": {"x": SECRET}}})
            ],
        }
    }
    async with gateway(recorded, settings(secrets=secrets, options=options)) as client:
        answers = [await client.ask("tools/call", {"name": "echo"})]
        answers.append(await client.ask("completion/complete"))
        seen = json.dumps([*answers, *client.notices], ensure_ascii=False)
    hidden = f"my token is {MARK}, again {MARK}"
    assert answers[0]["result"] == {
        "content": [{"type": "text", "text": hidden}],
        "structuredContent": {MARK: [hidden]},
    }
    assert answers[1]["error"] == {"code": -1, "message": hidden, "data": {"x": MARK}}
    assert [one["params"] for one in client.notices] == [{"data": hidden}, {"prompt": hidden}]
    for data in (seen.encode(), kept(recorded, "result")):
        assert b"s3cr3t" not in data
        assert b"t0ken" not in data
    assert hidden.encode() in kept(recorded, "result")
    recorded.require_sound()
    recorded.guard.close()


async def test_a_result_without_a_secret_passes_as_it_is(tmp_path):
    recorded, secrets = made(tmp_path)
    async with gateway(recorded, settings(secrets=secrets)) as client:
        text = 's3cr3t\n"é" \\u0073 and half of it: s3cr3t/"t0k'
        assert shown(await client.call("echo", text))["text"] == text
    other = RecordedGuard.make()
    async with gateway(other) as client:  # another server's secret is a text like any other
        assert shown(await client.call("echo", SECRET))["text"] == SECRET
    for guard in (recorded.guard, other.guard):
        guard.close()


async def test_an_argument_and_a_result_are_redacted_in_the_log_and_nowhere_else():
    redact = {"echo": ["/args/text", "/result/content"]}
    for tables, is_kept in (({"redact": redact}, False), ({}, True)):
        recorded = RecordedGuard.make(**tables)
        async with gateway(recorded) as client:
            assert shown(await client.call("echo", "of a patient"))["text"] == "of a patient"
        assert recorded.policy_inputs[0]["args"] == {"text": "of a patient"}
        for role in ("arguments", "result"):
            assert (b"of a patient" in kept(recorded, role)) is is_kept
        recorded.require_sound()
        recorded.guard.close()


class Said:
    """A server that has said some lines."""

    def __init__(self, *lines):
        self.lines = [line.encode() for line in lines]

    async def next(self):
        return self.lines.pop(0) if self.lines else b""


@pytest.mark.parametrize(
    ("secret", "said", "heard"),
    [
        ("abcdef", "abcdefabcdef", MARK * 2),
        ("abcdef", "ABCDEF abcde", "ABCDEF abcde"),
        ("abcdef\n", "abcdef", MARK),
        ("12345678", 12345678, MARK),
        ("12345678", 123456789, 123456789),
        ("n0000ff", "\n0000ff", "\n0000ff"),  # not in the middle of an escape
        ("a/b/c/d", "a/b/c/d", MARK),
        ("éééééé", "x éééééé", f"x {MARK}"),
    ],
    ids=["twice", "case", "stripped", "number", "longer-number", "escape", "slash", "letters"],
)
async def test_a_value_is_found_in_each_spelling_of_json(secret, said, heard):
    message = {"id": 1, "result": {"x": said}}
    lines = [line_of(message), line_of(message, plain=True)]
    lines += [lines[0].replace("/", "\\/"), lines[0].replace("c", "\\u0063")]
    server = concealed(Said(*lines), {"TOKEN": secret})
    for _line in lines:
        assert read(await server.next())["result"] == {"x": heard}
    assert await server.next() == b""


async def test_the_longer_of_two_secrets_is_hidden_whole():
    line = line_of({"id": 1, "result": {"x": "abcdefghi abcdef"}})
    server = concealed(Said(line), {"A": "abcdef", "B": "abcdefghi"})
    assert read(await server.next())["result"] == {"x": f"{MARK} {MARK}"}


async def test_the_id_of_a_response_and_a_line_without_a_secret_stay_as_they_are():
    lines = [line_of({"id": "abcdef", "result": {"x": "abcdef"}}), '{"x": "\\u0061"}', "no JSON \\"]
    server = concealed(Said(*lines), {"TOKEN": "abcdef"})
    assert read(await server.next()) == {"id": "abcdef", "result": {"x": MARK}}
    assert [await server.next(), await server.next()] == [line.encode() for line in lines[1:]]


def test_a_secret_that_is_too_short_is_not_looked_for_and_the_log_says_so(caplog):
    server = Said()
    with caplog.at_level(logging.WARNING, logger="agentguard.mcp"):
        assert concealed(server, {"PIN": "12345"}) is server
    assert "PIN" in caplog.text
    assert "12345" not in caplog.text
    assert concealed(server, {"PIN": "123456"}) is not server
