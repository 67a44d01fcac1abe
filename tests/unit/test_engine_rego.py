"""The Rego engine as its users meet it: files in, documents out, errors that say where.

What an attacker or a careless author could do with it stands in attacks/test_rego_pitfalls_*.py.
"""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module, metadata
from pathlib import Path

import pytest

from agentguard.errors import ConfigError, PolicyError
from agentguard.policy.document import UNDEFINED, decide
from agentguard.policy.rego import engine as rego_engine
from agentguard.policy.rego.engine import MAX_ENGINES_PER_THREAD, RegoEngine
from agentguard.signing import canonical

POLICIES = Path(__file__).parents[1] / "policies"
MAIN = "direct merges to main require human approval"


def policy(body: str, **options) -> RegoEngine:
    return RegoEngine.from_source(f"package agent.authz\n{body}", **options)


def ask(engine: RegoEngine, **members) -> object:
    return engine.evaluate(json.dumps(members).encode())


def write(folder: Path, **texts: str) -> Path:
    """Write ``{name: text}``; a double underscore stands for a slash, _rego and _json for dots."""
    for name, text in texts.items():
        path = folder / name.replace("__", "/").replace("_rego", ".rego").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


# --- the policy of the design, as it stands


@pytest.mark.parametrize(
    ("call", "outcome", "reasons"),
    [
        ({"action": "open_pr", "repo": {"visibility": "internal"}}, "allow", ()),
        ({"action": "open_pr", "repo": {"visibility": "public"}}, "deny", None),
        ({"action": "open_pr"}, "deny", None),
        ({"action": "trigger_ci", "branch": "agent/fix"}, "allow", ()),
        ({"action": "trigger_ci", "branch": "main"}, "deny", None),
        ({"action": "trigger_ci"}, "deny", None),
        ({"action": "merge_pr", "branch": "main"}, "deny", (MAIN,)),
        ({"action": "merge_pr", "branch": "agent/fix"}, "deny", None),
        ({"action": "drop_table"}, "deny", None),
    ],
)
def test_the_example_policy_means_what_its_author_meant(call, outcome, reasons):
    engine = RegoEngine.load(POLICIES / "authz.rego")

    decision = decide(ask(engine, agent={"type": "code-agent"}, **call))

    assert decision.outcome == outcome
    if reasons is not None:
        assert decision.reasons == reasons


def test_another_type_of_agent_may_do_nothing_of_it():
    engine = RegoEngine.load(POLICIES / "authz.rego")

    answer = ask(engine, agent={"type": "chat"}, action="open_pr", repo={"visibility": "internal"})

    assert answer == {"allow": False}


# --- what is loaded


def test_a_file_is_recorded_by_its_name_and_digest():
    engine = RegoEngine.load(POLICIES / "authz.rego")

    digest = canonical.sha256_hex((POLICIES / "authz.rego").read_bytes())
    assert engine.policy_files == {"authz.rego": digest}
    assert engine.policy_sha256 == canonical.digest({"authz.rego": digest})
    assert (engine.name, engine.version) == ("rego", metadata.version("gordon-to-regorus"))


def test_a_folder_is_read_as_a_bundle():
    engine = RegoEngine.load(POLICIES / "bundle")

    assert sorted(engine.policy_files) == [
        "authz.rego",
        "data.json",
        "lib/lib.rego",
        "lib/paths/paths.rego",
        "teams/payments/data.json",
    ]
    call = {"agent": {"name": "code-reviewer"}, "args": {"path": "src/a.py"}}
    assert ask(engine, **call, repo={"name": "payments-api"}) == {"allow": True, "deny_reasons": []}
    frozen = ask(engine, **call, repo={"name": "ledger"})
    assert frozen == {"allow": True, "deny_reasons": ["ledger is frozen"]}
    assert decide(frozen).outcome == "deny"
    elsewhere = {**call, "args": {"path": "srcs/a.py"}}
    assert ask(engine, **elsewhere, repo={"name": "payments-api"})["allow"] is False  # type: ignore[index]


@pytest.mark.parametrize("change", ["policy_rego", "data_json"])
def test_the_digest_changes_with_a_module_and_with_data(tmp_path, change):
    texts = {"policy_rego": "package agent.authz\nallow := data.a", "data_json": '{"a": 1}'}
    before = RegoEngine.load(write(tmp_path, **texts))
    write(tmp_path, **{change: texts[change] + "\n"})
    after = RegoEngine.load(tmp_path)

    assert before.policy_sha256 != after.policy_sha256
    assert ask(before) == ask(after) == {"allow": 1}


