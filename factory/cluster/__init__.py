"""Ray: connecting to it, what it can hold, and the actor pools that run on it."""
