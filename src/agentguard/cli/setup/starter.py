"""What ``agentguard init`` puts beside the keys and the log: a configuration, a policy, a project.

A starter is a set of templates of ``template/``. The plain one has a policy and its tests;
``--langgraph``, ``--crewai`` and ``--fastapi`` make a small project that runs at once, offline. The
names of Python's templates end in ``.txt``: they are no modules of agentguard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

POLICY: Final = Path("policies", "authz.rego")
CASES: Final = Path("policies", "authz_test.toml")

_LANGCHAIN: Final = (
    "pip install . ./integrations/agentguard-langchain",
    ("agentguard_langchain", "langchain", "langgraph"),
)
_CREWAI: Final = (
    "pip install . ./integrations/agentguard-crewai",
    ("agentguard_crewai", "crewai"),
)
_SERVER: Final = ("pip install 'fastapi>=0.120,<1' 'uvicorn>=0.38,<1'", ("fastapi", "uvicorn"))


class Starter(NamedTuple):
    """The templates of the files by path, and the template of the tables in agentguard.toml.

    ``purposes`` says of each file what it is. ``packages`` has a command that installs packages,
    with the modules that are missing without them. ``runs`` are the commands that run the project.
    """

    tables: str
    templates: Mapping[Path, str]
    purposes: Mapping[Path, str]
    packages: tuple[tuple[str, tuple[str, ...]], ...] = ()
    runs: tuple[str, ...] = ()

    def content(self, path: Path) -> str:
        """Return the text of one of the files."""
        return template(self.templates[path])

    def missing(self) -> Iterator[str]:
        """Yield a command for each set of packages that is not installed here."""
        for command, modules in self.packages:
            if any(find_spec(module) is None for module in modules):
                clone = "    # in a clone of the project" if "./" in command else ""
                yield f"{command}{clone}"


def template(name: str) -> str:
    """Return the text of a template."""
    place = files("agentguard.cli.setup") / "template"
    return place.joinpath(*name.split("/")).read_text(encoding="utf-8")


def _project(
    kind: str,
    modules: Mapping[str, tuple[str, str]],
    packages: tuple[tuple[str, tuple[str, ...]], ...],
    *runs: str,
) -> Starter:
    """Make a starter of ``modules``: by name, the folder of its template and its purpose."""
    purposes = {Path(f"{name}.py"): what for name, (_folder, what) in modules.items()}
    templates = {
        Path(f"{name}.py"): f"{folder}/{name}.py.txt" for name, (folder, _what) in modules.items()
    }
    return Starter(
        f"{kind}/agents.toml",
        {POLICY: f"{kind}/authz.rego", CASES: f"{kind}/authz_test.toml", **templates},
        {
            POLICY: "the policy: which tool calls run",
            CASES: "test cases of the policy, for agentguard policy test",
            **purposes,
        },
        packages,
        runs,
    )


PLAIN: Final = Starter(
    "agents.toml",
    {POLICY: "authz.rego", CASES: "authz_test.toml"},
    {
        POLICY: "the policy, which allows reads and denies every other call",
        CASES: "test cases of the policy, for agentguard policy test",
    },
)

_AGENT: Final = {
    "tools": ("langgraph", "the tools: plain functions"),
    "model": ("langgraph", "the model: a script; one line there names a real one"),
    "agent": ("langgraph", "the agent, whose tools are guarded"),
}

PROJECTS: Final[Mapping[str, Starter]] = {
    "langgraph": _project("langgraph", _AGENT, (_LANGCHAIN,), "python agent.py"),
    "crewai": _project(
        "crewai",
        {
            "tools": ("crewai", "the tools: plain CrewAI tools"),
            "model": ("crewai", "the models: scripts; one line there names a real one"),
            "crew": ("crewai", "the crew, whose agents are guarded"),
        },
        (_CREWAI,),
        "python crew.py",
    ),
    "fastapi": _project(
        "langgraph",
        {
            **_AGENT,
            "web": ("fastapi", "the web application: each request acts for its user"),
            "try_it": ("fastapi", "starts the application, and asks it as two users"),
        },
        (_LANGCHAIN, _SERVER),
        "python try_it.py",
        "uvicorn web:app",
    ),
}
"""The projects by the name of their option."""