def test_data_of_folders_is_merged_below_their_paths(tmp_path):
    write(
        tmp_path,
        p_rego="package agent.authz\nx := data.a",
        data_json='{"a": {"b": {"above": 1}, "c": 2}}',
        a__b__data_json='{"below": 3}',
    )

    answer = ask(RegoEngine.load(tmp_path))

    assert answer == {"x": {"b": {"above": 1, "below": 3}, "c": 2}}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"data_json": '{"a": {"b": 1}}', "a__data_json": '{"b": 2}'}, "'b' is also defined"),
        ({"data_json": '{"a": 1}', "a__data_json": "{}"}, "'a' is also defined"),
        ({"data_json": '{"a": 1, "a": 2}'}, "'a' occurs twice"),
        ({"data_json": '{"a": NaN}'}, "NaN is not a JSON number"),
        ({"data_json": "[1]"}, "put the value into an object"),
        ({"data_json": '{"a":'}, "not valid JSON"),
        ({"data_json": "[" * 100_000}, "not valid JSON"),
        ({"a__data.yaml": "b: 1"}, "data is read from data.json only"),
        ({"p_rego": "# " + "x" * 1024 * 1024}, "more than 1048576 bytes"),
        ({"p_test_rego": "package p"}, None),
    ],
)
def test_a_folder_that_would_be_read_in_part_is_refused(tmp_path, texts, message):
    write(tmp_path, authz_rego="package agent.authz\nallow := false", **texts)

    if message is None:
        assert list(RegoEngine.load(tmp_path).policy_files) == ["authz.rego"]
        return
    with pytest.raises(PolicyError, match=message) as refusal:
        RegoEngine.load(tmp_path)
    assert refusal.value.code == "policy.invalid"


def test_links_to_files_are_read_and_links_to_folders_refused(tmp_path):
    real = write(tmp_path / "real", p_rego="package agent.authz\nallow := true")
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "p.rego").symlink_to(real / "p.rego")
    assert ask(RegoEngine.load(folder)) == {"allow": True}

    (folder / "more").symlink_to(real)
    with pytest.raises(PolicyError, match="a link to a folder"):
        RegoEngine.load(folder)


def test_hidden_files_are_passed_over(tmp_path):
    write(tmp_path, p_rego="package agent.authz\nallow := true")
    write(tmp_path / ".git", q_rego="no Rego at all")
    (tmp_path / ".hidden.rego").write_text("no Rego at all")

    assert list(RegoEngine.load(tmp_path).policy_files) == ["p.rego"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        (b"# \xff", "not UTF-8 at byte 2"),
        (b"\xef\xbb\xbfpackage p", "byte order mark"),
    ],
)
def test_a_file_that_can_not_be_read_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "p.rego").write_bytes(content)

    with pytest.raises(PolicyError, match=message) as refusal:
        RegoEngine.load(tmp_path / "p.rego")
    assert refusal.value.code == "policy.invalid"


def test_a_folder_without_modules_is_refused(tmp_path):
    with pytest.raises(PolicyError, match="has no Rego module"):
        RegoEngine.load(write(tmp_path, data_json="{}"))


def test_a_lone_surrogate_in_a_source_is_refused():
    with pytest.raises(PolicyError, match="not UTF-8"):
        policy('x := "\ud800"')


# --- the query


def test_the_query_chooses_the_package():
    source = "package acme.tools\nallow := true"

    assert ask(RegoEngine.from_source(source, query="data.acme.tools")) == {"allow": True}
    with pytest.raises(PolicyError, match=r"names no package.*which has data\.acme\.tools") as no:
        RegoEngine.from_source(source)
    assert no.value.code == "policy.invalid"


@pytest.mark.parametrize(
    "query", ["data.agent.authz.allow", "data.agent", "data", "true", "data.agent.authz; true", ""]
)
def test_a_query_that_is_no_package_is_refused(query):
    with pytest.raises(PolicyError, match="query") as refusal:
        policy("allow := true", query=query)
    assert refusal.value.code == "policy.invalid"


# --- values


def test_undefined_rules_are_absent_and_an_empty_package_is_an_empty_object():
    engine = policy("allow if input.a == 1")

    assert ask(engine, a=1) == {"allow": True}
    assert ask(engine, a=2) == {}
    assert decide(ask(engine, a=2)).outcome == "deny"


