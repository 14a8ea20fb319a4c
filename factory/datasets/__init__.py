"""Datasets on disk and back: shards, manifests, claims, views over them, where they come from."""
