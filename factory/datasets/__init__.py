"""Datasets on disk: shards, manifests, claims, compositions and provenance."""
