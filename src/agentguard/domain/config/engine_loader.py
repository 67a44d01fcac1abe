"""Loads the policy engine that a configuration or a program names, and logs its warnings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentguard.call.decision import Decision
from agentguard.domain.config.settings import Config
from agentguard.domain.config.tools import load_callable
from agentguard.errors import ConfigError
from agentguard.policy.document import DEFAULT_QUERY
from agentguard.policy.engine import Engine
from agentguard.storage import files
from agentguard.tables import resolve

if TYPE_CHECKING:
    from agentguard.policy.opa_server import Server

PolicySource = str | Path | Callable[[Mapping[str, Any]], Decision] | Engine
"""A file or folder in Rego or Cedar, a function from the input to a ``Decision``, or an engine."""

_LOGGER: Final = logging.getLogger("agentguard")


def configured_engine(settings: Config) -> Engine:
    """Load the policy that a configuration names. Raises ``ConfigError`` or ``PolicyError``."""
    policy = settings.policy
    if policy is None:
        raise ConfigError(f"{settings.source}: policy: expected a table with a path, found none")
    if policy.engine == "function":
        return _function(load_callable(policy.path, f"{settings.source}: policy.path"))
    if policy.server is not None:
        return _opa(policy.server, policy.query, f"{settings.source}: policy")
    where = f"{settings.source}: policy.path"
    path = resolve(settings.base, policy.path)
    try:
        if not files.exists(path):
            raise ConfigError(f"{where}: there is no {path}")
        _refuse_if_exposed(path, policy.engine)
    except OSError as error:
        raise _unreadable(where, error) from error
    return _cedar(path) if policy.engine == "cedar" else _rego(path, policy.query)


def engine_from(source: PolicySource, base: Path) -> Engine:
    """Load the policy that a program hands over; a path is relative to ``base``.

    Raises ``ConfigError`` or ``PolicyError``.
    """
    if callable(source):
        return _function(source)
    if not isinstance(source, str | Path):
        return source
    path = resolve(base, str(source))
    try:
        if not files.exists(path):
            raise ConfigError(f"there is no policy at {path}")
    except OSError as error:
        raise _unreadable("policy", error) from error
    return _cedar(path) if _is_cedar(path) else _rego(path, DEFAULT_QUERY)


def _unreadable(where: str, error: OSError) -> ConfigError:
    problem = files.unreadable(error.filename, error)
    return ConfigError(f"{where}: {problem}, or take it out of the policy")


def log_warnings(engine: Engine) -> Engine:
    """Log the warnings of an engine, and return the engine."""
    for warning in engine.warnings:
        _LOGGER.warning("the policy may not mean what it says: %s", warning)
    return engine


def observation_warning(settings: Config) -> str | None:
    """Return the warning for a policy that is only observed; None for one that is enforced."""
    if settings.policy is None or settings.policy.mode == "enforce":
        return None
    return (
        'the policy is only observed ([policy] mode = "observe"): calls run whatever it says, and '
        "nobody is asked to approve them; take the line out to have it enforced"
    )


def open_engine(settings: Config) -> Engine:
    """Load the policy that a configuration names, for a guard, and log all warnings.

    Raises as ``configured_engine`` does.
    """
    engine = log_warnings(configured_engine(settings))
    warning = observation_warning(settings)
    if warning is not None:
        _LOGGER.warning("%s: %s", settings.source, warning)
    return engine


# --- the engines: a program imports the one that it uses ----------------------------------------


def _refuse_if_exposed(path: Path, engine: str) -> None:
    """Refuse a policy that others can write; raises ``ConfigError`` or ``OSError``."""
    from agentguard.domain.config import rights  # noqa: PLC0415
    from agentguard.policy import cedar_source, rego  # noqa: PLC0415

    places = cedar_source.places(path) if engine == "cedar" else rego.places(path)
    for place in places:
        rights.refuse_if_writable_by_others(place)


def _is_cedar(path: Path) -> bool:
    from agentguard.policy import cedar_source  # noqa: PLC0415

    return cedar_source.is_policy(path)


def _function(decide: Callable[[Mapping[str, Any]], Decision]) -> Engine:
    from agentguard.policy.function import FunctionEngine  # noqa: PLC0415

    return FunctionEngine(decide)


def _cedar(path: Path) -> Engine:
    from agentguard.policy.cedar import CedarEngine  # noqa: PLC0415

    return CedarEngine.load(path)


def _opa(server: Server, query: str, where: str) -> Engine:
    from agentguard.domain.config import rights  # noqa: PLC0415
    from agentguard.policy.opa import OpaEngine  # noqa: PLC0415

    try:
        for public in (server.ca, server.certificate):
            if public is not None:
                rights.refuse_if_writable_by_others(public)
        for secret in (server.key, server.token_file):
            if secret is not None:
                rights.refuse_if_readable_by_all(secret)
        return OpaEngine(server, query)
    except OSError as error:
        name = _setting_of(server, error.filename)
        problem = files.unreadable(error.filename, error)
        message = f"{where}.{name}: {problem}, or correct {name} in [policy]"
        raise ConfigError(message) from error
    except ConfigError as error:
        if error.code != ConfigError.default_code:
            raise
        raise ConfigError(f"{where}.{error}") from error


def _setting_of(server: Server, file: object) -> str:
    """Return the name of the setting in [policy] that names ``file``."""
    names = ("ca", "certificate", "key", "token_file")
    return next((name for name in names if str(getattr(server, name)) == str(file)), "url")


def _rego(path: Path, query: str) -> Engine:
    from agentguard.policy.rego import RegoEngine  # noqa: PLC0415  regorus is an optional extra

    return RegoEngine.load(path, query=query)
