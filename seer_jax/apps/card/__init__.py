"""A model card: what a run is, what was measured, and what was not."""
