"""Every key of a run once, with its default, its reason and its check.

A config file needs `base`, or `labelled` to probe and fine-tune; `source` makes
a part of a mix of sources, and `leave_open` has keys chosen from the data.
"""

from seer_jax.config.keys import base, labelled, leave_open, source

__all__ = ["base", "labelled", "leave_open", "source"]
