"""The client of a guard server: what a guard stands on where its steps run in the server."""
