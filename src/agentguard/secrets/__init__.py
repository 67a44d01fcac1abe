"""Secrets that a running call may have: the rule of each secret, the sources, and the release."""
