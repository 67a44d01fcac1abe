"""Where the audit log lies: the group commit, and the places that it writes to."""
