"""``agentguard mcp install``: one entry of a client's file is changed, and changed back."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.cli.mcp import client_files
from agentguard.errors import ConfigError

CURSOR = """{
    "theme" : "dark\\u00e9",
    "mcpServers": { "other": {"url": "https://tickets.example/mcp"},
        "git": {
            "command": "uvx",
            "args": ["mcp-server-git", "--repository", "/srv/é"],
            "env": {"TOKEN": "t0p"}
        } },
    "last": [1.50, {"mcpServers": {"git": 1}}]
}
"""


@pytest.fixture
def domain(project):
    assert project.run("init").returncode == 0
    (project.home / ".cursor").mkdir()
    (project.home / ".cursor" / "mcp.json").write_text(CURSOR)
    return project


def install(project, *words, client="cursor", name="git"):
    return project.run("mcp", "install", client, "--name", name, *words)


def test_a_gateway_is_put_in_front_of_one_server_and_taken_away(domain):
    file = domain.home / ".cursor" / "mcp.json"
    file.chmod(0o640)
    result = install(domain, "--agent", "assistant", "--principal", "user:ada")
    assert result.returncode == 0, result.stderr
    assert "t0p" not in result.stdout + result.stderr
    pin = "agentguard mcp pin --name git --env TOKEN -- uvx mcp-server-git --repository"
    assert pin in " ".join(result.stderr.split())
    text = file.read_text()
    entry = json.loads(text)["mcpServers"]["git"]
    config = str(domain.folder / "agentguard.toml")
    assert entry == {
        "command": sys.executable,
        "args": [
            *("-E", "-P", "-m", "agentguard.cli", "mcp", "run", "--config", config),
            *("--name", "git"),
            *("--agent", "assistant", "--principal", "user:ada", "--env", "TOKEN", "--"),
            *("uvx", "mcp-server-git", "--repository", "/srv/é"),
        ],
        "env": {"TOKEN": "t0p"},
    }
    start, end = CURSOR.index('{\n            "command"'), CURSOR.index(' },\n    "last"')
    assert text.startswith(CURSOR[:start])
    assert text.endswith(CURSOR[end:])
    assert file.stat().st_mode & 0o777 == 0o640
    backup = file.with_name("mcp.json.before-agentguard")
    assert (backup.read_text(), backup.stat().st_mode & 0o777) == (CURSOR, 0o600)
    assert install(domain, "--agent", "assistant").returncode == 2
    assert install(domain, "--undo").returncode == 0
    assert json.loads(file.read_text()) == json.loads(CURSOR)
    assert install(domain, "--undo").returncode == 2


TWO = """{"mcpServers": {
    "git":  {"command": "uvx", "args": []},
    "time": {"command": "uvx", "args": ["mcp-server-time"]},
    "note": [1, 1.50, true, null]
} }
"""


def test_all_gateways_taken_away_in_any_order_leave_the_file_as_it_was(domain):
    file = domain.home / ".cursor" / "mcp.json"
    copy = file.with_name("mcp.json.before-agentguard")
    for order in (("git", "time"), ("time", "git")):
        file.write_text(TWO)
        for name in ("git", "time"):
            assert install(domain, "--agent", "assistant", name=name).returncode == 0
            assert copy.read_text() == TWO
        for name in order:
            assert install(domain, "--undo", name=name).returncode == 0
        assert (file.read_text(), copy.read_text()) == (TWO, TWO)


def test_what_somebody_changes_between_a_gateway_and_its_undo_stays(domain):
    file = domain.home / ".cursor" / "mcp.json"
    file.write_text(TWO)
    assert install(domain, "--agent", "assistant").returncode == 0
    file.write_text(file.read_text().replace("true", "1").replace('"--", ', '"--", '))
    assert install(domain, "--undo").returncode == 0
    assert json.loads(file.read_text()) == json.loads(TWO.replace("true", "1"))
    assert "1.50, 1, null" in file.read_text()
    changed = file.read_text()
    assert install(domain, "--agent", "assistant").returncode == 0  # a copy of its own
    assert file.with_name("mcp.json.before-agentguard").read_text() == changed


BY_HAND = [
    ["agentguard", "mcp", "run", "--name", "git", "--config", "/srv/agentguard.toml"],
    ["/opt/bin/agentguard", "mcp", "run", "--agent", "a", "--", "uvx", "mcp-server-git"],
    ["uv", "run", "--project", "/srv", "agentguard", "mcp", "run", "--name", "git"],
    ["python3", "-m", "agentguard.cli", "mcp", "run", "--name", "git"],
    ["sh", "-c", "exec agentguard mcp run --name git"],
    ["C:\\tools\\agentguard.exe", "mcp", "run"],
]
PLAIN = [
    ["uvx", "mcp-server-git", "--repository", "/srv/agentguard"],
    ["agentguard-mcp-run", "mcp", "run"],
    ["uvx", "agentguard", "mcp", "runner"],
    ["uvx", "docs-of-agentguard", "mcp", "run"],
]


@pytest.mark.parametrize("words", BY_HAND, ids=range(len(BY_HAND)))
def test_a_gateway_that_somebody_has_written_gets_no_second_one(domain, words):
    file = domain.home / ".cursor" / "mcp.json"
    text = json.dumps({"mcpServers": {"git": {"command": words[0], "args": words[1:]}}})
    file.write_text(text)
    again = install(domain, "--agent", "assistant")
    assert (again.returncode, "has a gateway already" in again.stderr) == (2, True), again.stderr
    undo = install(domain, "--undo")
    assert (undo.returncode, "take it away by hand" in undo.stderr) == (2, True), undo.stderr
    assert file.read_text() == text


@pytest.mark.parametrize("words", PLAIN, ids=range(len(PLAIN)))
def test_a_server_whose_words_only_look_like_a_gateway_gets_one(domain, words):
    file = domain.home / ".cursor" / "mcp.json"
    entry = {"command": words[0], "args": words[1:]}
    file.write_text(json.dumps({"mcpServers": {"git": entry}}))
    assert install(domain, "--agent", "assistant").returncode == 0
    assert client_files.is_wrapped(json.loads(file.read_text())["mcpServers"]["git"])


def test_a_dry_run_writes_nothing(domain):
    result = install(domain, "--agent", "assistant", "--dry-run")
    assert (result.returncode, "nothing was written" in result.stdout) == (0, True)
    assert '"uvx", "mcp-server-git"' in result.stdout
    assert (domain.home / ".cursor" / "mcp.json").read_text() == CURSOR
    assert len([*(domain.home / ".cursor").iterdir()]) == 1


def test_each_client_has_a_file_of_its_own(domain):
    (domain.folder / ".vscode").mkdir()
    file = domain.folder / ".vscode" / "mcp.json"
    file.write_text('{"servers":{"git":{"type":"stdio","command":"uvx"}}}')
    assert install(domain, "--agent", "assistant", client="vscode").returncode == 0
    assert json.loads(file.read_text())["servers"]["git"]["type"] == "stdio"
    assert install(domain, "--undo", client="vscode").returncode == 0
    assert json.loads(file.read_text())["servers"]["git"] == {"type": "stdio", "command": "uvx"}
    link = domain.folder / "linked.json"
    link.symlink_to(file)
    words = ("--agent", "assistant", "--file", str(link))
    assert install(domain, *words, client="vscode").returncode == 0
    assert link.is_symlink()
    assert client_files.is_wrapped(json.loads(file.read_text())["servers"]["git"])


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"client": "emacs"}, "is not one of"),
    ({"client": "claude-code"}, "with --file, or add the server to the client first"),
    (
        {"name": "svn"},
        "has no server svn in mcpServers; the servers there are: other, git. Correct --name, or ",
    ),
    ({"name": "other"}, "name the url in [mcp.other] of agentguard.toml"),
    ({"agent": "nobody"}, "[agent.unknown]"),
    ({"agent": None}, "name the agent"),
    ({"text": CURSOR.replace("{", "{ // a comment\n", 1)}, "is not plain JSON"),
    ({"text": CURSOR.replace('"last"', '"theme"')}, "names a key twice"),
    ({"text": "[" * 100_000}, "is not plain JSON"),
    ({"text": "[]"}, "has no server git"),
]


def test_what_can_not_be_changed_stays_as_it_is(domain):
    file = domain.home / ".cursor" / "mcp.json"
    for words, said in MISTAKES:
        before = words.get("text", CURSOR)
        file.write_text(before)
        agent = words.get("agent", "assistant")
        given = {name: value for name, value in words.items() if name in ("client", "name")}
        result = install(domain, *(("--agent", agent) if agent else ()), **given)
        assert (result.returncode, said in result.stderr) == (2, True), result.stderr
        assert file.read_text() == before


def test_no_file_of_an_agent_takes_the_place_of_the_gateway(domain):
    file = domain.home / ".cursor" / "mcp.json"
    assert install(domain, "--agent", "assistant").returncode == 0
    entry = json.loads(file.read_text())["mcpServers"]["git"]
    folder = domain.folder / "workspace"
    (folder / "agentguard").mkdir(parents=True)
    for name in ("agentguard/__init__.py", "agentguard/cli.py", "typing.py", "click.py"):
        (folder / name).write_text("print('the module of the agent ran')\nraise SystemExit\n")
    command = [entry["command"], *entry["args"][: len(client_files.OURS)], "--help"]
    for variables in ({}, {"PYTHONPATH": str(folder)}):
        environment = {"PATH": "/usr/bin:/bin", **variables}
        started = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert started.returncode == 0, started.stderr
        assert "the module of the agent ran" not in started.stdout
        assert "mcp run" in started.stdout


def test_a_gateway_without_a_server_behind_it_can_not_be_taken_away(domain):
    file = domain.home / ".cursor" / "mcp.json"
    entry = {"command": "a", "args": [*client_files.OURS, "--"]}
    text = json.dumps({"mcpServers": {"git": entry}})
    file.write_text(text)
    result = install(domain, "--undo")
    assert (result.returncode, "by hand" in result.stderr) == (2, True), result.stderr
    file.write_text(text.replace('"run"', '"walk"'))
    assert "has no gateway" in install(domain, "--undo").stderr
    file.write_text(text)
    assert file.read_text() == text
    file.write_text(text.replace('"--"', '"--", "uvx"'))
    assert install(domain, "--undo").returncode == 0
    assert json.loads(file.read_text())["mcpServers"]["git"] == {"command": "uvx"}


def test_an_entry_with_half_a_pair_of_surrogates_can_be_changed(domain):
    file = domain.home / ".cursor" / "mcp.json"
    text = '{"mcpServers":{"git":{"command":"uvx","note":"%s"}}}'
    file.write_text(text % "\\ud800")
    assert install(domain, "--agent", "assistant").returncode == 0
    assert json.loads(file.read_text())["mcpServers"]["git"]["note"] == "\ud800"
    file.write_text(text % "\\u00e9")
    assert install(domain, "--agent", "assistant").returncode == 0
    assert '"note": "é"' in file.read_text()


KEYS = st.text(max_size=4)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(
    before=st.dictionaries(KEYS, TREES, max_size=3),
    servers=st.dictionaries(KEYS, TREES, max_size=3),
    indent=st.sampled_from([None, 0, 2, "\t"]),
    plain=st.booleans(),
)
def test_all_else_of_any_file_stays_as_it_is(before, servers, indent, plain):
    entry = {"command": "a", "args": ["b"], "x": [1]}
    document = {**before, "mcpServers": {**servers, "git": entry, "z": {}}, "zz": "}"}
    text = json.dumps(document, indent=indent, ensure_ascii=plain)
    path = ("mcpServers", "git")
    wrapped = client_files.wrapped(entry, ["--name", "git"])
    changed = client_files.replaced(text, path, wrapped)
    document["mcpServers"]["git"] = wrapped
    assert json.loads(changed) == document
    back = client_files.replaced(changed, path, client_files.unwrapped(wrapped))
    assert json.loads(back) == json.loads(text)
    found = client_files.entry_of(back, *path, "test")
    assert found == entry
    with pytest.raises(ConfigError):
        client_files.entry_of(text, "mcpServers", "not there", "test")


def test_the_client_s_file_names_the_configuration_without_a_detour(domain):
    (domain.folder / "sub").mkdir()
    detour = str(domain.folder / "sub" / ".." / "agentguard.toml")
    assert install(domain, "--agent", "assistant", "--config", detour).returncode == 0
    words = json.loads((domain.home / ".cursor" / "mcp.json").read_text())["mcpServers"]["git"][
        "args"
    ]
    assert words[words.index("--config") + 1] == str(domain.folder.resolve() / "agentguard.toml")
