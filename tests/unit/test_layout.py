"""The shape of the code base: layers, names, what the distributions declare, no key material.

The import contracts stand in ``pyproject.toml``. They are run here on the real tree and on copies
that break them, so that a contract that has stopped looking is noticed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, requires, version
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ROOT = Path(__file__).parents[2]
SOURCES = [
    ROOT / "src",
    ROOT / "integrations" / "agentguard-crewai" / "src",
    ROOT / "integrations" / "agentguard-demo" / "src",
    ROOT / "integrations" / "agentguard-langchain" / "src",
    ROOT / "integrations" / "agentguard-mcp" / "src",
]
ADAPTER = Path("integrations", "agentguard-langchain", "src", "agentguard_langchain")
MCP = Path("integrations", "agentguard-mcp", "src", "agentguard_mcp")
MODULES = sorted(path for source in SOURCES for path in source.rglob("*.py"))
NOT_OURS = {".git", ".venv", ".environments", ".uv", "uv.lock", "dist", "build"}
PRIVATE_KEY = re.compile(rb"-{5}BEGIN [A-Z ]*PRIVATE KEY-{5}(\\n|\s)+[A-Za-z0-9+/=]{40,}")


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of ``tree/pyproject.toml`` on the packages that stand in ``tree``."""
    path = os.pathsep.join(str(tree / source.relative_to(ROOT)) for source in SOURCES)
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--no-logo"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_import_contracts_hold():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Contracts: 6 kept, 0 broken." in result.stdout


