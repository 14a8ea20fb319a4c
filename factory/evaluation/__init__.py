"""Protocols and metrics, one definition each."""
