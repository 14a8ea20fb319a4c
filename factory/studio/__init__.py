"""The built-in world: a parametric head, rendered on CPU, with the truth known for every image."""
