"""The files of Cedar policies, and the checks that the policies pass before use.

Each file is read once. A policy that Cedar would accept and never match, or match without its
author's condition (a template, a misspelt annotation, a name that no input has), is refused.

In a Cedar request, ``principal`` is the input's ``agent``, and ``context`` has the members other
than ``agent``, ``action`` and ``resource``. A misspelt ``has`` is false without an error, and so is
``principal in`` a misspelt type. The checks read Cedar's own JSON form of the policies.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from agentguard.call import vocabulary
from agentguard.errors import ConfigError, PolicyError
from agentguard.signing import canonical
from agentguard.signing.canonical import JSON
from agentguard.storage import files

MAX_BYTES: Final = 1024 * 1024
"""The longest file of a policy, in bytes."""

SCHEMA: Final = "schema.cedarschema"

_APPROVAL: Final = frozenset({"approval", "approvers", "roles", "quorum", "ttl"})
_ANNOTATIONS: Final = frozenset({"id", "description", "reason"}) | _APPROVAL
_AT: Final = [f"@{annotation}" for annotation in _ANNOTATIONS]
_NUMBERS: Final = frozenset({"quorum", "ttl"})

ENTITIES: Final = ("Agent", "Role", "Action", "Resource")
"""The types of the entities in a request."""

_VARIABLES: Final[Mapping[str, vocabulary.Path]] = {
    "principal": ("agent",),
    "action": ("action",),
    "resource": ("resource",),
    "context": (),
}

_TAGS: Final = ("hasTag", "getTag")
"""The methods for tags, which no entity of a request has: ``hasTag`` is always false."""


@dataclass(frozen=True, slots=True)
class CedarPolicy:
    """The name of one policy for messages, and the content of its annotations.

    ``reason`` is the reason of a denial by a ``forbid``; ``approval`` is the approval that a
    ``permit`` requires, in the form of a policy's document.
    """

    name: str
    reason: str
    approval: dict[str, JSON] | None


class ParsedCedar(NamedTuple):
    """The binding's policy set and schema, the policies by Cedar's id, and what they read.

    ``reads`` are the paths below ``input``, each with a policy that reads it.
    """

    policy_set: Any
    schema: Any
    policies: Mapping[str, CedarPolicy]
    reads: Mapping[vocabulary.Path, str]


@dataclass(frozen=True, slots=True)
class CedarSource:
    """The texts of the policies by path, the schema or None, and the digests of the files."""

    policies: Mapping[str, str]
    schema: str | None
    files: Mapping[str, str]
    sha256: str

    @classmethod
    def from_texts(cls, texts: Mapping[str, bytes]) -> CedarSource:
        """Build the source from ``{relative POSIX path: content}``. Raises ``PolicyError``."""
        decoded = {path: _text(path, content) for path, content in sorted(texts.items())}
        schema = decoded.pop(SCHEMA, None)
        if not decoded:
            raise _invalid("no Cedar policy found: expected a *.cedar file")
        files = {path: canonical.sha256_hex(content) for path, content in texts.items()}
        return cls(decoded, schema, files, canonical.digest(files))

    @classmethod
    def read(cls, path: Path) -> CedarSource:
        """Read one file, or a folder's ``*.cedar`` and its ``schema.cedarschema``.

        A file stands alone. Raises ``PolicyError`` (``policy.invalid``).
        """
        try:
            if not path.is_dir():
                return cls.from_texts({path.name: files.read(path)})
            contents = {file.name: files.read(file) for file in _files(path)}
        except OSError as error:
            raise _invalid(f"{error.filename}: can't be read: {error.strerror}") from error
        return cls.from_texts(contents)

    def parse(self) -> ParsedCedar:
        """Parse the source.

        Raises ``PolicyError`` (``policy.invalid``), and ``ConfigError`` without the binding.
        """
        cedar = binding()
        for path, text in self.policies.items():
            _parse(path, cedar.PolicySet.from_str, text)
        whole = "\n".join(self.policies.values())
        parsed = json.loads(cedar.policies_to_json_str(whole))
        if parsed["templates"] or parsed["templateLinks"]:
            raise _invalid("a template applies to nothing until it is linked: write a policy")
        static = parsed["staticPolicies"]
        policies = {name: _read_policy(name, policy) for name, policy in static.items()}
        if not policies:
            raise _invalid("the Cedar files hold no policy")
        places = self._places(policies)
        slips = [
            f"{places[name]}: {problem}"
            for name, policy in static.items()
            for problem in _mistakes(policy)
        ]
        if slips:
            raise _invalid("\n".join(slips))
        reads = {
            path: places[name]
            for name, policy in static.items()
            for path in sorted(_read_paths(policy))
        }
        schema = None
        if self.schema is not None:
            schema = _parse(SCHEMA, cedar.Schema.from_str, self.schema)
            problems = cedar.validate_policies(whole, schema)
            if not problems.validation_passed:
                problem_texts = (
                    f"{places.get(error.policy_id, SCHEMA)}: {error.error}"
                    for error in problems.errors
                )
                raise _invalid("\n".join(problem_texts))
        return ParsedCedar(cedar.PolicySet.from_str(whole), schema, policies, reads)

    def _places(self, policies: Mapping[str, CedarPolicy]) -> dict[str, str]:
        """Return each policy's file and name; Cedar numbers policies in order over all files."""
        files: list[str] = []
        for path, text in self.policies.items():
            parsed = json.loads(binding().policies_to_json_str(text))
            files += [path] * len(parsed["staticPolicies"])
        ids = (f"policy{number}" for number in range(len(files)))
        return {
            name: f"{file}: {policies[name].name}" for name, file in zip(ids, files, strict=True)
        }


