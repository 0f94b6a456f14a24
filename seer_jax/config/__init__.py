"""Every key of a run once, with its default, its reason and its check.

A config file needs `base` alone; `source` makes a part of a mix of sources.
"""

from seer_jax.config.keys import base, source

__all__ = ["base", "source"]
