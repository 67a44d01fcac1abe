"""``Guard`` and ``Agent``: opening and closing, and many threads."""

from __future__ import annotations

import asyncio
import textwrap
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agentguard import ConfigError, Decision, Denied, Guard, StorageError, Tool, adapters
from agentguard.audit.kinds import parse_entry
from agentguard.domain import config, domain, keystore
from agentguard.domain.report import Report
from agentguard.domain.verify import examine
from agentguard.errors import KeyMaterialError
from agentguard.store.reader import StoredLog

PASSPHRASE = b"correct horse"
POLICY = """
from agentguard import Decision

def decide(document):
    return Decision.allow() if document["agent"]["name"] == "reader" else Decision.deny("no")
"""


def allow_all(_document):
    return Decision.allow()


@pytest.fixture(scope="module")
def founded(tmp_path_factory):
    """A folder with an agentguard.toml and a domain that was founded for it."""
    folder = tmp_path_factory.mktemp("domain")
    (folder / "guard_test_policy.py").write_text(POLICY, encoding="utf-8")
    path = folder / "agentguard.toml"
    path.write_text(
        textwrap.dedent(
            """
            trust_domain = "acme.example"
            anchor = "anchor"

            [policy]
            engine = "function"
            path = "guard_test_policy:decide"

            [agents.reader]
            type = "code-agent"
            owner = "user:carol"
            authority = "own"
            max_scope = ["repo:read"]

            [agents.stranger]
            authority = "own"

            [tools]
            close = {}
            write = {}

            [tools.read]
            requires = ["repo:read"]
            resource = "repo:{repo}"
            """
        ),
        encoding="utf-8",
    )
    domain.found(config.load(path), PASSPHRASE, now=datetime.now(UTC))
    return path


@pytest.fixture
def path(founded, monkeypatch):
    monkeypatch.syspath_prepend(founded.parent)
    monkeypatch.delenv("AGENTGUARD_PASSPHRASE", raising=False)
    return founded


def report_of(path: Path) -> Report:
    settings = config.load(path)
    reader = StoredLog.of(settings.state)
    try:
        trust = keystore.load_trust(settings.state)
        return examine(reader, trust, anchor=settings.anchor)
    finally:
        reader.close()


# --- opening and closing --------------------------------------------------------------------------


def test_an_agentguard_toml_is_all_that_a_guard_needs(path):
    ran = []
    with Guard.open(path, passphrase=PASSPHRASE) as guard:

        @guard.tool
        def read(repo):
            ran.append(repo)

        @guard.tool
        def write(repo):
            ran.append(repo)

        reader = guard.new_agent("reader")
        reader.call(read, repo="x")
        with pytest.raises(Denied, match="no"):
            guard.new_agent("stranger").call(write, repo="y")
        with pytest.raises(Denied) as caught:
            guard.new_agent("stranger").call(read, repo="y")
        assert caught.value.code == "scope.exceeded"
        assert read.spec.resource == "repo:{repo}"  # as the configuration says
        assert reader.name == "reader"
        assert reader.id.startswith("spiffe://acme.example/agent/reader/")
        assert reader.alias.startswith("agent:reader:")
        assert repr(guard) == "<Guard of acme.example>"
        assert guard.closed is (len(ran) != 1)
    assert guard.closed
    assert ran == ["x"]
    report = report_of(path)
    assert report.problems == ()
    assert report.anchored
    assert report.in_doubt == ()


def test_a_closed_guard_denies_and_closing_again_does_nothing(path):
    ran: list[int] = []
    guard: Guard = Guard.open(path, passphrase=PASSPHRASE)
    agent = guard.new_agent("reader")
    tool = guard.tool(ran.append)

    @guard.tool
    async def coroutine():
        ran.append(1)

    agent.call(tool, 1)
    guard.close()
    guard.close()
    with pytest.raises(Denied) as caught:
        agent.call(tool, 2)
    assert caught.value.code == "storage.closed"
    with pytest.raises(Denied) as caught:
        asyncio.run(agent.acall(coroutine))
    assert caught.value.code == "storage.closed"
    with pytest.raises(StorageError):
        guard.new_agent("reader")
    assert ran == [1]
    assert report_of(path).in_doubt == ()


def test_a_tool_that_closes_its_guard_is_in_doubt_and_returns(path, caplog):
    guard = Guard.open(path, passphrase=PASSPHRASE)

    @guard.tool
    def close():
        guard.close()
        return "closed"

    before = len(report_of(path).in_doubt)
    assert guard.new_agent("reader").call(close) == "closed"
    assert "stays in doubt" in caplog.text
    report = report_of(path)
    assert report.problems == ()
    assert len(report.in_doubt) == before + 1


