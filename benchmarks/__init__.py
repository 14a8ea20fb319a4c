"""What measures the factory: its overhead, its speed, its controls; run from the repository."""
