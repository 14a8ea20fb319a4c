"""Generation: identities, makers and committers, from a recipe to a dataset."""
