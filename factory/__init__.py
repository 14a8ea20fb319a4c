"""A data factory for labelled synthetic faces: recipe to dataset to recognizer to gap-to-real."""

__version__ = "0.1.0"
