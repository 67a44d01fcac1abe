"""Tools that tell what they received, and the mark for a value that a default factory made."""

from __future__ import annotations

from typing import Any

from langchain_core.tools import StructuredTool
from pydantic import create_model

MADE = {"$made": True}


def say(**received: Any) -> str:
    """Return the arguments as text."""
    return repr(received)


def tool_for(annotation: Any, **fields: Any) -> StructuredTool:
    """Return a tool with one argument of this type; the tool returns its arguments as text."""
    schema = create_model("Args", value=(annotation, ...), **fields)
    return StructuredTool.from_function(say, name="tell", description="T.", args_schema=schema)
