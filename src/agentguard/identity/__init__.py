"""Who acts: credentials of agent instances, and the keys that a verifier trusts."""
