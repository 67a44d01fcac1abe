"""Canonical JSON, keys, and the two forms of signatures: JWS for tokens, DSSE for statements."""
