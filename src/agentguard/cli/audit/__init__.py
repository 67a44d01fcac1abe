"""Commands about the log, and the evidence that comes of it."""
