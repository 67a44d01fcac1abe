"""What would be published: the distributions are built, and looked into.

Each declares what its code imports, and no more; its source distribution has what its long
description links to, and no tests.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXTRAS = (
    *("rego", "opa", "cedar", "keyring", "otlp", "testing", "tokens", "vault"),
    *("fastapi", "httpx", "requests", "sdk", "serve", "service"),
)
BROUGHT = {"agentguard_mcp": {"crewai", "pydantic"}}
"""What a module imports that works only where another distribution of the project brings it."""

FOLDERS = {
    "agentguard": ROOT,
    "agentguard_crewai": ROOT / "integrations" / "agentguard-crewai",
    "agentguard_demo": ROOT / "integrations" / "agentguard-demo",
    "agentguard_langchain": ROOT / "integrations" / "agentguard-langchain",
    "agentguard_mcp": ROOT / "integrations" / "agentguard-mcp",
}
NEWER = {"annotationlib"}
"""Modules of Python itself that only newer versions have."""

ELSEWHERE = {
    "opentelemetry": "opentelemetry-api",
    "opentelemetry.exporter": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "regorus": "gordon-to-regorus",
}
"""Distributions that are not called as what they hold; of several in one package, its parts."""


@dataclass(frozen=True)
class Built:
    """One distribution: its package's name, what its files hold, and what it declares."""

    package: str
    source: dict[str, str]
    wheel: dict[str, str]

    @property
    def requirements(self) -> list[Requirement]:
        (metadata,) = [text for path, text in self.wheel.items() if path.endswith("/METADATA")]
        return [*map(Requirement, message_from_string(metadata).get_all("Requires-Dist", []))]

    def needs(self, extra: str = "") -> set[str]:
        """The distributions that are needed with an extra, or without any."""
        return {
            canonicalize_name(needed.name)
            for needed in self.requirements
            if needed.marker is None or needed.marker.evaluate({"extra": extra})
        }

    def imports(self) -> set[str]:
        """The distributions that the modules import."""
        return {
            canonicalize_name(ELSEWHERE.get(name, name))
            for path, text in self.wheel.items()
            if path.endswith(".py")
            for name in imported(ast.parse(text))
            if name not in {*sys.stdlib_module_names, *NEWER, self.package}
        }


def imported(tree: ast.AST) -> Iterator[str]:
    """The packages that a module imports, at any depth."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name.partition(".")[0] for name in names)
            case ast.ImportFrom(module=str(module), level=0):
                first, _, rest = module.partition(".")
                part = f"{first}.{rest.partition('.')[0]}"
                yield part if part in ELSEWHERE else first
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(str(name))]):
                yield name


def texts_of_wheel(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def texts_of_source(path: Path) -> dict[str, str]:
    """By their paths within the one folder that a source distribution is."""
    found: dict[str, str] = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is not None:
                found[member.name.partition("/")[2]] = file.read().decode()
    return found


@pytest.fixture(scope="module", params=FOLDERS)
def built(request, tmp_path_factory) -> Built:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    folder = FOLDERS[request.param]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Built(request.param, texts_of_source(source), texts_of_wheel(wheel))


def test_what_the_code_imports_is_declared_and_no_more(built):
    declared = set[str]().union(*(built.needs(extra) for extra in EXTRAS))
    assert declared | BROUGHT.get(built.package, set()) == built.imports()


def test_the_extra_demo_brings_the_demo_and_nothing_else(built):
    expected = {"agentguard-demo"} if built.package == "agentguard" else set[str]()
    assert built.needs("demo") - built.needs() == expected


def test_a_security_library_has_no_upper_bound(built):
    bounds = {needed.name: str(needed.specifier) for needed in built.requirements}
    assert bounds.get("cryptography", ">=50") == ">=50"


def test_the_source_has_what_its_readme_links_to_and_no_tests(built):
    files = set(built.source)
    assert {"README.md", "LICENSE", "pyproject.toml"} <= files
    links = re.findall(r"\]\(([^)#]+)", built.source["README.md"])
    within = [link.rstrip("/") for link in links if "://" not in link]
    folders = {str(folder) for file in files for folder in PurePosixPath(file).parents}
    assert [link for link in within if link not in files | folders] == []
    assert [file for file in files if "tests" in PurePosixPath(file).parts] == []
    if built.package == "agentguard":
        assert {
            "CHANGELOG.md",
            "docs/explanation/architecture.md",
            "docs/img/trace.svg",
            "docs/timeline.svg",
        } <= files


def test_the_wheel_has_the_package_alone(built):
    tops = {PurePosixPath(path).parts[0] for path in built.wheel}
    (described,) = tops - {built.package}
    assert described.endswith(".dist-info")
    assert f"{built.package}/py.typed" in built.wheel
