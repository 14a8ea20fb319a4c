"""Evaluation: protocols and metrics, each defined in one place."""
