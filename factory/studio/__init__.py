"""The built-in world renders a parametric head on CPU and knows the truth of every image."""
