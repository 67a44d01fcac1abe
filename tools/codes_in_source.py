"""Find the reason codes that the source uses, in its syntax trees: for ``scripts/reason-codes``."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path

SOURCES = (
    "src/agentguard",
    "integrations/agentguard-crewai/src",
    "integrations/agentguard-demo/src",
    "integrations/agentguard-langchain/src",
    "integrations/agentguard-mcp/src",
)
CODE = re.compile(r"[a-z0-9]+\.(?!(?:json|lock|next|py|rego|toml)\Z)[a-z_]+\Z")  # no file's name
# Not codes, though they look like some.
OTHERS = {
    "approval.decided",  # an event of telemetry, as the next two
    "approval.requested",
    "policy.decision",
    "forge.visibility",
    "json.patch",
    "system.posix_acl_access",
    "tool.name",  # of OpenInference's spans
    "trust.unannounced",
}


def used(root: Path, known: Collection[str]) -> set[str]:
    """Return every code that the source below ``root`` uses; ``known`` are the codes so far."""
    files = [file for source in SOURCES for file in (root / source).rglob("*.py")]
    files.remove(root / SOURCES[0] / "call" / "reason_codes.py")  # it lists codes, and uses none
    # not "agentguard": what begins so is a name of telemetry, an entry point or a module
    nouns = {code.partition(".")[0] for code in known} - {"agentguard"}
    texts = {text for file in files for text in codes_in(ast.parse(file.read_text()), nouns, known)}
    return {text for text in texts if text in known or not _is_module(root, text)}


def codes_in(tree: ast.AST, nouns: Collection[str], known: Collection[str]) -> Iterator[str]:
    """Yield what is used as a code: by its keyword, or by a noun that codes begin with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "code":
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                yield node.value.value
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            is_code = CODE.match(text) and text.partition(".")[0] in nouns and text not in OTHERS
            if text in known or is_code:
                yield text


def _is_module(root: Path, text: str) -> bool:
    """Whether a text is the name of a module, as ``call.tool``, or of one with commands."""
    path = f"{text.replace('.', '/')}.py"
    return any((root / SOURCES[0] / folder / path).is_file() for folder in ("", "cli"))
