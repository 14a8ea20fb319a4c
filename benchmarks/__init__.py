"""Measure the factory: its overhead, its speed, its controls. Run these from the repository."""