def is_policy(path: Path) -> bool:
    """Tell whether a file or folder holds Cedar policies; others are read as Rego."""
    return path.suffix == ".cedar" or (path.is_dir() and any(path.glob("*.cedar")))


def places(path: Path) -> Iterator[Path]:
    """Yield the paths that ``CedarSource.read`` reads: the file, or the folder and its files.

    Raises ``OSError``.
    """
    yield path
    if path.is_dir():
        yield from _files(path)


def binding() -> Any:
    """Return the binding, cedarpy; raises ``ConfigError`` without it."""
    try:
        return importlib.import_module("cedarpy")
    except ModuleNotFoundError as error:
        raise ConfigError.without_extra("cedar", what="a Cedar policy", brings="cedarpy") from error


def _files(folder: Path) -> list[Path]:
    for below in sorted(folder.glob("*/**/*.cedar")):
        if not any(part.startswith(".") for part in below.relative_to(folder).parts):
            # A forbid in a file that is silently ignored would forbid nothing.
            raise _invalid(f"{below}: policies of folders below are not read; move it up")
    visible = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    return [file for file in visible if file.suffix == ".cedar" or file.name == SCHEMA]


def _text(path: str, content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise _invalid(f"{path}: more than {MAX_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"{path}: not UTF-8 at byte {error.start}") from error


def _parse(path: str, parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise _invalid(f"{path}: {error}") from error


def _read_policy(name: str, policy: Mapping[str, Any]) -> CedarPolicy:
    """Read a policy's annotations; an unknown annotation may be a misspelt condition."""
    annotations: dict[str, str] = {
        key: value or "" for key, value in policy.get("annotations", {}).items()
    }
    label = f"the policy {annotations.get('id') or name}"
    unknown = sorted(annotations.keys() - _ANNOTATIONS)
    if unknown:
        raise _invalid(vocabulary.no_member(label, f"@{unknown[0]}", _AT))
    permits = policy["effect"] == "permit"
    if permits and "reason" in annotations:
        raise _invalid(f"{label}: a permit gives no @reason; @approval has one of its own")
    if not _APPROVAL.isdisjoint(annotations) and not (permits and "approval" in annotations):
        raise _invalid(f"{label}: an approval is asked for by @approval(REASON) on a permit")
    approval = _approval(label, annotations) if "approval" in annotations else None
    return CedarPolicy(label, annotations.get("reason") or f"{label} forbids it", approval)


def _approval(label: str, annotations: Mapping[str, str]) -> dict[str, JSON]:
    requirement: dict[str, JSON] = (
        {"reason": annotations["approval"]} if annotations["approval"] else {}
    )
    for name in ("approvers", "roles"):
        if name in annotations:
            names = [item.strip() for item in annotations[name].split(",")]
            if "" in names:
                raise _invalid(f"{label}: @{name} lists names with commas between them")
            requirement[name] = [*names]
    for name in _NUMBERS & annotations.keys():
        if not (
            annotations[name].isascii()
            and annotations[name].isdecimal()
            and int(annotations[name]) > 0
        ):
            raise _invalid(f"{label}: @{name} is a whole number from 1, in quotes")
        requirement[name] = int(annotations[name])
    return requirement


def _invalid(message: str) -> PolicyError:
    return PolicyError(message, code="policy.invalid")


def _mistakes(policy: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each name of the policy that no request has."""
    for path, variable in dict.fromkeys(_reads(policy["conditions"])):
        problem = _outside(path, variable) or vocabulary.slip(path)
        if problem is not None:
            yield _in_cedar(problem)
    for kind in _TAGS:
        if any(kind in node for node in _objects(policy["conditions"])):
            yield f"{kind}: nothing in a request has tags; write has, and read an attribute"
    for name in sorted(_types(policy)):
        if name not in ENTITIES:
            types = ", ".join(ENTITIES)
            yield f"no request has an entity of the type {name}; the types are {types}"


def _read_paths(policy: Mapping[str, Any]) -> set[vocabulary.Path]:
    """Return the paths below ``input`` that a policy reads."""
    return {path for path, _variable in _reads(policy["conditions"])}


def _outside(path: vocabulary.Path, variable: str) -> str | None:
    """Return why the context lacks a member that stands in a variable of its own."""
    if variable != "context" or not path:
        return None
    for name, root in _VARIABLES.items():
        if path[:1] == root:
            return f"no input has context.{path[0]}; did you mean {name}?"
    return None


def _in_cedar(problem: str) -> str:
    """Return a message about the input in the words of Cedar."""
    for variable, path in _VARIABLES.items():
        if path:
            problem = problem.replace(f"input.{path[0]}", variable)
    return problem.replace("input.", "context.")


def _reads(tree: object) -> Iterator[tuple[vocabulary.Path, str]]:
    for node in _objects(tree):
        for kind in (".", "has", *_TAGS):
            if isinstance(member := node.get(kind), dict):
                name = member["right"].get("Value") if kind in _TAGS else member["attr"]
                below = (name,) if isinstance(name, str) else ()
                for path, variable in _values(member["left"]):
                    yield (*path, *below), variable


def _objects(tree: object) -> Iterator[Mapping[str, Any]]:
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo += node.values()
        elif isinstance(node, list):
            todo += node


def _values(node: Mapping[str, Any]) -> Iterator[tuple[vocabulary.Path, str]]:
    """Yield the paths of the values that an expression may have, with their variables."""
    match node:
        case {"Var": str(name)}:
            yield _VARIABLES[name], name
        case {".": {"left": left, "attr": name}}:
            yield from (((*path, name), variable) for path, variable in _values(left))
        case {"if-then-else": {"then": one, "else": other}}:
            yield from _values(one)
            yield from _values(other)


def _types(tree: object) -> set[str]:
    """Return the types of all entities in a policy."""
    found: set[str] = set()
    for node in _objects(tree):
        match node:
            case {"type": str(name), "id": str()} | {"entity_type": str(name)}:
                found.add(name)
    return found
