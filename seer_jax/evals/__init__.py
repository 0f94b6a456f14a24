"""What a representation is worth; an evaluator yields (name, value)."""
