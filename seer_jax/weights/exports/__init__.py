"""Exports of weights: a folder of arrays, or one function with them."""
