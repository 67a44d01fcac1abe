"""Which modules a program loads: what it does not use costs it no time at its start.

Each program is a process of its own. Nothing here measures a time: ``benchmarks/startup.py`` does.
"""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

import agentguard
from agentguard import adapters, telemetry

COMMAND_LINE = ("click", "rich", "agentguard.cli")
EVENT_LOOP = ("asyncio", "agentguard.flow.drive_async")
TRACES = ("opentelemetry", "agentguard.telemetry.tracing", "agentguard.telemetry.setup")
OPENSSH = ("bcrypt", "cryptography.hazmat.primitives.serialization")
DISK = ("sqlite3", "tomllib", "agentguard.domain.domain", "agentguard.domain.keystore")
ENGINES = (
    "regorus",
    "cedarpy",
    "httpcore",
    "keyring",
    "agentguard.policy.cedar",
    "agentguard.policy.function",
    "agentguard.policy.opa",
    "agentguard.policy.rego",
)
READERS = ("agentguard.audit.verify", "agentguard.audit.evidence", "agentguard.domain.verify")
OTHERS = ("email", "importlib.metadata", "ssl", "subprocess", "tempfile", "zipfile", "pydantic")

RARE = (*COMMAND_LINE, *EVENT_LOOP, *TRACES, *OPENSSH, *DISK, *ENGINES, *READERS, *OTHERS)
"""What a program that makes guarded calls in memory does without, or a part of it."""

IN_MEMORY = """
from contextlib import suppress
from agentguard import Decision, Denied, Guard
from agentguard.errors import CallError

def decide(asked):
    return Decision.allow() if asked["args"]["x"] else Decision.deny("no")

guard = Guard.ephemeral(decide)
agent = guard.new_agent("reader")

@guard.tool
def read(x: int) -> int:
    return 1 // (x - 1)

"""
CALL = "agent.call(read, 2)\n"
HELP = """
import sys
from contextlib import suppress

from agentguard.cli.commands import main

sys.argv = ["agentguard", *{!r}.split(), "--help"]
with suppress(SystemExit):
    main()
"""


def run(program: str, **options) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, **options
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()[-1]


@cache
def loaded(program: str) -> frozenset[str]:
    """The modules that there are at the end of a program."""
    return frozenset(
        json.loads(run(f"{program}\nimport json, sys; print(json.dumps([*sys.modules]))"))
    )


def of(packages: Iterable[str], modules: Iterable[str]) -> set[str]:
    """The packages of which anything is among the modules."""
    return {
        package
        for package in packages
        if any(module == package or module.startswith(f"{package}.") for module in modules)
    }


# --- the package ---------------------------------------------------------------------------------


def test_the_package_alone_loads_nothing_else_of_agentguard():
    modules = loaded("import agentguard")
    ours = {name for name in modules if name.startswith("agentguard")}
    assert ours == {"agentguard", "agentguard.errors"}
    assert of(["cryptography", "dataclasses", *RARE], modules) == set()


def test_the_adapters_package_alone_loads_nothing_else_of_agentguard():
    modules = loaded("from agentguard import adapters")
    ours = {name for name in modules if name.startswith("agentguard")}
    assert ours == {"agentguard", "agentguard.adapters", "agentguard.errors"}
    assert of(["cryptography", "dataclasses", *RARE], modules) == set()


def test_a_framework_s_version_is_checked_before_a_guard_is_loaded():
    modules = loaded("from agentguard.adapters import require_supported")
    ours = {name for name in modules if name.startswith("agentguard.adapters.")}
    assert ours == {"agentguard.adapters.framework_versions"}
    assert of(["cryptography", "agentguard.guard"], modules) == set()


def test_an_error_is_caught_without_a_guard():
    modules = loaded("from agentguard import AgentguardError")
    assert of(["cryptography", "agentguard.guard.guard", *RARE], modules) == set()


def test_the_guard_loads_nothing_that_is_rarely_used():
    modules = loaded("from agentguard import Guard")
    assert "agentguard.guard.guard" in modules
    assert of(RARE, modules) == set()


def test_a_guarded_call_in_memory_loads_its_engine_sqlite_and_no_more():
    # the version that is recorded with the policy comes from the distribution's metadata
    of_version = {"importlib.metadata", "email", "zipfile", "tempfile"}
    allowed = {"agentguard.policy.function", "sqlite3", *of_version}
    assert of(RARE, loaded(IN_MEMORY + CALL)) <= allowed


OPENSSH_KEY = """
from agentguard import Ed25519Signer
Ed25519Signer.from_seed(bytes(32)).public_key.openssh()
"""
PROVED = """
with suppress(CallError):
    guard.prove("0" * 32)
"""
ACALL = "import asyncio\nasyncio.run(agent.acall(read, 2))"
ASKED = "import os\nos.environ['OTEL_PYTHON_TRACER_PROVIDER'] = 'sdk_tracer_provider'\n"


@pytest.mark.parametrize(
    ("program", "package"),
    [
        (f"{IN_MEMORY}{ACALL}", "agentguard.flow.drive_async"),
        (f"{IN_MEMORY}guard.verify()", "agentguard.domain.verify"),
        (f"{IN_MEMORY}{PROVED}", "agentguard.audit.prove"),
        (IN_MEMORY, "agentguard.policy.function"),
        (f"{ASKED}{IN_MEMORY}", "opentelemetry.trace"),
        (f"{IN_MEMORY}import opentelemetry.trace\n{CALL}", "agentguard.telemetry.tracing"),
        ("from agentguard import verify_evidence", "agentguard.audit.evidence"),
        ("from agentguard import Guard; from agentguard.domain import domain", "sqlite3"),
        ("from agentguard.telemetry import AgentSpan", "opentelemetry.trace"),
        (OPENSSH_KEY, "bcrypt"),
        (HELP.format(""), "click"),
    ],
)  # fmt: skip
def test_what_is_used_is_loaded(program, package):
    assert of([package], loaded(program)) == {package}