@pytest.mark.parametrize(
    ("passphrase", "code"),
    [
        (b"wrong", "key.passphrase"),
        (None, "key.passphrase"),
        (lambda: b"wrong", "key.passphrase"),
        (lambda: b"", "key.passphrase"),
    ],
    ids=["wrong", "none", "callback", "empty callback"],
)
def test_without_the_passphrase_nothing_opens(path, passphrase, code):
    with pytest.raises(KeyMaterialError) as caught:
        Guard.open(path, passphrase=passphrase)
    assert caught.value.code == code
    Guard.open(path, passphrase=lambda: PASSPHRASE).close()  # and the lock was not kept


def test_an_empty_passphrase_is_one_that_was_given(path, monkeypatch):
    """It is refused, and none that the environment has takes its place."""
    monkeypatch.setenv("AGENTGUARD_PASSPHRASE", PASSPHRASE.decode())
    with pytest.raises(KeyMaterialError) as caught:
        Guard.open(path, passphrase=b"")
    assert caught.value.code == "key.passphrase"
    Guard.open(path).close()


def test_the_passphrase_comes_from_the_environment_or_a_file(path, monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTGUARD_PASSPHRASE", PASSPHRASE.decode())
    Guard.open(path).close()
    monkeypatch.setattr(
        keystore, "_environment_passphrase", None
    )  # as in a process that never had it
    secret = tmp_path / "passphrase"
    secret.write_bytes(PASSPHRASE + b"\n")
    secret.chmod(0o600)
    text = path.read_text(encoding="utf-8")
    with_file = path.with_name("with_file.toml")
    with_file.write_text(f'{text}\n[keys]\npassphrase_file = "{secret}"\n', encoding="utf-8")
    Guard.open(with_file).close()
    secret.chmod(0o644)
    with pytest.raises(KeyMaterialError) as caught:
        Guard.open(with_file)
    assert caught.value.code == "key.exposed"


def test_find_shares_one_guard_and_opens_it_again_once_closed(path, monkeypatch):
    monkeypatch.setenv("AGENTGUARD_PASSPHRASE", PASSPHRASE.decode())
    below = path.parent / "below"
    below.mkdir(exist_ok=True)
    monkeypatch.chdir(below)
    first = Guard.find()
    assert Guard.find() is first
    first.close()
    second = Guard.find()
    assert second is not first
    second.close()


def test_find_within_the_import_of_its_own_policy_is_an_error_and_no_hang(path, monkeypatch):
    monkeypatch.setenv("AGENTGUARD_PASSPHRASE", PASSPHRASE.decode())
    monkeypatch.syspath_prepend(path.parent)
    policy = "from agentguard import Guard\nGuard.find()\n"  # as guard_tools(..., "reader") does
    (path.parent / "guard_test_circle.py").write_text(policy + POLICY, encoding="utf-8")
    folder = path.parent / "circle"
    folder.mkdir(exist_ok=True)
    text = path.read_text(encoding="utf-8").replace("guard_test_policy", "guard_test_circle")
    (folder / "agentguard.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    errors: list[ConfigError] = []

    def find() -> None:
        try:
            Guard.find()
        except ConfigError as error:
            errors.append(error)

    thread = threading.Thread(target=find, daemon=True)
    thread.start()
    thread.join(60)
    assert ["circular import" in str(error) for error in errors] == [True]


def test_find_without_a_file_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="agentguard init") as caught:
        Guard.find()
    assert caught.value.code == "config.missing"


def test_an_ephemeral_guard_takes_no_durable_tables():
    for table in ("state", "anchor", "keys", "policy"):
        with pytest.raises(ConfigError, match=table):
            Guard.ephemeral(allow_all, config={table: {}})
    Guard.ephemeral(allow_all, config={"agents": {"a": {}}}).close()


@pytest.mark.parametrize("tables", ["agentguard.toml", ["agents"], 5, ""])
def test_an_ephemeral_guard_takes_no_file_for_its_tables(tables):
    with pytest.raises(ConfigError, match=r"expected the tables .* as a dict.* Guard\.open"):
        Guard.ephemeral(allow_all, config=tables)


def test_an_ephemeral_guard_that_names_agents_knows_no_others():
    guard = Guard.ephemeral(allow_all, config={"agents": {"reader": {}}})
    assert guard.new_agent("reader").name == "reader"
    with pytest.raises(ConfigError, match="known agents: reader") as caught:
        guard.new_agent("raeder")
    assert caught.value.code == "agent.unknown"
    assert Guard.ephemeral(allow_all).new_agent("raeder").name == "raeder"


def test_an_ephemeral_guard_needs_a_policy_that_exists(tmp_path):
    with pytest.raises(ConfigError, match="there is no policy"):
        Guard.ephemeral(tmp_path / "none.rego")


def test_a_guard_writes_down_its_configuration_and_policy():
    guard = Guard.ephemeral(allow_all, config={"tools": {"t": {"requires": ["x"]}}})
    kinds = [parse_entry(body).kind for _index, body in guard.reader().entries()]
    assert kinds == ["key", "key", "config", "policy"]


# --- many threads ---------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "sqlite"])
def any_guard(request, path):
    if request.param == "memory":
        guard = Guard.ephemeral(allow_all)
    else:
        guard = Guard.open(path, passphrase=PASSPHRASE)
    with guard:
        yield guard


def test_many_threads_on_one_guard(any_guard):
    ran, errors = [], []
    before = len(list(any_guard.reader().entries()))
    agents = [any_guard.new_agent("reader") for _ in range(4)]

    @any_guard.tool
    def note(thread, number):
        ran.append((thread, number))
        return number

    def work(thread):
        try:
            for number in range(20):
                assert agents[thread % 4].call(note, thread, number=number) == number
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(ran) == len(set(ran)) == 32 * 20

    reader = any_guard.reader()
    entries = list(reader.entries())
    assert [index for index, _body in entries] == list(range(len(entries)))
    kinds = [parse_entry(body).kind for _index, body in entries[before:]]
    assert kinds.count("call") == kinds.count("outcome") == 32 * 20
    assert kinds.count("identity") == 4
    report = examine(reader, any_guard.trust)
    assert report.problems == ()


def test_closing_while_others_call(any_guard):
    ran: list[int] = []
    codes = set()
    agent = any_guard.new_agent("reader")
    stop, called = threading.Event(), threading.Event()

    @any_guard.tool
    def note(number):
        ran.append(number)
        called.set()

    def work():
        while not stop.is_set():
            try:
                agent.call(note, 1)
            except Denied as denied:
                codes.add(denied.code)
                return

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert called.wait(60)
    closers = [threading.Thread(target=any_guard.close) for _ in range(3)]
    for closer in closers:
        closer.start()
    for thread in [*closers, *threads]:
        thread.join(60)
    stop.set()
    assert codes <= {"storage.closed"}
    assert ran


# --- the adapters' side ---------------------------------------------------------------------------


def test_call_ids_differ_for_each_call_of_a_tool():
    agent = Guard.ephemeral(allow_all).new_agent("a")
    assert [adapters.next_call_id(agent, tool) for tool in "xxy"] == ["x#1", "x#2", "y#1"]


def test_a_tool_takes_its_name_and_description_from_the_function():
    guard = Guard.ephemeral(allow_all)

    @guard.tool(name="other", requires=["a", "b"])
    def original(x: int, *rest: str, y: bool = True, **more: object) -> None:
        """Do it."""

    assert isinstance(original, Tool)
    assert (original.spec.name, original.spec.description) == ("other", "Do it.")
    assert original.spec.requires == ("a", "b")
    assert original.spec.origin.endswith("original")
    properties: Any = original.spec.schema["properties"]
    assert set(properties) == {"x", "rest", "y", "more"}


@pytest.mark.parametrize(
    "said",
    [
        {"resource": "x:{nope}"},
        {"resource": "x:{x}:{nope}"},
        {"attributes": {"q": "nope"}},
        {"attributes": {"q": "x", "x": "nope"}},
    ],
)
def test_an_argument_that_the_function_does_not_take_is_found_when_it_is_guarded(said):
    guard = Guard.ephemeral(allow_all)
    with pytest.raises(ConfigError, match=r"'nope'.*; it takes x") as caught:
        guard.tool(**said)(lambda x: x)
    assert caught.value.code == "config.invalid"
    by_configuration = Guard.ephemeral(allow_all, config={"tools": {"f": said}})
    with pytest.raises(ConfigError, match="'nope'"):
        by_configuration.tool(name="f")(lambda x: x)
    # one that takes whatever it is given may be given this
    agent = guard.new_agent("a")
    free = guard.tool(**said)(lambda x, **_more: x)
    assert agent.call(free, x="1", nope="2") == "1"


def test_an_anchor_inside_the_state_opens_no_guard(path):
    text = path.read_text(encoding="utf-8")
    outside = path.with_name("outside.toml")
    outside.write_text(text, encoding="utf-8")
    settings = config.load(outside)
    inside = path.with_name("inside.toml")
    lines = [line for line in text.splitlines() if not line.startswith("anchor")]
    inside.write_text(f'anchor = "{settings.state}/anchor"\n' + "\n".join(lines), encoding="utf-8")
    Guard.open(outside, passphrase=PASSPHRASE).close()
    with pytest.raises(ConfigError) as caught:
        Guard.open(inside, passphrase=PASSPHRASE)
    assert caught.value.code == "anchor.inside"
