"""What flows on Ray Data: one shard in, one shard out."""