def test_an_undefined_query_is_undefined():
    # The gate lets no such query through; the native engine's answer to one is an empty object.
    from agentguard.policy.rego import engine as rego  # noqa: PLC0415

    assert rego._value("{}") is UNDEFINED
    assert rego._value('{"result": []}') is UNDEFINED
    with pytest.raises(ValueError, match="form"):
        rego._value('{"result": [{"expressions": []}]}')


def test_sets_come_out_as_lists_and_an_empty_one_gives_no_reason():
    engine = policy('allow := true\ndeny_reasons contains "odd" if input.n % 2 == 1')

    assert ask(engine, n=2) == {"allow": True, "deny_reasons": []}
    assert decide(ask(engine, n=2)).outcome == "allow"
    assert ask(engine, n=3) == {"allow": True, "deny_reasons": ["odd"]}
    assert decide(ask(engine, n=3)).outcome == "deny"


def test_an_approval_is_read_as_a_requirement():
    engine = policy('approval contains {"reason": "main", "roles": ["lead"], "quorum": 2}')

    decision = decide(ask(engine))

    assert decision.outcome == "approval"
    assert decision.requirements[0].quorum == 2
    assert decision.requirements[0].roles == ("lead",)


def test_each_evaluation_sees_its_own_input_and_the_time_of_its_own():
    engine = policy("x := input.x\nnow := time.now_ns()")

    first, second = ask(engine, x=1), ask(engine)

    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["x"] == 1
    assert "x" not in second
    assert second["now"] > first["now"]


# --- errors


@pytest.mark.parametrize(
    ("body", "call", "message"),
    [
        ("x := 1 / input.n", {"n": 0}, r"policy\.rego:2:\d+: .*: divide by zero$"),
        ("\nx := count(input.n)", {"n": 1}, r"policy\.rego:3:\d+: .*`count` requires"),
        (
            'r := "a" if input.a\nr := "b" if input.b',
            {"a": True, "b": True},
            r"policy\.rego:3:1: .*rule conflicts with rule at policy\.rego:2:1$",
        ),
        ("r := x if some x in input.a", {"a": [1, 2]}, r"policy\.rego:2:1: .*multiple outputs$"),
    ],
)
def test_a_failed_evaluation_says_where_and_why_on_one_line(body, call, message):
    engine = policy(body)

    with pytest.raises(PolicyError, match=message) as failure:
        ask(engine, **call)

    assert failure.value.code == "policy.error"
    assert "backtrace" not in str(failure.value).lower()
    assert "\n" not in str(failure.value)


def test_after_an_error_the_next_answer_is_right():
    engine = policy("x := 1 / input.n")

    with pytest.raises(PolicyError):
        ask(engine, n=0)
    assert ask(engine, n=2) == {"x": 0.5}


def test_all_problems_are_reported_at_once():
    with pytest.raises(PolicyError) as refusal:
        policy("a if nope(1)\nb if http.send({})\ndeny if input.x")

    assert [line.partition(" ")[0] for line in str(refusal.value).splitlines()] == [
        "policy.rego:2:6:",
        "policy.rego:3:6:",
        "policy.rego:4:1:",
    ]


def test_without_the_extra_the_error_gives_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "regorus", None)

    with pytest.raises(ConfigError, match=r"pip install '\.\[rego\]'"):
        policy("allow := true")


def test_the_binding_is_imported_only_when_a_policy_is_loaded():
    code = "import agentguard.policy.rego.engine, sys; sys.exit('regorus' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_python_that_can_not_be_started_is_an_error_not_a_pass(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))

    with pytest.raises(ConfigError, match="can't be started to check the policy"):
        policy("allow := true  # never loaded before")


def test_a_policy_with_letters_beyond_ascii_is_checked_under_any_encoding(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # of the child that tries the policy
    engine = policy('deny_reason := "für\u2028später" if input.x')
    assert ask(engine, x=1) == {"deny_reason": "für\u2028später"}
    with pytest.raises(PolicyError, match=r"policy.rego:3:12: there is no function cuont"):
        policy('other := "für"\nallow if { cuont(input.x) > 1 }')


def test_an_equal_policy_is_tried_once_a_process(monkeypatch, tmp_path):
    policy("allow := true  # twice")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))

    assert ask(policy("allow := true  # twice")) == {"allow": True}


# --- threads


def test_32_threads_get_their_own_answers_at_the_same_time():
    engine = policy("x := input.n * 2\nallow if input.n % 2 == 0")
    start = threading.Barrier(32)

    def work(n: int) -> bool:
        start.wait()
        answers = [ask(engine, n=n + i) for i in range(50)]
        return answers == [
            {"x": 2 * (n + i)} | ({"allow": True} if (n + i) % 2 == 0 else {}) for i in range(50)
        ]

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(work, range(0, 3200, 100)))


