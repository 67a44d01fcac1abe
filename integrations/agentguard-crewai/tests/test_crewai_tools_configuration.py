"""What the configuration says of a tool: resource, attributes, redaction, and the tool's name."""

from __future__ import annotations

import sys
from hashlib import sha256
from types import ModuleType
from typing import Any

import pytest
from crewai.tools import tool
from crewai.tools.base_tool import Tool
from crewai_probes import Pathed

from agentguard import ConfigError


def test_the_configuration_names_resource_and_attributes(make_bench, probe):
    table = {"resource": "file:{path}", "attributes": {"where": "path"}, "requires": ["a"]}
    bench = make_bench(tools={"read_file": table})
    bench.only(lambda given: given["where"] == "a" and given["resource"] == "file:a", "no")
    steps = ("read_file", {"path": "b"}), ("read_file", {"path": "a"})
    bench.run([probe.read_file], *steps)
    assert probe.ran == ["a"]
    assert [document["resource"] for document in bench.made.policy_inputs] == ["file:b", "file:a"]


def test_facts_are_looked_up_with_what_is_bound(make_bench, probe, monkeypatch):
    module: Any = ModuleType("crewai_facts")
    module.asked = []

    def facts(values):
        module.asked.append(dict(values))
        if values["path"] == "lost":
            raise RuntimeError("hunter2")
        return {"size": len(values["path"])}

    module.facts = facts
    monkeypatch.setitem(sys.modules, "crewai_facts", module)
    look_up = {"look_up": "crewai_facts:facts", "gives": ["size"]}
    bench = make_bench(tools={"read_file": {"facts": look_up}})
    bench.only(lambda given: given["size"] < 3, "it is too long")
    steps = [("read_file", {"path": path}) for path in ("ab", "long", "lost")]
    output = bench.run([probe.read_file], *steps)
    assert probe.ran == ["ab"]
    assert module.asked == [{"path": "ab"}, {"path": "long"}, {"path": "lost"}]
    assert [one.failure.code for one in output.tool_failures] == ["policy.denied", "facts.failed"]
    assert "hunter2" not in str(output.messages)


def test_what_is_redacted_is_not_kept(make_bench):
    received = []

    @tool
    def login(user: str, password: str) -> str:
        """Log in."""
        received.append(password)
        return "a token"

    bench = make_bench(redact={"login": ["/args/password", "/result"]})
    output = bench.run([login], ("login", {"user": "ada", "password": "hunter2"}))
    assert received == ["hunter2"]
    assert "a token" in str(output.messages)
    assert bench.made.policy_inputs[0]["args"]["password"] == "hunter2"
    (call,) = bench.calls
    assert call.arguments == {"user": "ada", "password": {"$redacted": True}}


NAMES = {
    "Read File": "read_file",
    "ReadFile": "read_file",
    "read-file": "read_file",
    "HTTPReader": "http_reader",
    "Größe lesen": "groe_lesen",
    "lire l'été": "lire_lete",
    "x" * 80: "x" * 55 + "_" + sha256(b"x" * 80).hexdigest()[:8],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_tool_is_known_by_the_name_that_models_have_for_it(bench, name):
    ran = []

    def read(path: str) -> str:
        ran.append(path)
        return "read"

    one = Tool(name=name, description="Read.", func=read, args_schema=Pathed)
    known = NAMES[name]
    bench.run([one], (known, {"path": "a"}))
    assert ran == ["a"]
    (call,) = bench.calls
    assert call.tool == known
    assert bench.made.policy_inputs[0]["tool"]["name"] == known


def test_a_tool_that_no_model_can_name_is_an_error_before_anything_runs(bench, probe):
    one = Tool(name="読む", description="Read.", func=len, args_schema=Pathed)
    with pytest.raises(ConfigError, match="a model calls a tool by a name of a-z"):
        bench.run([probe.read_file, one], ("read_file", {"path": "a"}))
    assert probe.ran == []


def test_of_two_tools_with_one_name_the_one_that_runs_is_on_record(bench):
    ran = []

    def one(path: str) -> str:
        ran.append(f"one {path}")
        return "from one"

    def other(path: str) -> str:
        ran.append(f"other {path}")
        return "from the other"

    class Longer(Pathed):
        limit: int = 3

    tools = [
        Tool(name="Read It", description="One.", func=one, args_schema=Pathed),
        Tool(
            name="read_it",
            description="Other.",
            func=lambda path, limit: other(path),
            args_schema=Longer,
        ),
    ]
    steps = [("read_it", {"path": "a"}), ("read_it_2", {"path": "b"})]
    bench.run(tools, *(steps if bench.way.native else steps[:1]))
    # in text CrewAI takes the first, natively it offers the other as `read_it_2`
    calls = bench.calls
    both = [("read_it", {"path": "a"}), ("read_it_2", {"path": "b", "limit": 3})]
    assert [(call.tool, call.arguments) for call in calls] == both[: len(ran)]
    assert ran == ["one a", "other b"][: 2 if bench.way.native else 1]
    assert len({document["tool"]["schema_sha256"] for document in bench.made.policy_inputs}) == len(
        ran
    )
