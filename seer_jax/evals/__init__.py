"""Evaluators: each file offers one, `run(state)` yields (name, value)."""