def test_a_thread_may_use_more_policies_than_it_keeps():
    engines = [policy(f"x := input.n + {i}") for i in range(MAX_ENGINES_PER_THREAD + 2)]

    for _ in range(2):
        assert [ask(engine, n=1) for engine in engines] == [
            {"x": 1 + i} for i in range(len(engines))
        ]


def test_an_error_dropped_by_another_thread_leaves_nothing_unraisable():
    engine, errors = policy('allow if startswith(input.x, "a")'), []

    def fail() -> None:
        try:
            ask(engine, x=1)
        except PolicyError as error:
            errors.append(error)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert len(errors) == 1
    errors.clear()
    gc.collect()


def test_an_engine_dropped_by_another_thread_leaves_nothing_unraisable():
    # pytest turns an unraisable exception, the binding's way to complain, into a failure.
    engines = [policy("x := input.n  # dropped")]
    used, dropped = threading.Event(), threading.Event()

    def work() -> None:
        ask(engines[0], n=1)
        used.set()
        dropped.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    used.wait(60)
    engines.clear()
    gc.collect()
    dropped.set()
    thread.join()
    gc.collect()
    assert ask(policy("x := input.n  # dropped"), n=2) == {"x": 2}


def test_an_interrupt_at_any_line_leaves_no_native_engine_in_its_traceback():
    """Whoever keeps the exception may be another thread, which may not drop a native engine."""
    engine, native = policy("x := input.n  # interrupted"), type(import_module("regorus").Engine())

    def held_after_interrupt(line: int) -> list[str] | None:
        """What frames hold after an interrupt at that line, None where no line was left."""
        lines = itertools.count(1)

        def trace(frame, event, _argument):
            if frame.f_code.co_filename != rego_engine.__file__:
                return None
            if event == "line" and next(lines) == line:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            ask(engine, n=1)
        except KeyboardInterrupt as interrupt:
            frames = [frame for frame, _line in traceback.walk_tb(interrupt.__traceback__)]
            return [
                f"{frame.f_code.co_name}: {name}"
                for frame in frames
                for name, value in frame.f_locals.items()
                if type(value) is native
            ]
        finally:
            sys.settrace(before)
        return None

    ask(engine, n=1)
    held = list(
        itertools.takewhile(
            lambda one: one is not None, map(held_after_interrupt, itertools.count(1))
        )
    )
    assert len(held) > 10
    assert not any(held), held
    assert ask(engine, n=3) == {"x": 3}


def test_what_a_module_of_the_site_prints_is_no_part_of_the_check(monkeypatch, tmp_path):
    """Python imports it in the child that tries the policy."""
    (tmp_path / "sitecustomize.py").write_text("print('hello\\nyou', end='', flush=True)")
    monkeypatch.syspath_prepend(tmp_path)
    folder, _slash, name = sys.executable.rpartition("/")
    monkeypatch.setattr(sys, "executable", f"{folder}/./{name}")  # a process of its own: trials.py
    assert ask(policy("allow if input.x == 7"), x=7) == {"allow": True}
    with pytest.raises(PolicyError, match="invalid number"):
        policy("x := 01")


@pytest.mark.parametrize(
    ("rule", "stated"),
    [
        ('approval := {"roles": ["a"], "quorum": 2} if input.x', [(("a",), 2)]),
        (
            'approval := {"roles": ["a"]} if input.x\nelse := {"quorum": 3} if input.y',
            [(("a",), 1), (None, 3)],
        ),
        ('approval contains {"roles": {"a", "b"}} if input.x', [(("a", "b"), 1)]),
        ("approval if input.x", [(None, 1)]),
        ("default approval := false", []),
        (
            'approval := {"roles": [input.role], "quorum": 2} if input.x',
            [(None, 2)],
        ),  # at least this
        (
            'approval := {"roles": split(input.x, ","), "reason": sprintf("%v", [1])} if input.x',
            [(None, 1)],
        ),
        ("approval := object.union(input.x, {}) if input.y", [(None, 1)]),
        ('allow if input.demand == {"roles": ["a"]}', []),
    ],
)
def test_the_requirements_that_a_policy_writes_out(rule, stated):
    engine = RegoEngine.from_source(f"package agent.authz\n{rule}\n")
    assert [(one.roles, one.quorum) for one in engine.requirements] == stated
