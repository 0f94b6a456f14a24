"""Curation: a balanced selection from images of any origin."""
