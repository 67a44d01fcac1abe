"""Stores on both engines."""

from __future__ import annotations

from store_place import on_disk, place

__all__ = ["on_disk", "place"]
