"""The token service of ``agentguard serve``: identities and tokens over HTTP (RFC 8693)."""
