"""Exporting datasets and compositions in the formats of other trainers."""
