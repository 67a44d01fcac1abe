"""The files of Cedar policies, and the checks that the policies pass before use.

Each file is read once. A policy that Cedar would accept and never match, or match without its
author's condition (a template, a misspelt annotation), is refused.
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
from agentguard.policy import cedar_reads
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
            for problem in cedar_reads.mistakes(policy)
        ]
        if slips:
            raise _invalid("\n".join(slips))
        reads = {
            path: places[name]
            for name, policy in static.items()
            for path in sorted(cedar_reads.reads(policy))
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
