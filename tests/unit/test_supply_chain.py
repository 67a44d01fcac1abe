"""The files of constraints and the bill of materials: pinned, hashed, whole, without an address."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
OURS = {"agentguard", *(f"agentguard-{name}" for name in ("langchain", "crewai", "demo", "mcp"))}
INTEGRATIONS = {
    "constraints.txt": ("langchain", "demo", "mcp"),
    "constraints-server.txt": (),
    "constraints-crewai.txt": ("crewai",),
}
"""The distributions that each file is for, beside the core."""


SERVER = ("rego", "cedar", "opa", "vault", "tokens", "service", "otlp")
"""The extras for what the agentguard.toml of a guard server may name."""


def extras_of(project, file):
    """The extras that a file has: for CrewAI the engines and exporters, and no demo."""
    extras = project.get("optional-dependencies", {})
    if file == "constraints-server.txt":
        return [extras[name] for name in SERVER]
    left_out = () if file == "constraints.txt" else ("testing", "demo")
    return [needs for extra, needs in extras.items() if extra not in left_out]


@pytest.fixture(params=INTEGRATIONS)
def file(request):
    return request.param


def pinned(file: str) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Each package's lines: the requirement, and its hashes."""
    found: dict[str, list[tuple[Requirement, list[str]]]] = {}
    for line in (ROOT / file).read_text().replace("\\\n", " ").splitlines():
        if line.startswith("#"):
            continue
        said, *hashes = line.split("--hash=")
        requirement = Requirement(said.strip())
        found.setdefault(canonicalize_name(requirement.name), []).append(
            (requirement, [one.strip() for one in hashes])
        )
    return found


def declared(file: str) -> list[Requirement]:
    """What the core and the file's adapter name, with all extras, and the build backend."""
    texts: list[str] = []
    integrations = [ROOT / "integrations" / f"agentguard-{name}" for name in INTEGRATIONS[file]]
    for folder in (ROOT, *integrations):
        document = tomllib.loads((folder / "pyproject.toml").read_text())
        project = document["project"]
        texts += project.get("dependencies", [])
        texts += [one for many in extras_of(project, file) for one in many]
        texts += document["build-system"]["requires"]
    parsed = [Requirement(text) for text in texts]
    return [one for one in parsed if canonicalize_name(one.name) not in OURS]


def test_each_line_is_one_version_with_hashes_and_names_no_place(file):
    lines = [line for many in pinned(file).values() for line in many]
    assert len(lines) > 45
    for requirement, hashes in lines:
        assert re.fullmatch(r"==[0-9][^,*]*", str(requirement.specifier)), requirement
        assert requirement.url is None
        assert hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), requirement
    text = (ROOT / file).read_text()
    assert "://" not in text
    assert "index" not in text


def test_what_is_declared_is_there_within_its_bounds(file):
    lines = pinned(file)
    for wanted in declared(file):
        versions = [
            next(iter(requirement.specifier)).version
            for requirement, _hashes in lines[canonicalize_name(wanted.name)]
        ]
        assert all(map(wanted.specifier.contains, versions)), wanted


def test_what_these_need_is_there_as_well(file):
    """By what the packages say that are installed here."""
    lines = pinned(file)
    looked_at = 0
    extras = {str(canonicalize_name(one.name)): {"", *one.extras} for one in declared(file)}
    for name in lines:
        try:
            needs = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue  # for another Python or platform
        looked_at += 1
        for needed in needs:
            marker = needed.marker
            if marker is None or any(
                marker.evaluate({"extra": extra}) for extra in extras.get(name, {""})
            ):
                assert canonicalize_name(needed.name) in lines, f"{name} needs {needed}"
    assert looked_at > 40


def test_a_server_has_the_versions_of_the_others():
    whole = pinned("constraints.txt")
    for name, lines in pinned("constraints-server.txt").items():
        assert [str(one.specifier) for one, _hashes in lines] == [
            str(one.specifier) for one, _hashes in whole[name]
        ]
        assert [hashes for _one, hashes in lines] == [hashes for _one, hashes in whole[name]]


@pytest.fixture
def clone(tmp_path) -> Path:
    """A checkout with its lock, and the constraints that are made of this very lock."""
    if not (ROOT / "uv.lock").exists():
        pytest.skip("uv has not locked this checkout")
    for name in ("scripts", "integrations"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "uv.lock", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    if (ROOT / ".uv").exists():
        (tmp_path / ".uv").symlink_to(ROOT / ".uv")
    # the file for CrewAI, which comes after the other one, needs a lock that is not here
    run(tmp_path / "scripts" / "constraints", "--frozen")
    return tmp_path


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script without the network."""
    return subprocess.run(
        words, env={**os.environ, "UV_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )


def bill_of(clone):
    """The bill of materials that a checkout makes."""
    made = run(clone / "scripts" / "sbom")
    assert (made.returncode, made.stderr) == (0, "")
    assert [one.name for one in (clone / "dist").iterdir()] == ["agentguard.cdx.json"]
    return json.loads((clone / "dist" / "agentguard.cdx.json").read_text())


def test_the_bill_of_materials_has_what_is_pinned(clone):
    components = {canonicalize_name(one["name"]) for one in bill_of(clone)["components"]}
    assert components - OURS == set(pinned(str(clone / "constraints.txt")))
    assert components >= {canonicalize_name(one.name) for one in declared("constraints.txt")}


@pytest.mark.slow("the schema reads its grammar of addresses for seconds")
def test_the_bill_of_materials_is_valid(clone):
    document = bill_of(clone)
    schema = pytest.importorskip("cyclonedx.schema", reason="run scripts/_uv sync")
    validation = pytest.importorskip("cyclonedx.validation.json")
    valid = validation.JsonStrictValidator(schema.SchemaVersion.V1_5).validate_str
    # the schema compares each file with each other one: of all components that takes a minute
    with_files = [one for one in document["components"] if "externalReferences" in one][:2]
    assert len(with_files) == 2
    assert valid(json.dumps({**document, "components": with_files, "dependencies": []})) is None
    for component in document["components"]:
        component.pop("externalReferences", None)
    assert valid(json.dumps(document)) is None
    assert valid(json.dumps({"specVersion": "1.5", "bomFormat": "another"})) is not None
    no_address = [{"type": "website", "url": "https://a b"}]
    assert valid(json.dumps({**document, "externalReferences": no_address})) is not None


def test_no_bill_of_materials_is_made_of_a_lock_that_is_not_what_is_pinned(clone):
    """The lock of a clone is made on another day, and may have other versions by then."""
    constraints = clone / "constraints.txt"
    constraints.write_text(constraints.read_text().replace("idna==", "idna==0."))
    made = run(clone / "scripts" / "sbom")
    assert (made.returncode, made.stdout) == (1, "")
    assert "< idna==0." in made.stderr
    assert "scripts/constraints resolves anew" in made.stderr
    assert not (clone / "dist").exists()