def test_each_broken_contract_is_found(tmp_path):
    planted = {
        "errors.py": ["import agentguard.signing.keys"],
        "stray.py": [],
        "signing/dsse.py": ["import secrets", "import os"],
        "storage/__init__.py": ["import langchain_core.tools"],
        "cli/policy/suite.py": ["from agentguard.policy.rego.gate import check"],
    }
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for source in SOURCES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, tmp_path / source.relative_to(ROOT), ignore=ignore)
    for module, statements in planted.items():
        with (tmp_path / "src" / "agentguard" / module).open("a", encoding="utf-8") as file:
            file.writelines(f"\n{statement}\n" for statement in statements)
    with (tmp_path / ADAPTER / "scalars.py").open("a", encoding="utf-8") as file:
        file.write("\nfrom agentguard.errors import EncodeError as Error\n")
    with (tmp_path / MCP / "messages.py").open("a", encoding="utf-8") as file:
        file.write("\nfrom agentguard.signing import keys\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Contracts: 0 kept, 6 broken." in result.stdout
    for found in (
        "- agentguard.errors -> agentguard.signing.keys",
        "- agentguard.stray\n",
        "- agentguard.signing.dsse -> secrets",
        "- agentguard.signing.dsse -> os",
        "- agentguard.storage -> langchain_core",
        "- agentguard.cli.policy.suite -> agentguard.policy.rego.gate",
        "- agentguard_langchain.scalars -> agentguard.errors",
        "- agentguard_mcp.messages -> agentguard.signing",
    ):
        assert re.search(found.replace("- ", r"-\s+"), result.stdout), found


def test_the_contract_of_adapters_forbids_all_else_of_the_core():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {one["id"]: one for one in project["tool"]["importlinter"]["contracts"]}
    inner = {
        path.stem for path in (ROOT / "src" / "agentguard").glob("[a-z]*") if path.stem != "py"
    }
    allowed = {"adapters", "testing"}
    forbidden = {f"agentguard.{name}" for name in inner - allowed}
    assert {*contracts["adapters"]["forbidden_modules"]} == forbidden
    assert {*contracts["mcp"]["forbidden_modules"]} == forbidden - {"agentguard.proof"}


def test_each_module_says_what_it_is_and_has_a_noun_of_its_own():
    texts = {path: path.read_text(encoding="utf-8") for path in MODULES}
    silent = [path for path, text in texts.items() if not re.match(r'r?"""\S', text)]
    assert silent == [], "begin with a paragraph: what lives here and what does not"
    vague = re.compile(r"(^|_)(utils?|helpers?|common|misc)$")
    assert [path for path in MODULES if vague.search(path.stem)] == []
    named = re.compile(r"^ *class (\w+(?:Manager|Handler|Helper))\b", re.MULTILINE)
    classes = {path: named.findall(text) for path, text in texts.items()}
    assert {path: names for path, names in classes.items() if names} == {}


def test_the_distributions_declare_what_the_documentation_promises():
    names = ["agentguard-langchain", "agentguard-demo", "agentguard-mcp"]
    if sys.version_info < (3, 14):  # as far as CrewAI itself goes
        names.append("agentguard-crewai")
    adapters = set(map(version, names))
    assert adapters == {version("agentguard")}
    commands = {
        command.name: command.value for command in entry_points(group="agentguard.commands")
    }
    assert commands["demo"] == "agentguard_demo:command"
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    assert scripts["agentguard"] == "agentguard.cli.commands:main"
    rego = [line for line in requires("agentguard") or [] if line.startswith("gordon-to-regorus")]
    # Only behind the extra, and pinned exactly: ADR 0002.
    assert rego
    assert all(line.startswith("gordon-to-regorus==0.13.0; extra ==") for line in rego)


def test_the_packages_are_typed():
    for source in SOURCES:
        (package,) = [path for path in source.iterdir() if (path / "__init__.py").exists()]
        assert (package / "py.typed").exists()


def test_the_repository_holds_no_private_key():
    key = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    assert PRIVATE_KEY.search(key), "the pattern must find a key, or it proves nothing"
    assert [path for path in repository_files() if PRIVATE_KEY.search(path.read_bytes())] == []


def repository_files():
    for folder, folders, names in os.walk(ROOT):
        # Pruned in place, as os.walk asks for.
        folders[:] = [name for name in folders if name not in NOT_OURS and "cache" not in name]
        yield from (Path(folder, name) for name in names if name not in NOT_OURS)


OURS = re.compile(r"agentguard(?:-\w+)*(?:\[[\w,]*\])?(?:[=<>~!]=?.*)?", re.ASCII)
INSTALLED = re.compile(r"(?:pip|uv|tool|pipx) (?:install|add|run|inject)((?: [^\s`|;&)]+)+)")


def installed_by_name(text: str) -> list[str]:
    """Which of our distributions a command in ``text`` would look up in an index, by its name."""
    joined = re.sub(r"\"\n\s*f?\"|\\\n", "", text)  # a message or a command on several lines
    arguments = [a for command in INSTALLED.findall(joined) for a in command.split()]
    return [argument for argument in arguments if OURS.fullmatch(argument.strip("'\",."))]


def test_nobody_is_told_to_install_a_distribution_by_its_name():
    """Nothing is published, so anybody could register the name in an index."""
    texts = {
        path: path.read_text(encoding="utf-8", errors="replace")
        for path in repository_files()
        if path.suffix in {".md", ".py", ".toml", ".yml", ".yaml", ".sh", ".cfg", ""}
        and path != Path(__file__)
    }
    found = {str(path.relative_to(ROOT)): installed_by_name(text) for path, text in texts.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_an_installation_by_name_is_found():
    refused = [
        "pip install agentguard-langchain",
        "run `pip install agentguard[rego]` first",
        "uv add 'agentguard==0.1.0' httpx",
        "uv pip install --find-links dist agentguard agentguard-demo",
        '"needs: pip install "\n    "agentguard-crewai"',
    ]
    assert [bool(installed_by_name(text)) for text in refused] == [True] * len(refused)
    allowed = [
        "pip install '.[rego]' ./integrations/agentguard-langchain",
        "uv pip install dist/agentguard-*.whl",
        "pip install langchain-openai",
        "the adapter agentguard-langchain is installed",
    ]
    assert [installed_by_name(text) for text in allowed] == [[]] * len(allowed)
