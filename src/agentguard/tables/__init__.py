"""Declares the tables of a configuration: one class for each, whose fields are its keys.

A field says the key's type, its kind and its default; the docstring below it says what the key
means, and the docstring of the class has an example. The reader, its errors and the page
docs/reference/configuration.md follow from that. ``table.py`` has a table and its place,
``kinds.py`` what a value may be, and ``record.py`` reads a table into its record. The tables
themselves are declared where their values are used.
"""

from __future__ import annotations

from agentguard.tables import kinds
from agentguard.tables.record import below, each, make, named, others, read, setting, values_of
from agentguard.tables.table import MistakeError, Table, resolve

__all__ = [
    "MistakeError",
    "Table",
    "below",
    "each",
    "kinds",
    "make",
    "named",
    "others",
    "read",
    "resolve",
    "setting",
    "values_of",
]