# --- a call: it loads nothing at all, so that it can be made after a fork


WATCHED = """
import sys
before = {*sys.modules}
"""
CALLS = """
from contextlib import suppress
for x in (2, 1, 0):
    with suppress(ZeroDivisionError, Denied):
        agent.call(read, x)
with guard.delegate("user:alice", scope=["pr:write"]):
    agent.call(read, 2)
"""
AFTER = "print({*sys.modules} - before)\n"
FORKED = """
import os
before = {*sys.modules}
if os.fork() == 0:
    agent.call(read, 2)
    print({*sys.modules} - before, flush=True)
    os._exit(0)
os.wait()
"""
TOML = """
trust_domain = "acme.example"
state = "state"
anchor = ""

[policy]
engine = "function"
path = "policy:decide"

[agents.reader]
type = "assistant"
authority = "own"
max_scope = []
"""
POLICY = """
from agentguard import Decision

def decide(_asked):
    return Decision.allow()
"""
ON_DISK = """
from datetime import UTC, datetime
from functools import partialmethod
from pathlib import Path
from agentguard import Ed25519Signer, Guard
from agentguard.domain import config
from agentguard.domain import domain
Ed25519Signer.to_openssh = partialmethod(Ed25519Signer.to_openssh, rounds=1)
domain.found(config.load(Path("agentguard.toml")), b"a passphrase", now=datetime.now(UTC))
guard = Guard.open(passphrase=b"a passphrase")
agent = guard.new_agent("reader")

@guard.tool
def read(x: int) -> int:
    return x
"""


def test_a_guarded_call_loads_nothing():
    assert run(IN_MEMORY + WATCHED + CALLS + AFTER) == "set()"


def test_a_guarded_call_on_a_log_on_disk_loads_nothing_not_even_in_a_fork(tmp_path):
    (tmp_path / "agentguard.toml").write_text(TOML)
    (tmp_path / "policy.py").write_text(POLICY)
    script = ON_DISK + WATCHED + "agent.call(read, 1)\n" + FORKED
    assert run(script, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}) == "set()"


def test_what_a_tool_loads_is_seen():
    tool = IN_MEMORY.replace("return 1", "import wave; return 1")
    assert "wave" in run(tool + WATCHED + CALLS + AFTER)


# --- the command line ----------------------------------------------------------------------------


TREE = {"agentguard.cli.commands"}
"""The table of commands, which loads a command when the command is called."""


def commands_loaded(modules: Iterable[str]) -> set[str]:
    return {name for name in modules if name.startswith("agentguard.cli.")}


def test_the_first_help_page_loads_no_command():
    modules = loaded(HELP.format(""))
    assert commands_loaded(modules) == TREE
    unwanted = (*EVENT_LOOP, *TRACES, *OPENSSH, *DISK, *ENGINES, *READERS, "rich", "cryptography")
    assert of([*unwanted, "pydantic", "agentguard.domain.config"], modules) == set()


def test_a_groups_help_page_loads_none_of_its_commands():
    modules = loaded(HELP.format("audit"))
    assert commands_loaded(modules) == TREE
    assert of(["rich", "cryptography", "pydantic", "importlib.metadata"], modules) == set()


def test_a_commands_help_page_loads_no_other_command():
    modules = loaded(HELP.format("audit verify"))
    ours = commands_loaded(modules)
    others = ("show", "tail", "listing", "export", "evidence", "resolve")
    assert "agentguard.cli.audit.verify" in ours
    assert ours.isdisjoint({f"agentguard.cli.audit.{name}" for name in others})
    assert of(["agentguard.cli.setup", "agentguard.cli.policy"], ours) == set()
    unwanted = (*EVENT_LOOP, *TRACES, *OPENSSH, *ENGINES, "rich.console", "agentguard.guard.guard")
    assert of([*unwanted, "pydantic", "importlib.metadata"], modules) == set()


# --- names that are imported at their first use ---------------------------------------------------

LAZY = pytest.mark.parametrize(
    "package", [agentguard, adapters, telemetry], ids=lambda package: package.__name__
)


@pytest.mark.parametrize(
    "package", [agentguard, adapters, telemetry], ids=lambda package: package.__name__
)
def test_each_public_name_is_there_for_people_and_for_tools(package):
    tree = ast.parse(Path(inspect.getfile(package)).read_text("utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    lines = [line for line in block.body if isinstance(line, ast.ImportFrom)]
    declared = {name.asname or name.name for line in lines for name in line.names}
    assert declared == {*package._HOMES}
    assert declared <= {*package.__all__} <= {*dir(package)}
    everything: dict[str, object] = {}
    exec(f"from {package.__name__} import *", everything)  # noqa: S102
    assert {*package.__all__} <= {*everything}
    for name in declared:
        assert getattr(package, name) is everything[name]
        assert getattr(package, name) is vars(package)[name]  # looked up once


@pytest.mark.parametrize(
    "package", [agentguard, adapters, telemetry], ids=lambda package: package.__name__
)
def test_a_name_that_is_misspelt_is_no_attribute(package):
    with pytest.raises(AttributeError, match="has no attribute 'Gaurd'"):
        package.Gaurd  # noqa: B018
    assert not hasattr(package, "_private")


# --- telemetry, which is silent until somebody imports OpenTelemetry ------------------------------

LATER = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
agent.call(read, 2)
print([span.name for span in exporter.get_finished_spans()])
"""


def test_an_sdk_that_is_set_up_after_the_first_call_gets_the_next_one():
    assert run(IN_MEMORY + CALL + LATER) == "['execute_tool read']"
