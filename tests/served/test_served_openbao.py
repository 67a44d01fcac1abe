"""A secret in a real OpenBao behind a guard server: only the server has the token of OpenBao.

A machine that has no OpenBao skips this, and CI, where CI=true, fails it.
"""

from __future__ import annotations

import pytest
from openbao import token_file

from agentguard import SecretError, secret

VALUE = "hunter2-4711-\u20ac"


def test_a_guard_server_looks_a_secret_up_in_openbao(founded, openbao):
    path = f"{openbao.mount()}/data/deploy"
    openbao.put(path, token=VALUE)
    token = openbao.token_for(path)
    settings = founded.folder / "agentguard.toml"
    vault = (
        f'[secrets.TOKEN.vault]\nurl = "{openbao.url}"\npath = "{path}"\nfield = "token"\n'
        f'token_file = "{token_file(founded.folder, token)}"\n'
    )
    text = settings.read_text()
    assert 'file = "token"\n' in text
    settings.write_text(text.replace('file = "token"\n', "") + vault)
    founded.start()
    guard = founded.connect()
    agent = guard.new_agent("clerk")
    tool = guard.tool(name="note")(lambda: secret("TOKEN"))
    other = guard.tool(name="add")(lambda: secret("TOKEN"))

    assert agent.call(tool) == VALUE
    openbao.put(path, token="another")
    assert agent.call(tool) == "another"
    with pytest.raises(SecretError) as caught:
        agent.call(other)
    assert caught.value.code == "secret.refused"
    openbao.revoke(token)
    with pytest.raises(SecretError, match=r"403.*renew the token") as caught:
        agent.call(tool)
    assert caught.value.code == "secret.failed"
    token_file(founded.folder, openbao.token_for(path))
    assert agent.call(tool) == "another"

    guard.close()
    releases = [one for one in founded.entries() if one.kind == "secret"]
    assert [one.members["name"] for one in releases] == ["TOKEN"] * 3
    said = founded.said().encode()
    files = [one for one in (founded.folder / "state").rglob("*") if one.is_file()]
    held = [said, *(one.read_bytes() for one in files)]
    assert any(b"TOKEN" in data for data in held)
    assert not any(form in data for data in held for form in (VALUE.encode(), token.encode()))
    assert founded.verify().ok
