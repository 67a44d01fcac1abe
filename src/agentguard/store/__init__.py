"""The store: one log of entries, one map of what decides later calls, one signed head over both.

``map.py`` and ``tree.py`` hash, ``head.py`` signs, ``sqlite.py`` keeps rows, ``store.py`` commits.
"""
