"""What a command reads from a terminal, and shows there."""
