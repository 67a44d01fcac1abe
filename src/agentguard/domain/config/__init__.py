"""The configuration of a trust domain: ``agentguard.toml`` as values.

Public names of the package. The code stands in ``file.py`` (reading), ``settings.py`` (the
value), ``tools.py`` and ``paths.py``.
"""

from __future__ import annotations

from agentguard.domain.config.file import DEFAULT_ANCHOR, FILE, find, load, parse
from agentguard.domain.config.paths import is_inside, require_outside, resolve
from agentguard.domain.config.settings import NO_DOMAIN, Config
from agentguard.domain.config.tools import ToolConfig, load_callable

__all__ = [
    "DEFAULT_ANCHOR",
    "FILE",
    "NO_DOMAIN",
    "Config",
    "ToolConfig",
    "find",
    "is_inside",
    "load",
    "load_callable",
    "parse",
    "require_outside",
    "resolve",
]
