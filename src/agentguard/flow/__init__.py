"""The steps of one guarded call, as a generator of effects, and the drivers of the generator."""
