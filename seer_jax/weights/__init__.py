"""Arrays at rest, our own and other projects'."""
