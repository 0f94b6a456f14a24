"""Finding the same object, or copies of an image."""
