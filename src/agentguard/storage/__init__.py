"""A state on disk: the audit log in SQLite, and the signed files, locks and anchors beside the log.

``fork.py`` says what a fork does to open files and locks, and in which order.
"""
