"""Who acts: the names of principals, credentials of agent instances, trusted keys, revocations."""
