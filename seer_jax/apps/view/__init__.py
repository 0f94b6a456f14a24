"""Looking at a collection: pages of pictures, and a map in the browser."""
