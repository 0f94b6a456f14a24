"""Views of a collection: pages of images, and a map in the browser."""
