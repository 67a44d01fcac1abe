"""Commands that set a trust domain up, check it, and manage its keys."""
