"""The guard and its agents: the public API, wired to a process."""
