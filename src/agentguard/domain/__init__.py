"""The trust domain: its keys, configuration and state, and what its administrator does."""
