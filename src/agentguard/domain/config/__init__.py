"""The configuration of a trust domain: ``agentguard.toml`` as values.

This module has the public names of the package. ``file.py`` reads a configuration, ``settings.py``
has the value, and the other modules have one group of tables each.
"""

from __future__ import annotations

from agentguard.domain.config.file import FILE, find, load, parse
from agentguard.domain.config.paths import is_inside, require_outside
from agentguard.domain.config.settings import DEFAULT_ANCHOR, NO_DOMAIN, Config
from agentguard.domain.config.tools import ToolConfig, load_callable
from agentguard.tables import resolve

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
