"""The guard server: runs the steps of guarded calls for clients in other processes."""
