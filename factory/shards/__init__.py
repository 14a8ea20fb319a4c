"""Shards: bytes on disk and back."""
