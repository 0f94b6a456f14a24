"""Configs of `seer-jax eval` and `labels` where they are given none."""

from seer_jax.config import keys


def get_config(kind="") -> keys.ConfigDict:
  """`labelled` to train by; else `base`, but every image counts.

  Published figures are of whole banks and test sets.
  """
  if kind == "labelled":
    return keys.labelled()
  config = keys.base()
  config.eval.max_images = 2**31 - 1
  return config
