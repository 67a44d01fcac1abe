"""Requests to servers that the configuration names: deadlines, bounds, TLS, and no redirections."""
