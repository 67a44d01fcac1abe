"""The store: one log of entries, one map of what decides later calls, one signed head over both.

``tree.py`` hashes, ``sqlite.py`` keeps rows, ``store.py`` commits. The map is ``audit/map.py``, the
head ``audit/head.py``.
"""
