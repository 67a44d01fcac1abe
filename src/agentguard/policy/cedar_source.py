"""What Cedar policies consist of, and the checks that they pass before they are used.

Files are read here, each once. What Cedar would accept and never match, or match without the
condition that its author meant (a template, a misspelt annotation), is refused.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentguard.errors import ConfigError, PolicyError
from agentguard.signing import canonical
from agentguard.storage import files

MAX_BYTES: Final = 1024 * 1024
"""The longest file of a policy, in bytes."""

SCHEMA: Final = "schema.cedarschema"

_APPROVAL: Final = frozenset({"approval", "approvers", "roles", "quorum", "ttl"})
_ANNOTATIONS: Final = frozenset({"id", "description", "reason"}) | _APPROVAL
_NUMBERS: Final = frozenset({"quorum", "ttl"})


@dataclass(frozen=True, slots=True)
class CedarPolicy:
    """What is known of one policy: how people call it, and what its annotations say.

    ``reason`` is what a ``forbid`` gives for its denial; ``approval`` what a ``permit`` asks for,
    as in a policy's document.
    """

    name: str
    reason: str
    approval: Mapping[str, object] | None


@dataclass(frozen=True, slots=True)
class CedarSource:
    """Policies as they were read, and the schema, if there is one."""

    policies: Mapping[str, str]
    schema: str | None
    files: Mapping[str, str]
    sha256: str

    @classmethod
    def from_texts(cls, texts: Mapping[str, bytes]) -> CedarSource:
        """Make it of ``{relative POSIX path: content}``. Raises ``PolicyError``."""
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
            found = {file.name: files.read(file) for file in _files(path)}
        except OSError as error:
            raise _invalid(f"{error.filename}: can't be read: {error.strerror}") from error
        return cls.from_texts(found)

    def checked(self) -> tuple[Any, Any, Mapping[str, CedarPolicy]]:
        """Parse it once: the binding's policy set and schema, and what is known of each policy.

        Raises ``PolicyError`` (``policy.invalid``), and ``ConfigError`` without the binding.
        """
        cedar = binding()
        for path, text in self.policies.items():
            _parsed(path, cedar.PolicySet.from_str, text)
        whole = "\n".join(self.policies.values())
        written = json.loads(cedar.policies_to_json_str(whole))
        if written["templates"] or written["templateLinks"]:
            raise _invalid("a template applies to nothing until it is linked: write a policy")
        known = {name: _known(name, policy) for name, policy in written["staticPolicies"].items()}
        if not known:
            raise _invalid("the Cedar files hold no policy")
        schema = None
        if self.schema is not None:
            schema = _parsed(SCHEMA, cedar.Schema.from_str, self.schema)
            problems = cedar.validate_policies(whole, schema)
            if not problems.validation_passed:
                places = self._places(known)
                said = (
                    f"{places.get(error.policy_id, SCHEMA)}: {error.error}"
                    for error in problems.errors
                )
                raise _invalid("\n".join(said))
        return cedar.PolicySet.from_str(whole), schema, known

    def _places(self, known: Mapping[str, CedarPolicy]) -> dict[str, str]:
        """Return each policy's file and name. Cedar numbers them in their order, over all files."""
        files: list[str] = []
        for path, text in self.policies.items():
            written = json.loads(binding().policies_to_json_str(text))
            files += [path] * len(written["staticPolicies"])
        ids = (f"policy{number}" for number in range(len(files)))
        return {name: f"{file}: {known[name].name}" for name, file in zip(ids, files, strict=True)}


def is_policy(path: Path) -> bool:
    """Whether what lies there, a file or a folder, is taken for Cedar, and not for Rego."""
    return path.suffix == ".cedar" or (path.is_dir() and any(path.glob("*.cedar")))


def places(path: Path) -> Iterator[Path]:
    """Yield what ``CedarSource.read`` reads: the file, or the folder and its files of the policy.

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
            # passed over in silence, a forbid in it would forbid nothing
            raise _invalid(f"{below}: policies of folders below are not read; move it up")
    shown = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    return [file for file in shown if file.suffix == ".cedar" or file.name == SCHEMA]


def _text(path: str, content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise _invalid(f"{path}: more than {MAX_BYTES} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"{path}: not UTF-8 at byte {error.start}") from error


def _parsed(path: str, parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise _invalid(f"{path}: {error}") from error


def _known(name: str, policy: Mapping[str, Any]) -> CedarPolicy:
    """Read a policy's annotations; one that is not known may be a misspelt condition."""
    said: dict[str, str] = {
        key: value or "" for key, value in policy.get("annotations", {}).items()
    }
    called = f"the policy {said.get('id') or name}"
    unknown = sorted(said.keys() - _ANNOTATIONS)
    if unknown:
        known = ", ".join(f"@{one}" for one in sorted(_ANNOTATIONS))
        raise _invalid(f"{called}: there is no annotation @{unknown[0]}; known here: {known}")
    permits = policy["effect"] == "permit"
    if permits and "reason" in said:
        raise _invalid(f"{called}: a permit gives no @reason; @approval has one of its own")
    if not _APPROVAL.isdisjoint(said) and not (permits and "approval" in said):
        raise _invalid(f"{called}: an approval is asked for by @approval(REASON) on a permit")
    approval = _approval(called, said) if "approval" in said else None
    return CedarPolicy(called, said.get("reason") or f"{called} forbids it", approval)


def _approval(called: str, said: Mapping[str, str]) -> Mapping[str, object]:
    asked: dict[str, object] = {"reason": said["approval"]} if said["approval"] else {}
    for name in ("approvers", "roles"):
        if name in said:
            asked[name] = [one.strip() for one in said[name].split(",")]
            if "" in asked[name]:  # type: ignore[operator]
                raise _invalid(f"{called}: @{name} lists names with commas between them")
    for name in _NUMBERS & said.keys():
        if not (said[name].isascii() and said[name].isdecimal() and int(said[name]) > 0):
            raise _invalid(f"{called}: @{name} is a whole number from 1, in quotes")
        asked[name] = int(said[name])
    return asked


def _invalid(message: str) -> PolicyError:
    return PolicyError(message, code="policy.invalid")
