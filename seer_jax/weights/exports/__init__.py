"""Weights for others to read: a folder of arrays, or one function with them."""
