"""Where the audit log lies: the group commit, and the places that it writes to.

What a fork does to all that is open here, and in which order, stands in ``fork.py``.
"""
