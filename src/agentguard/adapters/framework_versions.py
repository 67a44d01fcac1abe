"""Checks, when an adapter is imported, that the framework's version is a supported one.

The supported versions are the requirements of the adapter's own distribution. An installer checks
them only when it installs the adapter; a framework can be changed later.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from agentguard.errors import ConfigError


def require_supported(adapter: str, *frameworks: str) -> None:
    """Raise ``ConfigError`` unless these frameworks have versions that ``adapter`` supports.

    ``adapter`` and ``frameworks`` are names of distributions. An adapter calls this function before
    the adapter imports a framework. The code is ``framework.unsupported``.
    """
    for requirement in _requirements(adapter, frameworks):
        try:
            present = version(requirement.name)
        except PackageNotFoundError:
            raise _unsupported(
                adapter, requirement, f"no {requirement.name} is installed"
            ) from None
        if not requirement.specifier.contains(present, prereleases=True):
            raise _unsupported(adapter, requirement, f"{requirement.name} {present} is installed")


def _requirements(adapter: str, frameworks: tuple[str, ...]) -> Iterator[Requirement]:
    """Yield the requirement of the adapter's distribution for each of these frameworks."""
    try:
        requirements = map(Requirement, requires(adapter) or ())
        by_name = {requirement.name: requirement for requirement in requirements}
        yield from (by_name[name] for name in frameworks)
    except (PackageNotFoundError, KeyError):
        message = (
            f"{adapter} is not installed as a distribution, and so can't tell which versions of "
            f"{', '.join(frameworks)} it runs on: install it from its source; for an adapter of "
            f"this project, from your clone: pip install . ./integrations/{adapter}"
        )
        raise ConfigError(message, code="framework.unsupported") from None


def _unsupported(adapter: str, requirement: Requirement, present: str) -> ConfigError:
    supported = f"{requirement.name}{requirement.specifier}"
    message = (
        f"{adapter} needs {supported}, and {present}: install a version that it runs on "
        f"(pip install '{supported}')"
    )
    return ConfigError(message, code="framework.unsupported")
