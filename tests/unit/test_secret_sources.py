"""The sources of secrets, and the table ``[secrets]``: what is read, and what is refused."""

from __future__ import annotations

import os
import stat

import pytest

from agentguard import ConfigError, Decision, Guard, SecretError, secret
from agentguard.domain import config

VALUE = "hunter2-4711-\u20ac"


def fetched(tables, name="TOKEN"):
    """What a tool gets that asks for the secret."""
    with Guard.ephemeral(lambda _: Decision.allow(), config={"secrets": tables}) as guard:
        return guard.new_agent("a").call(guard.tool(name="deploy")(lambda: secret(name)))


def failed(tables, match):
    with pytest.raises(SecretError, match=match) as caught:
        fetched(tables)
    assert caught.value.code == "secret.failed"
    error: BaseException | None = caught.value
    while error is not None:
        assert VALUE not in f"{error!r} {getattr(error, 'object', '')!r}"
        error = error.__cause__ or error.__context__


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "token"
    path.write_text(VALUE, encoding="utf-8")
    path.chmod(0o600)
    return path


def of_file(path, **more):
    return {"TOKEN": {"file": str(path), "tools": ["deploy"], **more}}


OF_VARIABLE = {"TOKEN": {"env": "AGENTGUARD_TEST_TOKEN", "tools": ["deploy"]}}


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_line_break_at_the_end_of_a_file_is_no_part(file, end):
    file.write_bytes(f"{VALUE}{end}".encode())
    assert fetched(of_file(file)) == VALUE


def test_all_else_in_a_file_is_a_part(file):
    file.write_bytes(b" a\n\tb \n\n")
    assert fetched(of_file(file)) == " a\n\tb \n"


def test_a_path_is_relative_to_the_configuration(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert fetched(of_file("token")) == VALUE


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe" + VALUE.encode(), "no text in UTF-8"),
        (b"a\0b", "no text in UTF-8"),
        (b"x" * (64 * 1024 + 1), "more than 65536 bytes|longer than"),
        (b"x" * (1024 * 1024), "longer than"),
    ],
)
def test_what_is_no_secret_is_refused(file, content, match):
    file.write_bytes(content)
    failed(of_file(file), match)


def test_the_longest_secret_is_read(file):
    file.write_bytes(b"x" * (64 * 1024) + b"\n")
    assert fetched(of_file(file)) == "x" * (64 * 1024)


@pytest.mark.parametrize(
    ("mode", "reads"), [(0o400, True), (0o600, True), (0o640, True), (0o644, False), (0o622, False)]
)
def test_a_file_that_everybody_can_read_is_refused(file, mode, reads):
    file.chmod(mode)
    if reads:
        assert fetched(of_file(file)) == VALUE
    else:
        failed(of_file(file), "chmod")


def test_a_file_in_a_folder_that_others_can_write_is_refused(file):
    assert fetched(of_file(file)) == VALUE
    file.parent.chmod(0o777)
    failed(of_file(file), "others can write the folder")


def test_a_pipe_and_a_folder_do_not_hang_the_call(file):
    file.unlink()
    failed(of_file(file), "there is no file")
    os.mkfifo(file, 0o600)
    assert stat.S_ISFIFO(file.stat().st_mode)
    failed(of_file(file), "no regular file")
    file.unlink()
    file.mkdir(mode=0o700)
    failed(of_file(file), "no regular file")


def test_a_mounted_secret_is_read_through_its_links(file):
    """Kubernetes mounts ``token -> ..data/token``, and turns the link at each change."""
    data = file.parent / "..2026_11_29"
    data.mkdir(mode=0o700)
    file.rename(data / "token")
    (file.parent / "..data").symlink_to(data.name)
    file.symlink_to("..data/token")
    assert fetched(of_file(file)) == VALUE


# --- the environment ------------------------------------------------------------------------------


def test_a_variable_is_read_as_it_is(monkeypatch):
    monkeypatch.setenv("AGENTGUARD_TEST_TOKEN", f"{VALUE}\n")
    assert fetched(OF_VARIABLE) == f"{VALUE}\n"


