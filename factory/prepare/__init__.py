"""Others' faces become a dataset: listed, checked, aligned, embedded, committed shard by shard."""
