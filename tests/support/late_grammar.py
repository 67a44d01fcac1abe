"""Has jsonschema read the grammar of addresses once it checks one, and not when it is imported.

The grammar takes 1.2 s of CPU, and CrewAI imports jsonschema. It is there for the bill of
materials alone, which ``cyclonedx-python-lib[json-validation]`` checks.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

NAME = "rfc3987_syntax"


@functools.cache
def _grammar() -> Any:
    sys.modules.pop(NAME, None)
    return importlib.import_module(NAME)


def _is_valid_syntax(term: str, value: str) -> bool:
    return bool(_grammar().is_valid_syntax(term, value))


if NAME not in sys.modules and importlib.util.find_spec(NAME) is not None:
    sys.modules[NAME] = ModuleType(NAME)
    vars(sys.modules[NAME])["is_valid_syntax"] = _is_valid_syntax
