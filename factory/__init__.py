"""A data factory for labelled synthetic faces: recipe to dataset to recognizer to gap-to-real."""

__version__ = "0.2.0"

# The last version that made other images of a recipe than the one before it. Content digests have
# it in the place of the version, so that a dataset goes on growing after a release that only moved
# code; tests/test_golden.py holds the bytes.
PIXELS = "0.1.0"
