"""What a client and a guard server say to each other: frames, values as JSON, reports of a call."""
