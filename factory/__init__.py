"""A data factory for labelled synthetic faces: recipe to dataset to recognizer to gap-to-real."""

__version__ = "0.2.0"

# The last version that changed the images of a recipe. Content digests use it instead of the
# version, so that a dataset can still grow after a release that only moved code;
# tests/test_golden.py checks that the bytes stay the same.
PIXELS = "0.1.0"
