"""Datasets and compositions handed on in the formats of other trainers."""
