"""Which versions of its framework an adapter runs on: those that its own distribution asks for.

An installer sees to that when it installs the two together; another version that came later, or
without the adapter's knowledge, is found when the adapter is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from agentguard.errors import ConfigError


def require_supported(adapter: str, *frameworks: str) -> None:
    """For adapters: raise ``ConfigError`` unless these frameworks are of versions that they run on.

    ``adapter`` and ``frameworks`` are names of distributions. Adapters call this before they import
    a framework. The code is ``framework.unsupported``.
    """
    for needed in _needed(adapter, frameworks):
        try:
            present = version(needed.name)
        except PackageNotFoundError:
            raise _unsupported(adapter, needed, f"no {needed.name} is installed") from None
        if not needed.specifier.contains(present, prereleases=True):
            raise _unsupported(adapter, needed, f"{needed.name} {present} is installed")


def _needed(adapter: str, frameworks: tuple[str, ...]) -> Iterator[Requirement]:
    """Yield what the adapter's distribution asks for of these frameworks, each once."""
    try:
        found = {one.name: one for one in map(Requirement, requires(adapter) or ())}
        yield from (found[name] for name in frameworks)
    except (PackageNotFoundError, KeyError):
        message = (
            f"{adapter} is not installed as a distribution, and so can't tell which versions of "
            f"{', '.join(frameworks)} it runs on: install it (pip install {adapter})"
        )
        raise ConfigError(message, code="framework.unsupported") from None


def _unsupported(adapter: str, needed: Requirement, present: str) -> ConfigError:
    message = (
        f"{adapter} needs {needed.name}{needed.specifier}, and {present}: install a version that "
        f"it runs on (pip install '{needed.name}{needed.specifier}')"
    )
    return ConfigError(message, code="framework.unsupported")
