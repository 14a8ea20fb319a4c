"""Preparing a dataset from existing images: they are listed, checked, aligned and committed."""
