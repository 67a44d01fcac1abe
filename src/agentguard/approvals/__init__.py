"""Approvals: the request, who may answer it, and the inbox in which it waits."""
