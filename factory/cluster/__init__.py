"""Ray: the connection to a cluster, its capacity, and the actor pools that run on it."""
