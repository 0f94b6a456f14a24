"""Accuracy on shifted and corrupted images."""
