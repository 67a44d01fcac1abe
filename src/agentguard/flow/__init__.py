"""The line of one guarded call, as a generator of effects, and what drives it."""
