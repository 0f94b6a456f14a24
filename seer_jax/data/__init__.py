"""From bytes to batches."""