def test_a_variable_that_is_unset_or_empty_is_refused(monkeypatch):
    monkeypatch.delenv("AGENTGUARD_TEST_TOKEN", raising=False)
    failed(OF_VARIABLE, "AGENTGUARD_TEST_TOKEN is unset")
    monkeypatch.setenv("AGENTGUARD_TEST_TOKEN", "")
    failed(OF_VARIABLE, "AGENTGUARD_TEST_TOKEN is empty")
    monkeypatch.setenv("AGENTGUARD_TEST_TOKEN", os.fsdecode(b"\xff" + VALUE.encode()))
    failed(OF_VARIABLE, "no text in UTF-8")


def test_a_guard_asks_no_source_before_a_tool_does(tmp_path):
    tables = {"secrets": of_file(tmp_path / "missing")}
    with Guard.ephemeral(lambda _: Decision.allow(), config=tables) as guard:
        assert guard.new_agent("a").call(guard.tool(name="deploy")(lambda: "no secret")) == (
            "no secret"
        )


# --- the table ------------------------------------------------------------------------------------


def parsed(tables, tmp_path):
    return config.parse({"secrets": tables}, source="agentguard.toml", base=tmp_path)


ONE = "expected one of file, env, keyring, vault"
MISTAKES = {
    "no tools": ({"T": {"env": "T"}}, "secrets.T.tools: expected a list of the names"),
    "an empty list of tools": ({"T": {"env": "T", "tools": []}}, "secrets.T.tools: expected"),
    "every tool": ({"T": {"env": "T", "tools": ["*"]}}, "secrets.T.tools: expected"),
    "tools as a text": ({"T": {"env": "T", "tools": VALUE}}, "secrets.T.tools: expected"),
    "no source": (
        {"T": {"tools": ["a"]}},
        f"secrets.T.file: {ONE}",
    ),
    "two sources": (
        {"T": {"tools": ["a"], "env": "T", "file": "t"}},
        ONE,
    ),
    "an empty file": ({"T": {"tools": ["a"], "file": ""}}, "secrets.T.file: expected"),
    "an empty variable": ({"T": {"tools": ["a"], "env": ""}}, "secrets.T.env: expected"),
    "no variable": ({"T": {"tools": ["a"], "env": f"T={VALUE}"}}, "secrets.T.env: expected"),
    "a number": ({"T": {"tools": ["a"], "env": 5}}, "secrets.T.env: expected a string"),
    "a scope with a space": ({"T": {"tools": ["a"], "env": "T", "scope": ["a b"]}}, "scope"),
    "the value itself": ({"T": {"tools": ["a"], "value": VALUE}}, "secrets.T"),
    "the value as the table": ({"T": VALUE}, "secrets.T: expected a table"),
    "a text": (VALUE, "secrets: expected a table"),
    "a name with a space": ({"a b": {"tools": ["a"], "env": "T"}}, "expected a name of letters"),
    "no name": ({"": {"tools": ["a"], "env": "T"}}, "expected a name of letters"),
}


@pytest.mark.parametrize(("tables", "match"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_and_no_value_is_quoted(tables, match, tmp_path):
    with pytest.raises(ConfigError, match=match) as caught:
        parsed(tables, tmp_path)
    assert caught.value.code == "config.invalid"
    assert VALUE not in str(caught.value)


def test_a_table_without_a_mistake_is_read(tmp_path):
    tables = {
        "A": {"file": "a", "tools": ["one", "two"], "scope": ["b", "a"]},
        "b.c-d": {"env": "T", "tools": ["one"]},
    }
    secrets = parsed(tables, tmp_path).secrets
    assert (secrets["A"].file, secrets["A"].tools) == (tmp_path / "a", ("one", "two"))
    assert (secrets["A"].scope, secrets["A"].env) == (("a", "b"), None)
    assert (secrets["b.c-d"].env, secrets["b.c-d"].file) == ("T", None)


def test_the_name_of_a_tool_that_looks_misspelt_is_refused(monkeypatch):
    monkeypatch.setenv("AGENTGUARD_TEST_TOKEN", VALUE)
    tables = {"T": {"env": "AGENTGUARD_TEST_TOKEN", "tools": ["deploi"]}}
    with Guard.ephemeral(lambda _: Decision.allow(), config={"secrets": tables}) as guard:
        guard.tool(name="deploy")(lambda: None)
        with pytest.raises(ConfigError, match=r"deploi in \[secrets.T\] names no tool .* deploy\?"):
            guard.new_agent("a")
